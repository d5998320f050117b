"""Feeds damaged files to every reader: a result or a one-line MergeError, or it is a finding.

`python -m benchmarks.mutated_files --count N --seed S --write docs/results/robustness.md`. The
readers run in a process of their own with limits of memory and time; file K of a seed is always the
same one (`--only K` runs it alone and shows what it raised).
"""

import argparse
import collections
import contextlib
import functools
import io
import json
import mmap
import os
import platform
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.mutations import (
    Mutate,
    inside_archive,
    inside_chunk,
    inside_header,
    inside_json,
    mutated,
)
from benchmarks.small_files import (
    images,
    label_lists,
    lightning_checkpoints,
    results_files,
    state_dicts,
    study_files,
    task_files,
)
from lightning_merge.errors import MergeError

CPU_SECONDS, WALL_SECONDS, MEBIBYTES = 4, 90, 200
"""What one file may cost; the memory is what it adds to that of the process."""

_BATCH = 2000


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


def one_file(seed: int, number: int, folder: Path) -> tuple[str, str, str]:
    """Makes file `number` of a seed and reads it.

    Returns:
        Its kind, its fault, and the outcome: `read`, `refused`, or the finding.
    """
    draw = random.Random(f"{seed}/{number}")
    every = kinds()
    kind = draw.choices(every, [one.share for one in every])[0]
    name = draw.choice(list(kind.files))
    try:
        content, fault = mutated(kind.files[name], draw, list(kind.files.values()), kind.inside)
    except Exception as error:
        return kind.name, "none", f"finding: the mutation failed: {error!r}"
    folder.mkdir()
    try:
        for other, whole in kind.beside.items():
            (folder / other).write_bytes(whole)
        (folder / name).write_bytes(content)
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            outcome = _outcome(lambda: kind.read(folder / name, draw))
        return kind.name, fault, outcome
    finally:
        shutil.rmtree(folder)


def _outcome(read: Callable[[], None]) -> str:
    try:
        read()
    except MergeError as error:
        text = str(error)
        return "refused" if text.isprintable() and text else f"finding: printed {text[:80]!r}"
    except SystemExit as error:
        return f"finding: SystemExit({error.code})"
    except BaseException as error:
        frames = traceback.extract_tb(error.__traceback__)
        own = [one for one in frames if "/lightning_merge/" in one.filename]
        last = (own or frames)[-1]
        place = f"{Path(last.filename).name}:{last.name}"
        return f"finding: {type(error).__name__} from {place}: {str(error)[:120]}"
    return "read"


def _batch(seed: int, numbers: range, folder: Path, at: mmap.mmap, report: int) -> None:
    """In a process of its own: reads files and writes a line for each kind, fault and outcome."""
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    limit = 3 << 30
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    counts: collections.Counter[tuple[str, str, str]] = collections.Counter()
    done = numbers.start
    with os.fdopen(report, "w") as out:
        for number in numbers:
            at[:8] = number.to_bytes(8, "little")
            signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
            signal.setitimer(signal.ITIMER_REAL, WALL_SECONDS)
            kind, fault, outcome = one_file(seed, number, folder / str(number))
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.setitimer(signal.ITIMER_REAL, 0)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            grown = (peak - base) >> 10
            done = number + 1
            if outcome.startswith("finding"):
                print(json.dumps([kind, fault, outcome, number]), file=out, flush=True)
                outcome = "finding"
            if grown > MEBIBYTES:
                text = f"finding: {grown} MiB of memory"
                print(json.dumps([kind, fault, text, number]), file=out, flush=True)
            counts[kind, fault, outcome] += 1
            # A process that has grown cannot tell what the next file adds.
            if grown > MEBIBYTES // 2:
                break
        print(json.dumps({"done": done, "counts": [[*k, n] for k, n in counts.items()]}), file=out)


class Tally:
    """What was found so far.

    Attributes:
        counts: Files by kind, fault and outcome.
        findings: By what they say: kind, fault, first number, how many.
    """

    def __init__(self) -> None:
        self.counts: collections.Counter[tuple[str, str, str]] = collections.Counter()
        self.findings: dict[str, list[Any]] = {}

    def add_finding(self, kind: str, fault: str, text: str, number: int) -> None:
        """One more."""
        known = self.findings.setdefault(
            f"{kind}: {text.split(': ')[1]}", [kind, fault, text, number, 0]
        )
        known[4] += 1


