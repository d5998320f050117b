"""An output folder: one process at a time, no leftovers, links and modes as they were."""

import os
import subprocess
import sys

import pytest
import torch
from matplotlib.figure import Figure
from strangers import Stranger

from lightning_merge.checkpoint import write_checkpoint
from lightning_merge.errors import CheckpointError, ConfigError, OutputExistsError
from lightning_merge.files import claim_folder, sweep, write_json, write_text, write_whole
from lightning_merge.folder_lock import lock_folder
from lightning_merge.model_folder import export
from lightning_merge.report.page import Page
from lightning_merge.report.publish import WRITTEN, publish
from lightning_merge.study.folder import StudyFolder
from lightning_merge.study.store import Store


def dead_process():
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_lock_is_for_one_and_leaves_nothing(tmp_path):
    folder = tmp_path / "new" / "out"
    with lock_folder(folder):
        with pytest.raises(OutputExistsError, match=f"in use by process {os.getpid()} on "):
            lock_folder(folder).__enter__()
        # The one that was refused has not taken it away.
        with pytest.raises(OutputExistsError), lock_folder(folder):
            pass
    assert not folder.exists()
    with lock_folder(folder):
        (folder / "result").touch()
    assert [path.name for path in folder.iterdir()] == ["result"]


def test_a_lock_whose_process_is_dead_is_free(tmp_path):
    (tmp_path / ".lock").write_text(f'[{dead_process()}, "here", "then", "study"]')
    with lock_folder(tmp_path):
        pass
    (tmp_path / ".lock").write_text("no JSON")
    with lock_folder(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_copy_of_the_process_does_not_keep_the_lock(tmp_path):
    code = (
        "import os, sys, time\n"
        "from lightning_merge.folder_lock import lock_folder\n"
        "lock = lock_folder(sys.argv[1])\n"
        "lock.__enter__()\n"
        "child = os.fork()\n"
        "if child == 0:\n    os.close(1); time.sleep(60); os._exit(0)\n"
        "print(child, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    words = [sys.executable, "-c", code, str(tmp_path)]
    child = int(subprocess.run(words, stdout=subprocess.PIPE, text=True).stdout)
    try:
        os.kill(child, 0)
        with lock_folder(tmp_path):
            pass
    finally:
        os.kill(child, 9)


def test_further_ranks_share_the_first_ones_folder(tmp_path, monkeypatch):
    with lock_folder(tmp_path):
        monkeypatch.setenv("LOCAL_RANK", "1")
        with lock_folder(tmp_path):
            assert (tmp_path / ".lock").is_file()


def test_what_killed_processes_left_is_swept_and_nothing_else(tmp_path):
    dead = dead_process()
    kept = [f".{os.getppid()}-0.partial.ckpt", ".notes.partial", "a.partial", ".hidden", "b.ckpt"]
    for name in kept:
        (tmp_path / name).touch()
    swept = [f".{dead}-0.partial", f".{dead}-17.partial.ckpt", f".{10**30}-1.partial.json"]
    for name in swept:
        (tmp_path / name).touch()
    (tmp_path / f".{dead}-x.partial").mkdir()
    (tmp_path / f".{dead}-x.partial" / "model.safetensors").touch()
    sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)


def test_a_study_sweeps_its_store_and_its_merges(tmp_path):
    name = f".{dead_process()}-0.partial.ckpt"
    for place in ("", "runs", "runs/key", "merges", "merges/seed0"):
        (tmp_path / place).mkdir(exist_ok=True)
        (tmp_path / place / name).touch()
    with StudyFolder(tmp_path, "study.json", ()).entered():
        assert not list(tmp_path.rglob("*.partial*"))
    (tmp_path / name).touch()
    claim_folder(tmp_path, (), overwrite=False)
    assert not (tmp_path / name).exists()


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", "null", "\udcff", "[" * 99999, '{"trainer": 3}'),
        '{"data": 1, "trainer": {}, "recipes": [{"aggregate": "Average"}]}',
        '{"data": 1, "trainer": {}, "recipes": ["Mean"]}',
        '{"data": 1, "trainer": {}, "recipes": [], "seeds": ["first"]}',
        '{"data": 1, "trainer": {}, "recipes": [], "ingredients": {}}',
    ],
)
def test_a_damaged_note_of_the_study_is_named(text, tmp_path):
    (tmp_path / "study.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    folder = StudyFolder(tmp_path, "study.json", ())
    config = {"data": 1, "trainer": {}, "recipes": []}
    with pytest.raises(OutputExistsError, match="--overwrite"):
        folder.united(config)
    folder.claim(folder.united(config, overwrite=True), (), overwrite=True)
    assert folder.united(config) == config
    folder.claim(config, (), overwrite=False)


@pytest.mark.parametrize("schema", ['{"schema": Infinity}', '{"schema": []}', "[2]", "2"])
def test_a_damaged_schema_is_named(schema, tmp_path):
    (tmp_path / "key").mkdir()
    (tmp_path / "schema.json").write_text(schema)
    with pytest.raises(OutputExistsError, match=r"schema\.json cannot be read"):
        Store(tmp_path).check_schema()


def test_a_store_behind_a_link_and_with_modes_of_its_own(tmp_path):
    real = tmp_path / "real"
    store = Store(real)
    store.put("key", {"row": 1}, {"state_dict": {}})
    store.weights("key").chmod(0o640)
    (tmp_path / "link").symlink_to(real)
    linked = Store(tmp_path / "link")
    assert "key" in linked
    linked.put("key", {"row": 2}, {"state_dict": {}})
    assert store.result("key") == {"row": 2}
    assert store.weights("key").stat().st_mode & 0o777 == 0o640
    long = tmp_path / ("m" * 240 + ".ckpt")
    linked.export("key", long)
    assert long.read_bytes() == store.weights("key").read_bytes()


def test_every_new_folder_is_on_the_disk(tmp_path, monkeypatch):
    synced = []
    opened = os.open
    monkeypatch.setattr(os, "open", lambda path, *how: (synced.append(path), opened(path, *how))[1])
    write_text(tmp_path / "a" / "b" / "c", "text")
    places = {os.path.relpath(path, tmp_path) for path in map(str, synced)}
    assert {".", "a", "a/b"} <= places


def test_names_that_are_not_unicode_are_written(tmp_path):
    path = write_text(tmp_path / "a", "name \udcff")
    assert path.read_text() == "name \\udcff"


def test_an_export_that_fails_leaves_the_folder_as_it_was(tmp_path):
    state = Stranger().state_dict()
    path = write_checkpoint(tmp_path / "a.ckpt", {"state_dict": state})
    for result in ({"ingredients": 3}, {"config": "x"}, {"measurement": [1]}):
        with pytest.raises(ConfigError, match="--result"):
            export(path, tmp_path / "out", result)
    numbers = {"state_dict": {"w": state["net.0.weight"].to(torch.complex128)}}
    other = write_checkpoint(tmp_path / "b.ckpt", numbers)
    with pytest.raises(CheckpointError, match="safetensors cannot hold"):
        export(other, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    write_json(tmp_path / "result.json", {})
    left = tmp_path / "out" / f".{dead_process()}-0.partial.safetensors"
    write_whole(left, lambda partial: partial.touch())
    export(path, tmp_path / "out")
    assert sorted(one.name for one in (tmp_path / "out").iterdir()) == [
        "README.md",
        "model.safetensors",
    ]


def published(folder, names):
    page = Page("Report", {"command": "study", "versions": {}, "device": "cpu"})
    publish(folder, [], {}, "# Report\n", page, {name: Figure() for name in names}, {})


def test_figures_of_earlier_results_go_and_pictures_of_an_edited_report_stay(tmp_path):
    folder = tmp_path / "out"
    published(folder, ["bars", "curve"])
    report = folder / "report.md"
    report.write_text(report.read_text() + "![shot](shot.png)\n![../own](../own.png)\n")
    for own in (folder / "shot.png", tmp_path / "own.png", tmp_path / "out.png"):
        own.write_text("mine")
    published(folder, ["curve"])
    assert sorted(one.name for one in folder.glob("*.[ps][nv]g")) == [
        "curve.png",
        "curve.svg",
        "shot.png",
    ]
    for names in (["../own", "", ".", 3, "shot/"], "own", None, 7):
        write_json(folder / "results.json", {"figures": names})
        published(folder, [])
    (folder / "results.json").write_text("{")
    published(folder, [])
    assert (folder / "shot.png").exists()
    assert (tmp_path / "own.png").exists()
    assert (tmp_path / "out.png").exists()


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_a_figure_of_the_users_own_is_not_drawn_over(tmp_path, ending):
    own = tmp_path / f"cost.{ending}"
    own.write_text("mine")
    with pytest.raises(OutputExistsError, match=rf"holds cost\.{ending}.*--overwrite"):
        claim_folder(tmp_path, WRITTEN, overwrite=False)
    assert own.read_text() == "mine"
    assert claim_folder(tmp_path, WRITTEN, overwrite=True) == tmp_path
