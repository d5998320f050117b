"""`plot`: figures from stored results and checkpoints."""

from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from lightning_merge.checkpoint import read_checkpoint
from lightning_merge.commands.figures import Figures, write_figures
from lightning_merge.errors import ConfigError
from lightning_merge.files import read_json

_SEVERAL = ("bars", "gap")
# Drawn from checkpoints, with options of their own: where they are.
_FROM_WEIGHTS = {"embedding": "embedding", "kernels": "patterns", "templates": "patterns"}


@dataclass
class Chosen:
    """What to draw from: files, a heading, and what to call each of several files."""

    sources: list[Path]
    title: str = ""
    labels: list[str] | None = None

    @property
    def source(self) -> Path:
        """The first file."""
        return self.sources[0]


def plot(words: list[str]) -> None:
    """Draws figures and writes them as PNG and SVG.

    `barrier` draws the line, and the triangle beside it (its name ends in `-triangle`) where
    the results hold both; `magnitude` draws three figures. `templates`, `kernels` and `embedding`
    are drawn from checkpoints, and have options of their own (`plot templates --help`).

    Args:
        words: The command line after `plot`.

    Raises:
        MergeError: If the user can mend it.
    """
    if words and words[0] in _FROM_WEIGHTS:
        commands = import_module(f"lightning_merge.commands.{_FROM_WEIGHTS[words[0]]}")
        getattr(commands, words[0])(words[1:])
        return
    parser = ArgumentParser(
        prog="python -m lightning_merge plot",
        description="Draws figures from what merge, compare and study stored.",
    )
    parser.add_argument(
        "figure",
        choices=sorted([*_FIGURES, *_FROM_WEIGHTS]),
        help="which figure; templates, kernels and embedding have options of their own, see plot "
        "templates --help",
    )
    parser.add_argument(
        "source",
        type=Path,
        nargs="+",
        help="alphas: a merged checkpoint; bars, gap: one results.json or several (one for each "
        "architecture); the others: a results.json",
    )
    parser.add_argument("--labels", nargs="+", help="bars, gap: what to call each results.json")
    parser.add_argument("--output", type=Path, help="the figure's path; beside the source if none")
    parser.add_argument("--title", default="")
    parser.add_argument("--overwrite", action="store_true", help="write over existing files")
    chosen = parser.parse_args(words)
    if len(chosen.source) > 1 and chosen.figure not in _SEVERAL:
        raise ConfigError(
            f"{chosen.figure} is drawn from one file, not {len(chosen.source)}: give one"
        )
    first = chosen.source[0]
    path = chosen.output or first.with_name(f"{first.stem}-{chosen.figure}")
    given = Chosen(chosen.source, chosen.title, chosen.labels)
    write_figures(_FIGURES[chosen.figure](given), path, chosen.overwrite)


def _alphas(chosen: Chosen) -> Figures:
    from lightning_merge.plots import plot_alphas

    source = chosen.source
    alphas = read_checkpoint(source).content.get("lightning_merge", {}).get("alphas")
    if not alphas:
        raise ConfigError(f"{source} holds no alphas: give a checkpoint that an NP Merge wrote")
    return {"": plot_alphas(alphas, chosen.title)}


def _bars(chosen: Chosen) -> Figures:
    from lightning_merge.plots import plot_bars

    return {"": plot_bars(_tables(chosen)[0], chosen.title)}


def _barrier(chosen: Chosen) -> Figures:
    from lightning_merge.plots import plot_barrier, plot_triangle

    source, title = chosen.source, chosen.title
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


def _gap(chosen: Chosen) -> Figures:
    from lightning_merge.plots import plot_gap

    tables, results = _tables(chosen)
    ensembles = [ensemble_of(one) for one in results]
    for source, ensemble in zip(chosen.sources, ensembles, strict=True):
        if ensemble is None or ensemble != ensembles[0]:
            other = "" if ensemble is None else f" of the name '{ensembles[0]}'"
            raise ConfigError(
                f"{source} holds no ensemble{other} for merges to be held against: give results "
                "whose recipes have the same LogitsEnsemble"
            )
    return {"": plot_gap(tables, str(ensembles[0]), chosen.title)}


def _magnitude(chosen: Chosen) -> Figures:
    from lightning_merge.study.publish import magnitude_figures

    curves = _results(chosen.source).get("magnitudes")
    if not curves:
        raise ConfigError(
            f"{chosen.source} holds no magnitudes: run compare or study with --magnitudes "
            "'[0.5, 1, 2]'"
        )
    figures = magnitude_figures(curves, chosen.title)
    return {name.removeprefix("magnitude"): figure for name, figure in figures.items()}


def _methods(chosen: Chosen) -> Figures:
    from lightning_merge.plots import plot_methods

    return {"": plot_methods(_summary(chosen.source), chosen.title)}


def _pools(chosen: Chosen) -> Figures:
    from lightning_merge.plots import plot_pools

    return {"": plot_pools(_summary(chosen.source), chosen.title)}


def _tables(chosen: Chosen) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The summaries under their labels, and the results that they are of."""
    results = [_results(source) for source in chosen.sources]
    labels: Sequence[str] = chosen.labels or [str(one.get("network", "")) for one in results]
    if not all(labels) or len(set(labels)) < len(labels):
        # Of one architecture: what differs is where they lie.
        labels = chosen.labels or [source.resolve().parent.name for source in chosen.sources]
    if len(labels) != len(results) or len(set(labels)) < len(labels):
        raise ConfigError(
            f"{len(results)} results are called {', '.join(labels)}: give --labels, a different "
            "one for each"
        )
    return dict(zip(labels, map(_summary, chosen.sources), strict=True)), results


def _summary(source: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] | None = _results(source).get("summary")
    if not found:
        raise ConfigError(f"{source} holds no table: give the results.json of compare or study")
    return found


def ensemble_of(results: dict[str, Any]) -> str | None:
    """The ensemble of logits in a table, or another one where there is none of those."""
    from lightning_merge.study.publish import first_ensemble

    return first_ensemble(results.get("config", {}).get("recipes", []), results["summary"])


def _results(source: Path) -> dict[str, Any]:
    if not source.is_file():
        raise ConfigError(f"{source}: no such file; give the results.json of compare or study")
    try:
        found: dict[str, Any] = read_json(source)
    except ValueError as error:
        raise ConfigError(f"{source} is not JSON: give the results.json of a run") from error
    return found


_FIGURES: dict[str, Callable[[Chosen], Figures]] = {
    "alphas": _alphas,
    "barrier": _barrier,
    "bars": _bars,
    "gap": _gap,
    "magnitude": _magnitude,
    "methods": _methods,
    "pools": _pools,
}
