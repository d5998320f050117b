"""Studies as functions: on mappings, objects and files, in a folder where they go on."""

import json
import os
import random
import statistics

import numpy as np
import pytest
import torch
import yaml
from tiny_contexts import Learner, Points, learners
from torch import nn
from torch.utils.data import DataLoader
from unrendered import unrendered

from lightning_merge import (
    Average,
    Recipe,
    Study,
    TaskStudy,
    average,
    compare,
    merge,
    run_study,
    run_tasks,
)
from lightning_merge.cli import main
from lightning_merge.errors import ConfigError, OutputExistsError
from lightning_merge.randomness import random_state, set_random_state
from lightning_merge.study_verbs import Watcher, join

STUDY = {
    "model": {"class_path": "tiny_contexts.Learner"},
    "data": {"class_path": "tiny_contexts.Points"},
    "training": {"max_epochs": 1},
    "recipes": [
        {"name": "Mean", "aggregate": "Average"},
        {"name": "All", "aggregate": "LogitsEnsemble"},
    ],
    "seeds": [0, 1],
    "title": "Small",
}


class Body(Learner):
    """A network with as many outputs as a task has classes."""

    def __init__(self, num_classes: int = 3) -> None:
        super().__init__(norm=True)
        self.save_hyperparameters()
        self.net[-1] = nn.Linear(12, num_classes)


class Freed(Points):
    """Reads what a stage needs, and frees all of it when Lightning says that it has ended."""

    def setup(self, stage):
        if stage == "fit":
            self.train, self.val = super().train_dataloader(), super().val_dataloader()
        else:
            self.test = super().test_dataloader()

    def teardown(self, stage):
        self.train = self.val = self.test = None

    def train_dataloader(self):
        return self.train

    def statistics_dataloader(self):
        return DataLoader(self.train.dataset, batch_size=32)

    def val_dataloader(self):
        return self.val

    def test_dataloader(self):
        return self.test


def points(name):
    return {
        "class_path": "tiny_tasks.Points",
        "init_args": {"name": name, "testable": True},
    }


TASKS = {
    "model": {"class_path": f"{__name__}.Body"},
    "pretraining": {"data": points("b"), "trainer": {"max_epochs": 1}},
    "training": {"max_epochs": 1},
    "tasks": [
        {"name": "a", "data": points("a")},
        {"name": "c", "data": points("c")},
        {"name": "d", "data": points("d"), "unseen": True},
    ],
    "recipes": [{"name": "Mean", "aggregate": "Average", "recalibrate": "batchnorm"}],
}


def rows_of(result):
    return [{**row.row(), "seconds": None} for row in result.rows]


@pytest.fixture(scope="module", autouse=True)
def _drawn_only():
    with unrendered():
        yield


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study") / "out"
    return folder, run_study(STUDY, folder, progress=False)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks") / "out"
    return folder, run_tasks(TASKS, folder, progress=False)


def test_a_study_gives_rows_merges_and_files(study):
    folder, result = study
    names = ["Ingredient 1", "Ingredient 2", "Mean", "All"]
    assert [(row.method, row.seed) for row in result.rows] == [
        (name, seed) for seed in (0, 1) for name in names
    ]
    stored = json.loads((folder / "results.json").read_text())
    assert [row["accuracy"] for row in stored["measurements"]] == [
        row.accuracy for row in result.rows
    ]
    means = {line[0]: line[1].split()[0] for line in result.cells()[1:]}
    for name in names:
        found = [row.accuracy for row in result.rows if row.method == name]
        assert float(means[name]) == pytest.approx(statistics.fmean(found), abs=1e-4)
    assert list(result.merged) == ["Mean, seed 0", "Mean, seed 1"]
    for seed in (0, 1):
        merged = result.merged[f"Mean, seed {seed}"].state_dict()
        ours = torch.load(folder / f"merges/seed{seed}/mean.ckpt", weights_only=True)
        torch.testing.assert_close(dict(merged), ours["state_dict"])
        keys = list(stored["ingredients"])[2 * seed : 2 * seed + 2]
        states = [
            torch.load(folder / f"runs/{key}/weights.ckpt", weights_only=True)["state_dict"]
            for key in keys
        ]
        torch.testing.assert_close(dict(merged), average(states))
    assert (folder / "methods.png").is_file()
    assert "<caption>Small</caption>" in result._repr_html_()


