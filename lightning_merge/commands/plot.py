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

Figures = dict[str, "Figure"]
"""Figures by what their file's name ends in, beside what the user chose."""


def plot(words: list[str]) -> None:
    """Draws figures and writes them as PNG and SVG.

    `barrier` draws the line, and the triangle beside it (its name ends in `-triangle`) where
    the results hold both.

    Args:
        words: The command line after `plot`.

    Raises:
        MergeError: If the user can mend it.
    """
    parser = ArgumentParser(
        prog="python -m lightning_merge plot",
        description="Draws figures from what merge, compare and study stored.",
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

    figures = _FIGURES[chosen.figure](chosen.source, chosen.title)
    named = {
        path.with_name(f"{path.stem}{ending}{path.suffix}") if ending else path: figure
        for ending, figure in figures.items()
    }
    for file in (file for target in named for file in files(target)):
        if file.exists() and not chosen.overwrite:
            raise OutputExistsError(f"{file} exists: choose another --output, or add --overwrite")

    for target, figure in named.items():
        for file in save(figure, target):
            print(file)


def _alphas(source: Path, title: str) -> Figures:
    from lightning_merge.plots import plot_alphas

    alphas = read_checkpoint(source).content.get("lightning_merge", {}).get("alphas")
    if not alphas:
        raise ConfigError(f"{source} holds no alphas: give a checkpoint that an NP Merge wrote")
    return {"": plot_alphas(alphas, title)}


def _barrier(source: Path, title: str) -> Figures:
    from lightning_merge.plots import plot_barrier, plot_triangle

    results = _results(source)
    figures = {}
    if results.get("lines"):
        figures[""] = plot_barrier(results["lines"], title)
    if results.get("triangles"):
        figures["-triangle" if figures else ""] = plot_triangle(results["triangles"], title)
    if not figures:
        raise ConfigError(
            f"{source} holds no barrier: run compare or study with --barrier 11 (or, for three "
            "checkpoints, --triangle 7)"
        )
    return figures


def _methods(source: Path, title: str) -> Figures:
    from lightning_merge.plots import plot_methods

    summary = _results(source).get("summary")
    if not summary:
        raise ConfigError(f"{source} holds no table: give the results.json of compare or study")
    return {"": plot_methods(summary, title)}


def _results(source: Path) -> dict[str, Any]:
    if not source.is_file():
        raise ConfigError(f"{source}: no such file; give the results.json of compare or study")
    try:
        found: dict[str, Any] = read_json(source)
    except ValueError as error:
        raise ConfigError(f"{source} is not JSON: give the results.json of a run") from error
    return found


_FIGURES: dict[str, Callable[[Path, str], Figures]] = {
    "alphas": _alphas,
    "barrier": _barrier,
    "methods": _methods,
}
