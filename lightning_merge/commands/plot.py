"""`plot`: figures from stored results and checkpoints."""

from argparse import ArgumentParser
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_merge.checkpoint import read_checkpoint
from lightning_merge.errors import ConfigError, OutputExistsError
from lightning_merge.files import read_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot(words: list[str]) -> None:
    """Draws one figure and writes it as PNG and SVG.

    Args:
        words: The command line after `plot`.

    Raises:
        MergeError: If the user can mend it.
    """
    parser = ArgumentParser(
        prog="python -m lightning_merge plot",
        description="Draws a figure from what merge, compare and study stored.",
    )
    parser.add_argument("figure", choices=sorted(_FIGURES), help="which figure")
    parser.add_argument(
        "source",
        type=Path,
        help="alphas: a merged checkpoint; barrier, methods: a results.json",
    )
    parser.add_argument("--output", type=Path, help="the figure's path; beside the source if none")
    parser.add_argument("--title", default="")
    parser.add_argument("--overwrite", action="store_true", help="write over existing files")
    chosen = parser.parse_args(words)
    path = chosen.output or chosen.source.with_name(f"{chosen.source.stem}-{chosen.figure}")
    from lightning_merge.plots import save
    from lightning_merge.plots.style import files

    for file in files(path):
        if file.exists() and not chosen.overwrite:
            raise OutputExistsError(f"{file} exists: choose another --output, or add --overwrite")

    for file in save(_FIGURES[chosen.figure](chosen.source, chosen.title), path):
        print(file)


def _alphas(source: Path, title: str) -> "Figure":
    from lightning_merge.plots import plot_alphas

    alphas = read_checkpoint(source).content.get("lightning_merge", {}).get("alphas")
    if not alphas:
        raise ConfigError(f"{source} holds no alphas: give a checkpoint that an NP Merge wrote")
    return plot_alphas(alphas, title)


def _barrier(source: Path, title: str) -> "Figure":
    from lightning_merge.plots import plot_barrier

    lines = _results(source).get("lines")
    if not lines:
        raise ConfigError(f"{source} holds no barrier: run compare or study with --barrier 11")
    return plot_barrier(lines, title)


def _methods(source: Path, title: str) -> "Figure":
    from lightning_merge.plots import plot_methods

    summary = _results(source).get("summary")
    if not summary:
        raise ConfigError(f"{source} holds no table: give the results.json of compare or study")
    return plot_methods(summary, title)


def _results(source: Path) -> dict[str, Any]:
    if not source.is_file():
        raise ConfigError(f"{source}: no such file; give the results.json of compare or study")
    try:
        found: dict[str, Any] = read_json(source)
    except ValueError as error:
        raise ConfigError(f"{source} is not JSON: give the results.json of a run") from error
    return found


_FIGURES: dict[str, Callable[[Path, str], "Figure"]] = {
    "alphas": _alphas,
    "barrier": _barrier,
    "methods": _methods,
}