VERBS = {
    "merge": lambda of, _: merge(of, Recipe("Mean", Average()), Points(), progress=False),
    "compare": lambda of, _: compare(of, [Recipe("Mean", Average())], Points(), progress=False),
    "run_study": lambda _, folder: run_study({**STUDY, "seeds": [0]}, folder, progress=False),
}


@pytest.mark.parametrize("verb", VERBS)
def test_random_numbers_of_the_caller_go_on_as_they_were(verb, tmp_path, monkeypatch):
    def drawn():
        return torch.rand(1).item(), np.random.rand(), random.random()  # noqa: NPY002

    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    monkeypatch.delenv("PL_SEED_WORKERS", raising=False)
    networks = learners(2)
    state = random_state()
    expected = drawn()
    set_random_state(state)
    VERBS[verb](networks, tmp_path / "out")
    assert drawn() == expected
    assert os.environ["PL_GLOBAL_SEED"] == "7"
    assert "PL_SEED_WORKERS" not in os.environ


def test_an_object_a_file_and_the_command_give_the_same(study, tmp_path, capsys):
    folder, result = study
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(STUDY))
    shown = []
    for given in (STUDY, Study(**STUDY), path, str(path)):
        again = run_study(
            given,
            folder,
            progress=False,
            watcher=Watcher(on_plan=lambda count, done: shown.append((count, done))),
        )
        assert rows_of(again) == rows_of(result)
    assert shown == [(8, 8)] * 4
    fresh = run_study(path, tmp_path / "fresh", progress=False)
    assert rows_of(fresh) == rows_of(result)
    main(["study", "-c", str(path), "--output", str(tmp_path / "command")])
    stored = json.loads((tmp_path / "command/results.json").read_text())["measurements"]
    assert [row["loss"] for row in stored] == [row.metrics["loss"] for row in result.rows]


def test_more_of_a_study_goes_on_and_another_one_is_refused(study, tmp_path):
    folder = tmp_path / "out"
    less = {**STUDY, "seeds": [0], "recipes": STUDY["recipes"][:1]}
    run_study(less, folder, progress=False)
    seen = []
    more = run_study(
        {**STUDY, "seeds": [0]},
        folder,
        progress=False,
        watcher=Watcher(on_done=lambda work, result, stored: seen.append((work.name, stored))),
    )
    assert [name for name, stored in seen if not stored] == ["All"]
    assert rows_of(more) == rows_of(study[1])[:4]
    with pytest.raises(OutputExistsError, match="another study"):
        run_study({**STUDY, "training": {"max_epochs": 2}}, folder)


def test_data_that_are_freed_after_each_stage_are_read_again(study, tmp_path):
    learned = {"class_path": "NPMerge", "init_args": {"max_epochs": 1}}
    recipes = [*STUDY["recipes"], {"name": "NP", "aggregate": learned}]
    data = {"class_path": f"{__name__}.Freed"}
    freed = run_study(
        {**STUDY, "data": data, "seeds": [0], "recipes": recipes, "magnitudes": [1.0]},
        tmp_path / "out",
        progress=False,
    )
    assert rows_of(freed)[:4] == rows_of(study[1])[:4]
    assert freed.rows[4].method == "NP"


def test_seeds_of_any_kind_of_whole_numbers_are_those_of_a_list(study):
    folder, result = study
    for seeds in (range(2), np.arange(2), (0, 1)):
        assert rows_of(run_study({**STUDY, "seeds": seeds}, folder, progress=False)) == rows_of(
            result
        )
    assert json.loads((folder / "study.json").read_text())["seeds"] == [0, 1]


