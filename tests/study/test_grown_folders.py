"""A study's folder: it grows, is put together from several, damaged pieces are done again."""

import dataclasses
import json
import os
import shutil
from types import SimpleNamespace

import pytest
from test_study_verbs import STUDY, TASKS, rows_of
from tiny_contexts import Learner, Points
from torch.utils.data import DataLoader, IterableDataset
from unrendered import unrendered

from lightning_merge import run_study, run_tasks
from lightning_merge.cli import main
from lightning_merge.errors import ConfigError, OutputExistsError
from lightning_merge.processes import here
from lightning_merge.study.folder import unite
from lightning_merge.study.store import Store
from lightning_merge.study.work import execute
from lightning_merge.study_verbs import Watcher, config_of_study, estimate_study, join


@pytest.fixture(scope="module", autouse=True)
def _drawn_only():
    with unrendered():
        yield


ONE = {**STUDY, "seeds": [0]}


def done_in(folder, study, **options):
    """What a call does itself, and its results."""
    done = []
    watcher = Watcher(
        on_done=lambda work, result, stored: stored or done.append((work.seed, work.name))
    )
    result = run_study(study, folder, progress=False, watcher=watcher, **options)
    return done, result


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "out"
    return folder, run_study(STUDY, folder, progress=False)


@pytest.fixture(scope="module")
def by_seed(tmp_path_factory):
    folders = [tmp_path_factory.mktemp("seed") / f"out{seed}" for seed in (0, 1)]
    for seed, folder in enumerate(folders):
        run_study({**STUDY, "seeds": [seed]}, folder, progress=False)
    return folders


def test_a_folder_grows_by_seeds_recipes_sizes_and_ingredients(whole, tmp_path):
    folder = tmp_path / "out"
    run_study({**ONE, "recipes": STUDY["recipes"][:1]}, folder, progress=False)
    # The other seed alone: the report is of both.
    done, result = done_in(folder, {**STUDY, "seeds": [1], "recipes": STUDY["recipes"][:1]})
    assert done == [(1, "Ingredient 1"), (1, "Ingredient 2"), (1, "Mean")]
    # The other recipe alone, of one seed: it is run for all.
    done, result = done_in(folder, {**ONE, "recipes": STUDY["recipes"][1:]})
    assert done == [(0, "All"), (1, "All")]
    assert rows_of(result) == rows_of(whole[1])
    # A recipe under the same name with other settings: it alone is done again.
    mean = {"name": "Mean", "aggregate": "Average", "recalibrate": "batchnorm"}
    with pytest.raises(ConfigError, match="BatchNorm"):
        done_in(folder, {**ONE, "recipes": [mean]})
    weighted = {"class_path": "Average", "init_args": {"weights": [1.0, 0.0]}}
    done, result = done_in(folder, {**STUDY, "recipes": [{"name": "Mean", "aggregate": weighted}]})
    assert done == [(0, "Mean"), (1, "Mean")]
    rows = {(row.method, row.seed): row.accuracy for row in result.rows}
    for seed in (0, 1):
        assert rows["Mean", seed] == rows["Ingredient 1", seed]
        assert rows["All", seed] == next(
            row.accuracy for row in whole[1].rows if (row.method, row.seed) == ("All", seed)
        )
    # A third ingredient, and with it another size.
    done, result = done_in(
        folder, {**ONE, "ingredients": [{}, {}, {}], "recipes": STUDY["recipes"]}
    )
    assert sorted({name for _, name in done}) == ["All", "Ingredient 3", "Mean"]
    sizes = {(row.method, row.pool_size) for row in result.rows if row.method == "All"}
    assert sizes == {("All", 2), ("All", 3)}


def test_overwriting_takes_away_from_a_study(whole, tmp_path):
    folder = tmp_path / "out"
    run_study(ONE, folder, progress=False)
    # What a killed process of another study had claimed.
    owner = [*here(), os.getpid(), "1", 7]
    (folder / "runs" / "another.0.claim").write_text(json.dumps(owner))
    done, result = done_in(folder, {**ONE, "recipes": STUDY["recipes"][:1]}, overwrite=True)
    assert done == []
    assert not list((folder / "runs").glob("*.claim"))
    assert rows_of(result) == rows_of(whole[1])[:3]


@pytest.mark.parametrize("change", ["model", "data", "training", "statistics_examples"])
def test_what_changes_all_pieces_makes_another_study(change):
    before = config_of_study(STUDY)
    now = {**before, change: "another"}
    assert unite(before, now, ("title",)) is None
    assert unite(before, {**before, "title": "x"}, ("title",)) == {**before, "title": "x"}
    other = {**before, "ingredients": [{"a": 1}, {}]}
    assert unite(before, other, ("title",)) is None


