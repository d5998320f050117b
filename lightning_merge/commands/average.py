"""`average`: the mean of checkpoint files, without building a network or reading data."""

import sys
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

from lightning_merge.aggregate.averaged_files import (
    Progress,
    averaged_arrays,
    shard_files,
    write_average,
)
from lightning_merge.aggregate.files_to_average import (
    FilesToAverage,
    given_files,
    in_common,
    open_files,
)
from lightning_merge.commands.short_errors import PlainParser
from lightning_merge.errors import ConfigError, OutputExistsError, printable
from lightning_merge.files import sweep
from lightning_merge.preprocessing import warn_of_other_classes
from lightning_merge.stored_state import INDEX

_ENDINGS = (".safetensors", ".ckpt", ".pt", ".pth", INDEX)
# Entries of a Lightning checkpoint that describe a training run, not a network.
_OF_TRAINING = (
    *("optimizer_states", "lr_schedulers", "callbacks", "loops", "epoch", "global_step"),
    *("native_amp_scaling_state", "MixedPrecision", "lightning_merge", "soup"),
)


def average(words: list[str]) -> None:
    """Writes the uniform or weighted average of checkpoint files."""
    chosen = _parser().parse_args(words)
    if not chosen.output.name.endswith(_ENDINGS):
        raise ConfigError(f"{chosen.output}: choose a name that ends in {', '.join(_ENDINGS)}")
    _check_absent(chosen, chosen.output)
    given = given_files(chosen.checkpoints)
    files = open_files(
        given,
        _weights(chosen, len(given)),
        chosen.dtype,
        chosen.include,
        chosen.exclude,
    )
    warn_of_other_classes(files.names, [state.content for state in files.states])
    start = time.monotonic()
    sweep(chosen.output.parent)
    with _Bar() as bar:
        left_out = files.left_out + _write(files, chosen, bar)
    size = sum(file.stat().st_size for file in _written(files, chosen.output)) / 1e6
    left = f"; left out: {_some(left_out)}" if left_out else ""
    taken = f"{size:.4g} MB in {time.monotonic() - start:.2g} s"
    summary = (
        f"{chosen.output}: average of {len(files.states)} checkpoints, "
        f"{len(files.entries)} tensors, {taken}{left}"
    )
    print(printable(summary))


def _parser() -> PlainParser:
    parser = PlainParser(
        prog="python -m lightning_merge average",
        description="Averages checkpoint files of one architecture. Integers (counters) are "
        "those of the first. Networks with BatchNorm that were trained apart want `merge`.",
    )
    parser.add_argument(
        "checkpoints",
        nargs="+",
        help="files: .ckpt, .pt, .pth, .safetensors, .index.json of a sharded network; or folders",
    )
    shares = parser.add_mutually_exclusive_group()
    shares.add_argument("--weights", nargs="+", type=float, help="one number for each file")
    shares.add_argument(
        "--exponential",
        type=float,
        metavar="DECAY",
        help="weight each file DECAY times (in (0, 1]) as much as the one after it",
    )
    parser.add_argument(
        "--dtype",
        choices=("float16", "bfloat16", "float32", "float64"),
        help="type of the floating-point tensors written; theirs if not given",
    )
    parser.add_argument(
        "--include", metavar="REGEX", help="write only tensors in whose names it is found"
    )
    parser.add_argument(
        "--exclude",
        metavar="REGEX",
        help="leave out tensors in whose names it is found; they may differ between the files",
    )
    parser.add_argument(
        "-o",
        "--output",
        required=True,
        type=Path,
        help=".safetensors, .index.json (shards as the first file has them), .pt or .pth (a state "
        "dict), or .ckpt (what all files have in common, with the first's hyper-parameters)",
    )
    parser.add_argument("--overwrite", action="store_true", help="write over an existing file")
    return parser


def _check_absent(chosen: Namespace, file: Path) -> None:
    if file.exists() and not chosen.overwrite:
        raise OutputExistsError(f"{file} exists: choose another --output, or add --overwrite")


def _weights(chosen: Namespace, count: int) -> list[float] | None:
    if chosen.exponential is None:
        return chosen.weights
    if not 0 < chosen.exponential <= 1:
        raise ConfigError(f"--exponential {chosen.exponential}: choose a decay in (0, 1]")
    return [chosen.exponential**later for later in reversed(range(count))]


def _write(files: FilesToAverage, chosen: Namespace, progress: Progress) -> list[str]:
    """Writes the output; returns the names of what its format cannot store."""
    for file in _written(files, chosen.output):
        _check_absent(chosen, file)
    if chosen.output.name.endswith((".safetensors", INDEX)):
        about = {"format": "pt", "method": "average", "ingredients": ", ".join(files.names)}
        shared, own = in_common([state.notes for state in files.states])
        write_average(files, chosen.output, shared | about, progress)
        return [*files.extra, *(f"the header's {key}" for key in own if key not in about)]
    from lightning_merge.checkpoint import write_checkpoint
    from lightning_merge.state_dicts import tensor_of

    arrays = averaged_arrays(files, progress)
    state = {name: tensor_of(raw, files.entries[name]) for name, raw in arrays.items()}
    content: dict[str, Any] = {**state, **files.extra}
    dropped: list[str] = []
    if chosen.output.suffix == ".ckpt":
        kept, dropped = _common_content(files)
        content = {**kept, "state_dict": content}
    write_checkpoint(chosen.output, content)
    return dropped


def _common_content(files: FilesToAverage) -> tuple[dict[str, Any], list[str]]:
    """Entries shared by all files, and the hyper-parameters that build the first network."""
    contents = [
        {key: value for key, value in state.content.items() if key not in _OF_TRAINING}
        for state in files.states
    ]
    kept, differing = in_common(contents)
    for key in contents[0]:
        if "hyper_parameters" in str(key):
            kept[key] = contents[0][key]
    return kept, [str(key) for key in differing if key not in kept]


def _written(files: FilesToAverage, output: Path) -> list[Path]:
    return shard_files(files, output) if output.name.endswith(INDEX) else [output]


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more


class _Bar:
    """rich's progress bar, which appears when the work takes more than two seconds.

    rich has no such delay, and importing it takes longer than averaging small files.
    """

    def __enter__(self) -> "_Bar":
        self._begun = time.monotonic()
        self._bar: Any = None
        return self

    def __call__(self, done: int, total: int) -> None:
        if self._bar is None:
            if time.monotonic() - self._begun < 2 or not sys.stderr.isatty():
                return
            from rich.console import Console
            from rich.progress import Progress as Bars

            self._bar = Bars(console=Console(stderr=True), transient=True)
            self._bar.start()
            self._task = self._bar.add_task("averaging", total=total)
        self._bar.update(self._task, completed=done)

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
