"""Feeds damaged files to every reader: a result or a one-line MergeError, or it is a finding.

`python -m benchmarks.mutated_files --count N --seed S --write docs/results/robustness.md`. The
readers run in a process of their own with limits of memory and time; file K of a seed is always the
same one (`--only K` runs it alone and shows what it raised).
"""

import argparse
import collections
import contextlib
import io
import json
import mmap
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch

from benchmarks.findings import Tally, report, write_report
from benchmarks.one_damaged import one_file, outcome_of
from benchmarks.readers import kinds

CPU_SECONDS, WALL_SECONDS, MEBIBYTES = 4, 90, 200
"""What one file may cost; the memory is what it adds to that of the process."""

_BATCH = 2000


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
        write_report(given.write, given.seed, text)


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
                        outcome = outcome_of(
                            lambda n=number: kind.read(Path(room) / name, random.Random(n))  # type: ignore[misc]  # noqa: B023
                        )
                    if outcome.startswith("finding") and "FileExists" not in outcome:
                        print(f"whole {name}: {outcome}", file=sys.stderr)


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


if __name__ == "__main__":
    main()