def test_folders_are_put_together(whole, by_seed, tmp_path, capsys):
    output = tmp_path / "joined"
    main(["join", *map(str, by_seed), "--output", str(output)])
    assert "8 pieces of work copied; all are finished" in capsys.readouterr().out
    rows = json.loads((output / "results.json").read_text())["measurements"]
    assert [{**row, "seconds": None} for row in rows] == rows_of(whole[1])
    # Byte for byte, so that each piece still says how it was made.
    for folder in by_seed:
        for path in (folder / "runs").glob("*/*"):
            assert (output / path.relative_to(folder)).read_bytes() == path.read_bytes()
    done, result = done_in(output, STUDY)
    assert done == []
    assert rows_of(result) == rows_of(whole[1])


def test_a_joined_study_with_something_left_goes_on(whole, by_seed, tmp_path):
    output = tmp_path / "joined"
    one = tmp_path / "one"
    run_study({**ONE, "recipes": STUDY["recipes"][:1]}, one, progress=False)
    joined = join([one, by_seed[1]], output)
    assert (joined.copied, joined.left) == (7, 1)
    assert not (output / "results.json").exists()
    done, result = done_in(output, output / "study.json")
    assert done == [(0, "All")]
    table = {(row.method, row.seed): row.accuracy for row in result.rows}
    assert table == {(row.method, row.seed): row.accuracy for row in whole[1].rows}


def test_conflicts_and_damage_are_named(by_seed, tmp_path):
    first, other = tmp_path / "first", tmp_path / "other"
    for folder in (first, other):
        run_study(ONE, folder, progress=False)
    stored = json.loads((other / "results.json").read_text())["ingredients"]
    key, broken = list(stored)
    result = json.loads((other / f"runs/{key}/result.json").read_text())["result"]
    result["row"]["accuracy"] = 0.125
    store = Store(other / "runs")
    store.put(key, result, {"state_dict": store.state(key)})
    weights = other / f"runs/{broken}/weights.ckpt"
    weights.write_bytes(weights.read_bytes()[:-5])
    (other / "runs/folder/result.json").mkdir(parents=True)
    with pytest.warns(UserWarning, match="runs") as warned:
        joined = join([first, other], tmp_path / "joined")
    named = [str(one.message) for one in warned if "runs" in str(one.message)]
    assert len(named) == 3
    assert any("runs/folder: was not finished" in line for line in named)
    assert any(key in line and "different results" in line for line in named)
    assert any(broken in line and "was changed" in line for line in named)
    assert joined.left == 0
    kept = json.loads((tmp_path / f"joined/runs/{key}/result.json").read_text())
    assert kept["result"]["row"]["accuracy"] != 0.125


