"""What a store holds is checked when it is used: damage is named, and the work done again."""

import errno
import json
import shutil
from pathlib import Path

import pytest
from fresh_process import kept, same

from lightning_merge import Study
from lightning_merge.checkpoint import write_checkpoint
from lightning_merge.cli import main
from lightning_merge.errors import OutputExistsError
from lightning_merge.study.plan import plan
from lightning_merge.study.runner import run
from lightning_merge.study.store import SCHEMA, Store

STUDY = {
    "data": {"class_path": "tiny_contexts.Points"},
    "model": {"class_path": "tiny_contexts.Learner", "init_args": {"norm": True}},
    "training": {"max_epochs": 1},
    "recipes": [{"name": "Mean", "aggregate": "Average", "recalibrate": "batchnorm"}],
}
WORKS = plan(Study(**STUDY))
INGREDIENT, MERGE = WORKS[1], WORKS[2]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with the work of a small study, all of it done."""
    folder = tmp_path_factory.mktemp("finished") / "runs"
    run(WORKS, Store(folder), progress=False)
    return folder


@pytest.fixture
def folder(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "runs")


def flip(path, where):
    content = bytearray(path.read_bytes())
    content[int(where * len(content))] ^= 1
    path.write_bytes(content)


def change(path, edit):
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content, indent=2))


DAMAGE = {
    "a bit of the weights": ("weights.ckpt", lambda path: flip(path, 0.5), "was changed"),
    "a bit of the archive's end": ("weights.ckpt", lambda path: flip(path, 0.999), "was changed"),
    "half of the weights": (
        "weights.ckpt",
        lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
        "was changed",
    ),
    "no byte of the weights": ("weights.ckpt", lambda path: path.write_bytes(b""), "was changed"),
    "the weights": ("weights.ckpt", lambda path: path.unlink(), "is missing"),
    "where the weights are": (
        "weights.ckpt",
        lambda path: (path.unlink(), path.symlink_to("nowhere")),
        "is missing",
    ),
    "all of the result": ("result.json", lambda path: path.write_text("{}"), "cannot be read"),
    "the result's object": ("result.json", lambda path: path.write_text("null"), "cannot be read"),
    "the result's end": (
        "result.json",
        lambda path: path.write_text(path.read_text()[:-40]),
        "cannot be read",
    ),
    "the result's text": ("result.json", lambda path: path.write_bytes(b"\xff\xfe{"), "cannot be"),
    "the result's depth": ("result.json", lambda path: path.write_text("[" * 99999), "cannot be"),
    "a number of the result": (
        "result.json",
        lambda path: change(path, lambda held: held["result"]["row"].update(accuracy=0.99)),
        "was changed",
    ),
    "the versions": (
        "result.json",
        lambda path: change(path, lambda held: held["made_by"]["versions"].update(torch="1.0")),
        "was changed",
    ),
    "which files there are": (
        "result.json",
        lambda path: change(path, lambda held: held["files"].clear()),
        "was changed",
    ),
    "its schema": (
        "result.json",
        # As the first format had it: the result itself, of which nothing has a digest.
        lambda path: path.write_text(json.dumps(json.loads(path.read_text())["result"])),
        "cannot be read",
    ),
    "that the weights are a file": (
        "weights.ckpt",
        lambda path: (path.unlink(), path.mkdir(), (path / "data.pkl").touch()),
        "is missing",
    ),
    "that the result is a file": (
        "result.json",
        lambda path: (path.unlink(), (path / "more").mkdir(parents=True)),
        "was not finished",
    ),
    "that the piece is a folder": (
        "",
        lambda path: (shutil.rmtree(path), path.write_text("")),
        "is a file",
    ),
    "that it was finished": ("result.json", lambda path: path.unlink(), "was not finished"),
}


@pytest.mark.parametrize("damaged", [INGREDIENT, MERGE], ids=["ingredient", "merge"])
@pytest.mark.parametrize("what", DAMAGE)
def test_what_was_damaged_is_named_and_done_again(what, damaged, folder, finished):
    name, harm, says = DAMAGE[what]
    harm(folder / damaged.key / name)
    assert damaged.key not in Store(folder)
    stored = {}
    with pytest.warns(UserWarning, match=says) as warned:
        run(
            WORKS,
            Store(folder),
            lambda work, _, before: stored.update({work.key: before}),
            progress=False,
        )
    (text,) = [str(one.message) for one in warned if "done again" in str(one.message)]
    assert text.startswith(f"{folder / damaged.key}: ")
    assert text.endswith(f"seed 0, {damaged.name} is done again")
    assert "\n" not in text
    assert stored == {work.key: work is not damaged for work in WORKS}
    for work in WORKS:
        assert Store(folder).damage(work.key) == ""
        found, expected = (kept(Store(one), work.key) for one in (folder, finished))
        assert all(map(same, found, expected))


def test_a_piece_that_may_not_be_read_is_not_taken_for_a_damaged_one(folder, monkeypatch):
    def denied(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr("lightning_merge.study.store.read_json", denied)
    with pytest.raises(PermissionError, match=r"result\.json"):
        Store(folder).damage(MERGE.key)


def test_a_folder_in_the_place_of_an_ended_trainings_state_goes(tmp_path):
    store = Store(tmp_path)
    (store.training("key") / "more").mkdir(parents=True)
    store.put("key", {"row": 1}, {"state_dict": {}})
    assert not store.training("key").exists()


def test_what_another_process_is_writing_may_vanish(folder, monkeypatch):
    vanished = folder / MERGE.key / ".1-m0-0.partial.ckpt"
    listed = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda path: [*listed(path), vanished])
    assert Store(folder).damage(MERGE.key) == ""


def test_what_is_whole_is_done_once_and_read_without_a_word(folder, recwarn):
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    run(WORKS, Store(folder), lambda *done: None if done[2] else pytest.fail("again"), False)
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    assert not [one for one in recwarn if "again" in str(one.message)]


def test_damage_is_noticed_after_a_piece_was_found_whole(folder):
    store = Store(folder)
    assert MERGE.key in store
    flip(store.weights(MERGE.key), 0.5)
    assert store.damage(MERGE.key) == "weights.ckpt was changed"


def test_pieces_that_changed_places_are_done_again(folder, finished):
    one, other = (folder / work.key for work in (INGREDIENT, MERGE))
    one.rename(folder / "kept")
    other.rename(one)
    (folder / "kept").rename(other)
    says = "is that of another piece"
    assert all(Store(folder).damage(work.key).endswith(says) for work in (INGREDIENT, MERGE))
    with pytest.warns(UserWarning, match=says):
        run(WORKS, Store(folder), progress=False)
    for work in WORKS:
        found, expected = (kept(Store(place), work.key) for place in (folder, finished))
        assert all(map(same, found, expected))


def test_a_piece_that_no_longer_has_weights_leaves_none(tmp_path):
    store = Store(tmp_path)
    store.put("key", {"row": 1}, {"state_dict": {}})
    assert store.weights("key").is_file()
    store.put("key", {"row": 2})
    assert not store.weights("key").exists()
    assert store.result("key") == {"row": 2}
    assert "key" in store


def test_results_are_held_as_they_will_be_read(tmp_path):
    store = Store(tmp_path)
    store.put("key", {"loss": float("nan"), "shape": (2, 3), 4: "four"})
    assert "key" in store
    assert store.result("key") == {"loss": None, "shape": [2, 3], "4": "four"}


def test_a_first_training_that_was_stopped_goes_on(tmp_path):
    store = Store(tmp_path)
    write_checkpoint(store.training(INGREDIENT.key), {"state_dict": {}})
    store.check_schema()
    (tmp_path / "another").mkdir()
    (tmp_path / "another/result.json").write_text("{}")
    with pytest.raises(OutputExistsError, match="format 1"):
        store.check_schema()


def test_a_schema_that_got_lost_says_nothing_against_the_pieces(folder):
    (folder / "schema.json").unlink()
    # Whatever else is damaged there is done again.
    flip(folder / INGREDIENT.key / "result.json", 0)
    store = Store(folder)
    store.check_schema()
    assert store.damage(MERGE.key) == ""
    store.put("another", {"row": 1})
    assert json.loads((folder / "schema.json").read_text()) == {"schema": SCHEMA}


@pytest.mark.parametrize("schema", ["first", "older", "later", "damaged"])
@pytest.mark.parametrize("command", ["study", "tasks"])
def test_another_format_is_refused_in_one_line(schema, command, folder, tmp_path, capsys):
    file = folder / "schema.json"
    says = "the format "
    if schema == "first":
        file.unlink()
        for path in folder.glob("*/result.json"):
            path.write_text(json.dumps(json.loads(path.read_text())["result"]))
    elif schema == "damaged":
        file.write_text("{")
        says = "schema.json cannot be read"
    else:
        file.write_text(json.dumps({"schema": SCHEMA + (1 if schema == "later" else -1)}))
    words = [command, "--output", str(tmp_path)]
    if command == "study":
        for option in ("data", "model", "training", "recipes"):
            words += [f"--{option}", json.dumps(STUDY[option])]
    else:
        task = {"data": {"class_path": "tiny_tasks.Points", "init_args": {"name": "a"}}}
        words += ["--model", "tiny_tasks.Classifier", "--pretraining", json.dumps(task)]
        words += ["--tasks", json.dumps([{**task, "name": name} for name in "ab"])]
        words += ["--recipes", json.dumps(STUDY["recipes"])]
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert says in error
    assert "choose another --output" in error
    assert {path.name for path in tmp_path.iterdir()} == {"runs"}
