"""The kinds of files that the package reads, whole ones of each, and everything that reads them."""

import functools
import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.mutations import Mutate, inside_archive, inside_chunk, inside_header, inside_json
from benchmarks.small_files import (
    images,
    label_lists,
    lightning_checkpoints,
    results_files,
    state_dicts,
    study_files,
    task_files,
)


@dataclass(frozen=True)
class Kind:
    """One kind of file.

    Attributes:
        name: What the table calls it.
        files: Whole ones, by their names.
        inside: The fault that its format's checks do not notice.
        read: Called with the damaged file's path: everything that reads this kind.
        share: How many files of this kind, relative to others.
        beside: Whole files that lie in the same folder.
    """

    name: str
    files: dict[str, bytes]
    inside: Mutate | None
    read: Callable[[Path, random.Random], None]
    share: int
    beside: dict[str, bytes]


def _read_weights(path: Path, draw: random.Random) -> None:
    from lightning_merge.aggregate.averaged_files import averaged_arrays
    from lightning_merge.aggregate.files_to_average import open_files
    from lightning_merge.checkpoint import read_checkpoint
    from lightning_merge.stored_state import open_state

    how = draw.random()
    if how < 0.5:
        read_checkpoint(path)
    elif how < 0.7:
        opened = open_state(path)
        for name in opened.table:
            opened.raw(name).sum()
    else:
        averaged_arrays(open_files([path, path]))


def _read_described(path: Path, draw: random.Random) -> None:
    """A Lightning checkpoint, as `merge` and `export` take it."""
    from lightning_merge.checkpoint import read_checkpoint
    from lightning_merge.commands.export import export
    from lightning_merge.recipe.described_module import module_of

    if draw.random() < 0.7:
        module_of(read_checkpoint(path))
    else:
        export([str(path), "--output", str(path.parent / "exported")])


def _read_results(path: Path, draw: random.Random) -> None:
    from lightning_merge.commands.plot import plot

    figure = draw.choice(("methods", "bars", "gap", "barrier", "magnitude", "pools"))
    plot([figure, str(path), "--output", str(path.parent / "drawn"), "--overwrite"])


def _read_card(path: Path, draw: random.Random) -> None:
    from lightning_merge.commands.export import export

    beside = str(path.parent / "whole.ckpt")
    export([beside, "--result", str(path), "--output", str(path.parent / "exported")])


def _read_study(path: Path, draw: random.Random) -> None:
    from lightning_merge.study.folder import StudyFolder

    folder = StudyFolder(path.parent, path.name, ("title",))
    folder.claim(json.loads(study_files()[path.name]) | {"seeds": [0, 1]}, (), False)


def _read_store(path: Path, draw: random.Random) -> None:
    from lightning_merge.study.store import Store

    (path.parent / "runs" / "key").mkdir(parents=True)
    (path.parent / "runs" / "schema.json").write_text('{"schema": 2}')
    where = "schema.json" if "schema" in path.name else "key/result.json"
    shutil.copyfile(path, path.parent / "runs" / where)
    store = Store(path.parent / "runs")
    store.check_schema()
    if store.damage("key") == "":
        store.result("key")
        store.made_by("key")


def _read_tasks(path: Path, draw: random.Random) -> None:
    from lightning_merge.commands.plot import plot

    # The networks are missing, so that no file can be read to the end.
    plot(["embedding", str(path.parent), "--output", str(path.parent / "drawn")])


def _read_image(path: Path, draw: random.Random) -> None:
    from lightning_merge.data.decode import decode

    decode(str(path), path.name, draw.choice((8, 32)), draw.choice((1, 3)))


def _read_lists(path: Path, draw: random.Random) -> None:
    from lightning_merge.data import CelebADataModule
    from lightning_merge.data.sets.chest_xray import ChestXrayDataModule

    root = path.parent
    if "celeb" in path.name or "eval" in path.name:
        (root / "celeba" / "img_align_celeba").mkdir(parents=True)
        for file in list(root.glob("list_*")):
            file.rename(root / "celeba" / file.name)
        CelebADataModule(root=str(root)).load_splits()
    else:
        (root / "images").mkdir()
        for number in range(8):
            (root / "images" / f"{number:08d}_000.png").touch()
        ChestXrayDataModule(root=str(root)).load_splits()


@functools.cache
def kinds() -> list[Kind]:
    """Every kind of file that is read."""
    states, described = state_dicts(), lightning_checkpoints()
    archives = {name: one for name, one in states.items() if one.startswith(b"PK")}
    pieces = {name: one for name, one in states.items() if name.endswith(".safetensors")}
    legacy = {name: one for name, one in states.items() if name.startswith("legacy")}
    index = {name: one for name, one in states.items() if name.endswith(".json")}
    shards = {name: one for name, one in pieces.items() if "-of-" in name}
    whole = {"whole.ckpt": next(iter(described.values()))}
    pictures: dict[str, dict[str, bytes]] = {}
    for name, content in images().items():
        pictures.setdefault(name.rpartition(".")[2], {})[name] = content
    weights, tasks = _read_weights, task_files()
    return [
        Kind("state dict (zip)", archives, inside_archive, weights, 14, {}),
        Kind("state dict (legacy)", legacy, None, weights, 8, {}),
        Kind("safetensors", pieces, inside_header, weights, 14, {}),
        Kind("shards' index", index, inside_json, weights, 6, shards),
        Kind("Lightning checkpoint", described, inside_archive, _read_described, 12, {}),
        *(
            Kind(kind.upper(), made, inside_chunk if kind == "png" else None, _read_image, 8, {})
            for kind, made in pictures.items()
        ),
        Kind("store's results", results_files("store"), inside_json, _read_store, 6, {}),
        Kind("CSV lists", label_lists(), None, _read_lists, 4, label_lists()),
        Kind("study.json", study_files(), inside_json, _read_study, 4, {}),
        Kind("tasks.json, its results.json", tasks, inside_json, _read_tasks, 2, tasks),
        Kind("results.json (plot)", results_files("plot"), inside_json, _read_results, 1, {}),
        Kind("result.json (export)", results_files("merge"), inside_json, _read_card, 1, whole),
    ]