def test_a_recipe_that_takes_the_place_of_another_one_is_named(by_seed, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(by_seed[1], other)
    study = json.loads((other / "study.json").read_text())
    study["recipes"][0]["recalibrate"] = "batchnorm"
    (other / "study.json").write_text(json.dumps(study))
    with pytest.warns(UserWarning, match="other settings") as warned:
        join([by_seed[0], other], tmp_path / "joined")
    (said,) = [str(one.message) for one in warned if "other settings" in str(one.message)]
    assert said.startswith(f"recipe {study['recipes'][0]['name']!r} has other settings in {other}")


def test_folders_of_different_studies_are_not_put_together(by_seed, tmp_path):
    other = tmp_path / "other"
    run_study({**ONE, "training": {"max_epochs": 2}}, other, progress=False)
    with pytest.raises(OutputExistsError, match="another study"):
        join([by_seed[0], other], tmp_path / "out")
    tasks = tmp_path / "tasks"
    run_tasks(TASKS, tasks, progress=False)
    with pytest.raises(ConfigError, match=r"tasks\.json"):
        join([by_seed[0], tasks], tmp_path / "out")
    with pytest.raises(ConfigError, match="holds no study"):
        join([by_seed[0], tmp_path], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def seen(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_a_dry_run_counts_and_writes_nothing(by_seed, tmp_path):
    before = seen(by_seed[0])
    found = estimate_study(STUDY, by_seed[0])
    assert found.counts == {"ingredient": (4, 2), "merge": (4, 2)}
    assert all(seconds > 0 for seconds in found.seconds.values())
    # The other seed will weigh what this one does.
    stored = [*by_seed[0].glob("runs/*/*"), *by_seed[0].glob("merges/*/*")]
    assert found.size == pytest.approx(sum(path.stat().st_size for path in stored), rel=0.4)
    assert seen(by_seed[0]) == before
    estimate_study(STUDY, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    nothing = estimate_study(ONE, by_seed[0])
    assert (nothing.total, nothing.size) == (0, 0)


def test_a_dry_run_that_overwrites_counts_the_study_that_would_be_there(by_seed):
    other = {**ONE, "seeds": [1], "training": {"max_epochs": 3}}
    with pytest.raises(OutputExistsError, match="holds another study"):
        estimate_study(other, by_seed[0])
    before = seen(by_seed[0])
    found = estimate_study(other, by_seed[0], overwrite=True)
    assert found.counts == {"ingredient": (2, 0), "merge": (2, 0)}
    assert seen(by_seed[0]) == before


clock = SimpleNamespace(now=0.0)


class Timed(Learner):
    """A network whose steps take a known time of a clock that only they move."""

    def training_step(self, batch, batch_idx):
        clock.now += 0.5
        return super().training_step(batch, batch_idx)

    def test_step(self, batch, batch_idx):
        clock.now += 0.25
        super().test_step(batch, batch_idx)


def test_an_estimate_is_of_all_epochs_and_batches(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "lightning_merge.study.estimate.time", SimpleNamespace(perf_counter=lambda: clock.now)
    )
    timed = {**ONE, "model": {"class_path": f"{__name__}.Timed"}, "training": {"max_epochs": 40}}
    found = estimate_study(timed, tmp_path / "out")
    # 3 batches to train on, 40 times; 3 to test on and 3 held-out ones, once.
    training, test, held_out = 3 * 0.5, 3 * 0.25, 3 * 0.25
    assert found.seconds["ingredient"] == pytest.approx(2 * (40 * training + test + held_out))
    assert found.seconds["merge"] >= test - 1e-9


def test_an_estimate_is_of_all_steps_of_a_method(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "lightning_merge.study.estimate.time", SimpleNamespace(perf_counter=lambda: clock.now)
    )
    done = []

    def in_half_seconds(work, store, session):
        recipe = work.settings.get("recipe")
        if recipe is not None:
            done.append(recipe["align"]["init_args"]["steps"])
            clock.now += 0.5 * done[-1]
            settings = {**work.settings, "recipe": {**recipe, "align": None}}
            work = dataclasses.replace(work, settings=settings)
        execute(work, store, session)

    monkeypatch.setattr("lightning_merge.study.estimate.execute", in_half_seconds)
    learned = {"class_path": "LearnedMatching", "init_args": {"steps": 100}}
    recipes = [{"name": "Learned", "aggregate": "Average", "align": learned}]
    found = estimate_study({**ONE, "recipes": recipes}, tmp_path / "out")
    assert found.seconds["merge"] == pytest.approx(0.5 * 100)
    assert sum(done) < 50


class ManyToTrainOn(Points):
    """Sixty batches of training points, one of held-out and one of test points."""

    def train_dataloader(self):
        return self._points(0, 60 * 32)

    def val_dataloader(self):
        return self._points(2, 10)

    test_dataloader = val_dataloader


def test_a_probe_is_short_where_few_batches_are_to_test_on(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "lightning_merge.study.estimate.time", SimpleNamespace(perf_counter=lambda: clock.now)
    )
    timed = {
        **ONE,
        "model": {"class_path": f"{__name__}.Timed"},
        "data": {"class_path": f"{__name__}.ManyToTrainOn"},
        "training": {"max_epochs": 40},
        "recipes": STUDY["recipes"][:1],
    }
    before = clock.now
    found = estimate_study(timed, tmp_path / "out")
    assert found.seconds["ingredient"] == pytest.approx(2 * (40 * 60 * 0.5 + 0.25 + 0.25))
    assert clock.now - before < 60 * 0.5


class FewHeldOut(Points):
    """One batch of held-out points, three of the others."""

    def val_dataloader(self):
        return self._points(2, 20)


def test_a_dry_run_on_few_held_out_batches(tmp_path):
    data = {"class_path": f"{__name__}.FewHeldOut"}
    study = {**ONE, "data": data, "recipes": STUDY["recipes"][:1]}
    assert estimate_study(study, tmp_path / "out").total > 0


class Stream(IterableDataset):
    def __iter__(self):
        return iter(Points().test_dataloader().dataset)


class Streamed(Points):
    """Does not say how many examples there are to test on."""

    def test_dataloader(self):
        return DataLoader(Stream(), batch_size=32)


def test_a_dry_run_on_batches_that_cannot_be_counted_says_so(tmp_path):
    study = {**ONE, "data": {"class_path": f"{__name__}.Streamed"}}
    with pytest.raises(ConfigError, match="a loader of Streamed does not say how many"):
        estimate_study(study, tmp_path / "out")


def test_the_command_prints_a_dry_run(by_seed, tmp_path, capsys):
    main(
        [
            "study",
            "-c",
            str(by_seed[0] / "study.json"),
            "--output",
            str(tmp_path / "out"),
            "--dry_run",
        ]
    )
    printed = capsys.readouterr().out
    assert "trainings: 2, 0 of them finished" in printed
    assert "merges: 2, 0 of them finished" in printed
    assert "disk: " in printed
    assert not (tmp_path / "out").exists()
