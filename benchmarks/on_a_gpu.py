"""What is worth a GPU's minutes, the shortest first: `python -m benchmarks.on_a_gpu --data DIR`.

The tests marked `gpu`; the benchmarks with a goal on a GPU; then as much of NP Merge's Tables I
and II (ResNet20 on CIFAR-100), and of two vision transformers brought together, as the time
allows. Small networks leave a part of a GPU idle: a study is done by several processes that share
its folder, and two studies at once while they are few; on an H200 seven processes slowed each
other so much that no study ended. A study stores each piece as it ends, and each epoch of a
training: the same command goes on where the time was over. What is printed is kept, too.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

CONFIGS = Path("configs/studies")
# A study that is interrupted writes its last epoch and gives its claims back.
GRACE = 20
THREADS = "2"
AT_ONCE = 4


@dataclass(frozen=True)
class Part:
    """A study of the tables.

    Attributes:
        name: Of its folder.
        configs: Names of its configurations, the later ones over the earlier ones.
        rounds: Words of the commands, one after the other; a later one adds to what there is.
        processes: How many work on it at once.
    """

    name: str
    configs: tuple[str, ...]
    rounds: tuple[str, ...] = ("--seeds [0]",)
    processes: int = 2

    def commands(self, data: Path, output: Path, device: str) -> list[list[str]]:
        """The arguments of `python -m` for each round."""
        common = ["lightning_merge", "study"]
        for name in self.configs:
            common += ["--config", str(CONFIGS / f"{name}.yaml")]
        common += ["--output", str(output / self.name)]
        common += ["--data.init_args.root", str(data), "--data.init_args.on_device", "true"]
        common += ["--trainer.accelerator", "gpu" if device == "cuda" else "cpu"]
        return [common + words.split() for words in self.rounds]


TABLE = "np_merge_table1_resnet20"
# What is wanted most comes first; a later part may add to the folder of an earlier one.
PARTS = (
    Part("table1", (TABLE, "np_merge_one_cycle")),
    Part(
        "table2_x8",
        (TABLE, "np_merge_table2_80-20", "np_merge_one_cycle", "np_merge_three_epochs"),
        ("--seeds [0] --trainer.precision bf16-mixed --trainer.benchmark true",),
    ),
    Part("vit", ("transformers_small", "transformers_cifar100"), ("--seeds [0]", "--seeds [1]")),
    Part("table1", (TABLE, "np_merge_one_cycle"), ("--seeds [1,2]",)),
)


@dataclass
class Running:
    """A part in its present round.

    Attributes:
        left: Commands of later rounds.
        processes: Those that work on it now.
    """

    part: Part
    left: list[list[str]]
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)


def main(arguments: list[str] | None = None) -> int:
    """Runs everything that there is time for.

    Returns:
        1 if tests or benchmarks or a study failed, else 0: what the time did not suffice for is no
        failure.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.on_a_gpu", description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("data"), help="has cifar-100-python")
    parser.add_argument("--output", type=Path, default=Path("outputs/gpu"))
    parser.add_argument("--minutes", type=float, default=12)
    parser.add_argument(
        "--only", nargs="+", choices=("tests", "benchmarks", "studies"), help="not all of it"
    )
    parser.add_argument("--more", default="", help="further words of the studies' commands")
    parser.add_argument(
        "--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a rehearsal"
    )
    given = parser.parse_args(arguments)
    given.output.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * given.minutes
    table = str(given.output / "benchmarks.md")
    bench = ["benchmarks", "np_cost", "training", "--device", given.device, "--write", table]
    if given.device == "cpu":
        bench.remove("np_cost")
    steps = {"tests": ["pytest", "-m", "gpu", "tests/gpu", "--durations=5"], "benchmarks": bench}
    wanted = given.only or [*steps, "studies"]
    failed = [
        name
        for name, words in steps.items()
        if name in wanted and _do(name, words, given.output, end)
    ]
    if "studies" in wanted:
        failed += _studies(given.data, given.output, given.device, given.more.split(), end)
    print(f"in {given.output}; the same command goes on with what the time did not suffice for")
    return int(bool(failed))


def _do(name: str, words: list[str], folder: Path, end: float) -> bool:
    """Runs a command until it ends, or the time does, and keeps what it prints.

    Returns:
        Whether it failed, or the time did not suffice.
    """
    left = end - time.monotonic() - GRACE
    if left <= 0:
        print(f"{name}: no time left", flush=True)
        return True
    start = time.monotonic()
    process = _started(name, words, folder, os.environ)
    status: int | str
    try:
        status = process.wait(left)
    except subprocess.TimeoutExpired:
        _stop([process])
        status = "time is over"
    print(f"{name}: {status}, {time.monotonic() - start:.0f} s", flush=True)
    return status != 0


def _studies(data: Path, output: Path, device: str, more: list[str], end: float) -> list[str]:
    """Runs the parts, as many as may at once, until all have ended, or the time has.

    Returns:
        Names of those of which a process failed.
    """
    waiting = [Running(part, part.commands(data, output, device)) for part in PARTS]
    running: list[Running] = []
    failed, start = [], time.monotonic()
    threads = {**os.environ, "OMP_NUM_THREADS": THREADS, "MKL_NUM_THREADS": THREADS}
    while (waiting or running) and time.monotonic() < end - GRACE:
        while waiting and sum(one.part.processes for one in running) < AT_ONCE:
            running.append(waiting.pop(0))
        for one in list(running):
            name = one.part.name
            if any(process.poll() is None for process in one.processes):
                continue
            if any(process.returncode for process in one.processes):
                print(f"{name}: failed, see {output}/{name}-0.txt", flush=True)
                failed.append(name)
                running.remove(one)
                continue
            if one.processes:
                print(f"{name}: a round after {time.monotonic() - start:.0f} s", flush=True)
            if not one.left:
                running.remove(one)
                continue
            words = one.left.pop(0) + more
            one.processes = [
                _started(f"{name}-{index}", words, output, threads)
                for index in range(one.part.processes)
            ]
        time.sleep(0.5)
    _stop([process for one in running for process in one.processes])
    for one in running:
        print(f"{one.part.name}: time is over", flush=True)
    return failed


def _started(
    name: str, words: list[str], folder: Path, environment: "os._Environ[str] | dict[str, str]"
) -> "subprocess.Popen[bytes]":
    print(f"{name}: {' '.join(words)}", flush=True)
    with (folder / f"{name}.txt").open("a") as log:
        command = [sys.executable, "-m", *words]
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)


def _stop(processes: "list[subprocess.Popen[bytes]]") -> None:
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
    end = time.monotonic() + GRACE
    for process in processes:
        try:
            process.wait(max(0.1, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


if __name__ == "__main__":
    raise SystemExit(main())