def search(seed: int, count: int, minutes: float, tally: Tally) -> int:
    """Reads files until there are `count`, or the time is over; returns how many."""
    at = mmap.mmap(-1, 8)
    end = time.monotonic() + 60 * minutes
    room = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    next_one = 0
    kinds()
    while next_one < count and time.monotonic() < end:
        folder = Path(tempfile.mkdtemp(dir=room, prefix="mutated-"))
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            # What C libraries say of damaged files is no finding.
            quiet = os.open(os.devnull, os.O_WRONLY)
            os.dup2(quiet, 2)
            numbers = range(next_one, min(next_one + _BATCH, count))
            try:
                _batch(seed, numbers, folder, at, writing)
            finally:
                os._exit(0)
        os.close(writing)
        done = None
        with os.fdopen(reading) as lines:
            for line in lines:
                said = json.loads(line)
                if isinstance(said, list):
                    tally.add_finding(*said)
                else:
                    done = said["done"]
                    for kind, fault, outcome, number in said["counts"]:
                        tally.counts[kind, fault, outcome] += number
        _, status = os.waitpid(child, 0)
        shutil.rmtree(folder, ignore_errors=True)
        if done is None:
            number = int.from_bytes(at[:8], "little")
            why = signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else "exit"
            tally.add_finding("process", "", f"finding: ended by {why}", number)
            # The counts of the batch are lost: its whole files are counted as one kind.
            tally.counts["lost with a process", "", "read"] += number - next_one
            tally.counts["lost with a process", "", "finding"] += 1
            done = number + 1
        next_one = done
        print(f"{next_one:,} files, {len(tally.findings)} findings", flush=True)
    return next_one


def report(seed: int, done: int, seconds: float, tally: Tally, words: list[str]) -> str:
    """The page of results."""
    outcomes = ("read", "refused", "finding")

    def table(title: str, index: int) -> list[str]:
        rows = [f"| {title} | files | read | refused in a line | findings |"]
        rows.append("| --- | ---: | ---: | ---: | ---: |")
        for name in dict.fromkeys(sorted(key[index] for key in tally.counts)):
            by = [
                sum(n for k, n in tally.counts.items() if k[index] == name and k[2] == outcome)
                for outcome in outcomes
            ]
            rows.append(f"| {name} | {sum(by):,} | " + " | ".join(f"{n:,}" for n in by) + " |")
        return rows

    found = [
        f"* {kind}, {fault or 'any fault'}: `{text[9:]}` ({times} times, first file {number})"
        for kind, fault, text, number, times in tally.findings.values()
    ]
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    return "\n".join(
        [
            f"{done:,} files of seed {seed} in {seconds / 60:.0f} minutes ({versions}):",
            "",
            f"    python -m benchmarks.mutated_files {' '.join(words)}",
            "",
            *table("kind of file", 0),
            "",
            "Faults (what each does: `benchmarks/mutations.py`):",
            "",
            *table("fault", 1),
            "",
            "Findings:",
            "",
            *(found or ["None."]),
            "",
        ]
    )


BEGIN, END = "<!-- figures: written by benchmarks.mutated_files -->", "<!-- end of figures -->"


def write_report(path: Path, text: str) -> None:
    """Puts the figures into the page, between its marks; the words around them stay."""
    page = path.read_text() if path.is_file() else f"# Damaged files\n\n{BEGIN}\n{END}\n"
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    path.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{after}")


def main(words: list[str] | None = None) -> None:
    """Runs the search."""
    words = sys.argv[1:] if words is None else words
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mutated_files", description=__doc__)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=1e9, help="stop after so many")
    parser.add_argument("--write", type=Path, help="a Markdown file for the figures")
    parser.add_argument("--only", type=int, help="the number of one file")
    given = parser.parse_args(words)
    torch.set_num_threads(1)
    # Parsers and readers are imported before the first process is made.
    warm_up()
    if given.only is not None:
        with tempfile.TemporaryDirectory() as room:
            print(one_file(given.seed, given.only, Path(room) / "one"))
        return
    tally, start = Tally(), time.monotonic()
    done = search(given.seed, given.count, given.minutes, tally)
    text = report(given.seed, done, time.monotonic() - start, tally, list(words))
    print(text)
    if given.write:
        write_report(given.write, text)


def warm_up() -> None:
    """Imports what reading imports, so that files are not charged for it."""
    for kind in kinds():
        for name, content in kind.files.items():
            with tempfile.TemporaryDirectory() as room:
                for other, whole in {**kind.beside, name: content}.items():
                    (Path(room) / other).write_bytes(whole)
                for number in range(4 if kind.share < 8 else 1):
                    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
                        warnings.simplefilter("ignore")
                        outcome = _outcome(
                            lambda n=number: kind.read(Path(room) / name, random.Random(n))  # type: ignore[misc]  # noqa: B023
                        )
                    if outcome.startswith("finding") and "FileExists" not in outcome:
                        print(f"whole {name}: {outcome}", file=sys.stderr)


if __name__ == "__main__":
    main()
