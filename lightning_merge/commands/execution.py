"""Where and whether the pieces of a study are done: options of `study` and `tasks`."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from lightning_merge.commands import options
from lightning_merge.durations import duration
from lightning_merge.study.estimate import TRAINED, Estimate
from lightning_merge.study.executor import Executor, executor_of


@dataclass(frozen=True)
class Given:
    """What a command line of a study says.

    Attributes:
        config: The study's options.
        folder: Where its results go.
        overwrite: Whether another study's results may be overwritten.
        executor: Does the pieces of work.
        dry_run: Whether to print only what would be done.
    """

    config: dict[str, Any]
    folder: str
    overwrite: bool
    executor: Executor
    dry_run: bool


def add_execution(to: ArgumentParser) -> None:
    """Adds `--executor`, `--executor_options` and `--dry_run`."""
    to.add_argument(
        "--executor",
        type=str,
        default="in_process",
        help="what does the pieces of work: in_process, submitit (SLURM, or local processes), "
        "ray (a cluster, or the GPUs of one machine)",
    )
    to.add_argument(
        "--executor_options",
        type=dict[str, Any],
        default={},
        help="the executor's, for example '{gpus: 0.5}' of ray, "
        "'{slurm_partition: gpu, gpus_per_node: 1}' of submitit",
    )
    to.add_argument(
        "--dry_run",
        action="store_true",
        help="only print how much there is to do, about how long it will take, and the disk that "
        "it needs, from a short probe of each kind of work",
    )


def parse(of: ArgumentParser, words: list[str]) -> Given:
    """Parses a study's command line."""
    config, folder, overwrite = options.of_study(of, words)
    executor = executor_of(config.pop("executor"), config.pop("executor_options"))
    return Given(config, folder, overwrite, executor, config.pop("dry_run"))


def print_estimate(title: str, found: Estimate, folder: str) -> None:
    """Prints what is left of a study."""
    trained = [count for kind, count in found.counts.items() if kind in TRAINED]
    merged = [count for kind, count in found.counts.items() if "merge" in kind]
    rest = [c for kind, c in found.counts.items() if kind not in TRAINED and "merge" not in kind]
    options.console.print(f"[bold]{title}[/bold]")
    for what, counts in (("trainings", trained), ("merges", merged), ("others", rest)):
        count, done = sum(one for one, _ in counts), sum(one for _, one in counts)
        if count:
            options.console.print(f"  {what}: {count}, {done} of them finished")
    for kind, seconds in found.seconds.items():
        if seconds:
            options.console.print(f"  {kind}: about {duration(seconds)}")
    free = shutil.disk_usage(_existing(Path(folder).absolute())).free
    options.console.print(
        f"  in one process about {duration(found.total)}; disk: {_bytes(found.size)}, of "
        f"{_bytes(free)} free"
    )


def _existing(path: Path) -> Path:
    return path if path.exists() else _existing(path.parent)


def _bytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count < 1e9 else f"{count / 1e9:.1f} GB"