def test_the_largest_seed_is_trained_with(tmp_path):
    largest = {**STUDY, "seeds": [4294966], "start": {"max_epochs": 1}}
    assert run_study(largest, tmp_path / "out", progress=False).rows[0].seed == 4294966


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"recipes": []}, "there are no recipes"),
        ({"seeds": [0, 0]}, "seeds that differ"),
        ({"seeds": [0, 4294967]}, "seeds has 4294967: choose whole numbers from 0 to 4294966"),
        ({"seeds": [-1]}, "seeds has -1"),
        ({"seeds": ["0"]}, "seeds is .*: give a list of whole numbers"),
        ({"seeds": 3}, "seeds is 3: give a list of whole numbers"),
        ({"barrier": 1}, "barrier is 1"),
        ({"pool_sizes": [3]}, "pool_sizes"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_a_study_that_does_not_suit_is_refused_in_a_line(tmp_path, change, message):
    with pytest.raises(ConfigError, match=message) as caught:
        run_study({**STUDY, **change}, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["- a list", "just words", "", "{", "recipes: []", "title: \x00"])
@pytest.mark.parametrize("verb", [run_study, run_tasks])
def test_a_file_that_holds_no_study_is_refused_in_a_line(tmp_path, verb, text):
    (tmp_path / "study.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        verb(tmp_path / "study.yaml", tmp_path / "out")
    assert "\n" not in str(caught.value)


def test_tasks_give_rows_merges_and_files(tasks):
    folder, result = tasks
    methods = ("Pre-trained", "Individual", "Mean")
    assert list(dict.fromkeys(row.method for row in result.rows)) == list(methods)
    assert [row.task for row in result.rows if row.method == "Mean"] == ["a", "c", "d"]
    stored = json.loads((folder / "results.json").read_text())
    assert stored["measurements"] == [row.row() for row in result.rows]
    merged = result.merged["Mean"]
    assert type(merged) is Body
    ours = torch.load(folder / "merges/seed0/mean.ckpt", weights_only=True)["state_dict"]
    torch.testing.assert_close(dict(merged.state_dict()), ours)
    store = {one["task"]: key for key, one in stored["ingredients"].items()}
    first, second = (
        torch.load(folder / f"runs/{store[name]}/weights.ckpt", weights_only=True)["state_dict"]
        for name in "ac"
    )
    torch.testing.assert_close(
        ours["net.0.weight"], (first["net.0.weight"] + second["net.0.weight"]) / 2
    )
    assert list(result.figures()) == ["methods"]
    assert result.title in result._repr_html_()
    (mean,) = (line for line in result.cells() if line[0] == "Mean")
    rows = [row.row() for row in result.rows if row.method == "Mean" and row.task in "ac"]
    seen = statistics.fmean(row["accuracy"] for row in rows)
    assert f"{seen:.4f}" in mean


def test_tasks_as_an_object_and_as_a_file_give_the_same(tasks, tmp_path):
    folder, result = tasks
    path = tmp_path / "tasks.yaml"
    path.write_text(yaml.safe_dump(TASKS))
    fresh = run_tasks(path, tmp_path / "fresh", progress=False)
    assert rows_of(fresh) == rows_of(result)
    for given in (TaskStudy(**TASKS), path):
        done = []
        again = run_tasks(
            given,
            folder,
            progress=False,
            watcher=Watcher(on_done=lambda work, result, stored, done=done: done.append(stored)),
        )
        assert all(done)
        assert rows_of(again) == rows_of(result)
    with pytest.raises(ConfigError, match="two seen tasks"):
        run_tasks({**TASKS, "tasks": TASKS["tasks"][:1]}, folder)


def test_nothing_to_join_is_said(tmp_path):
    with pytest.raises(ConfigError, match=r"^join: there are no folders .* give those"):
        join([], tmp_path / "all")
    assert not (tmp_path / "all").exists()
