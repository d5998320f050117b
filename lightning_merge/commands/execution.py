"""What `study` and `tasks` share: where and whether pieces are done, and what is printed."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from jsonargparse import ArgumentParser
from rich.text import Text

from lightning_merge.commands import options
from lightning_merge.durations import duration, in_seconds
from lightning_merge.recipe.build import Plain
from lightning_merge.study.estimate import TRAINED, Estimate
from lightning_merge.study.executor import executor_of
from lightning_merge.study.work import Work
from lightning_merge.study_verbs import Watcher

R = TypeVar("R")


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


def run(
    command: str,
    of: ArgumentParser,
    words: list[str],
    estimate: Callable[[Plain, str, bool], Estimate],
    do: Callable[..., R],
    measured: Callable[[Mapping[str, Any]], str],
) -> tuple[R | None, str]:
    """Parses a study's command line and runs the study, printing each piece when it is done.

    Args:
        command: `study` or `tasks`.
        of: Its parser.
        words: What comes after the command.
        estimate: Estimates what is left, for `--dry_run`.
        do: Runs it; takes what `run_study` does.
        measured: What to print of a piece's result behind its name.

    Returns:
        The results, None after `--dry_run`, and the folder.
    """
    config = options.plain(of, of.parse_args(words))
    options.quiet(config["trainer"])
    folder, overwrite, dry_run = (config.pop(one) for one in ("output", "overwrite", "dry_run"))
    executor = executor_of(config.pop("executor"), config.pop("executor_options"))
    title = config["title"]
    if dry_run:
        print_estimate(title, estimate(config, folder, overwrite), folder)
        return None, folder

    def show_plan(count: int, done: int) -> None:
        rest = f": {count} pieces of work, {done} already done"
        options.console.print(Text.assemble((title, "bold"), rest))

    def show(work: Work, result: Mapping[str, Any], stored: bool) -> None:
        row = result.get("row") or result
        text = f"  seed {work.seed}  {work.name}{measured(result)}"
        if row.get("seconds") is not None:
            text += f" ({in_seconds(row['seconds'])} s)"
        if row.get("chosen"):
            text += f"; {row['chosen']}"
        known = ("  (stored)" if stored else "", "dim")
        options.console.print(Text.assemble(text, known), soft_wrap=True)

    watcher = Watcher([command, *words], show_plan, show)
    return do(config, folder, overwrite=overwrite, executor=executor, watcher=watcher), folder


def print_estimate(title: str, found: Estimate, folder: str) -> None:
    """Prints what is left of a study."""
    trained = [count for kind, count in found.counts.items() if kind in TRAINED]
    merged = [count for kind, count in found.counts.items() if "merge" in kind]
    rest = [c for kind, c in found.counts.items() if kind not in TRAINED and "merge" not in kind]
    options.console.print(title, style="bold")
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
