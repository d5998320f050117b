"""`plot`: figures from stored results and checkpoints."""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from lightning_merge.checkpoint import read_checkpoint
from lightning_merge.commands.short_errors import PlainParser
from lightning_merge.commands.written_figures import write_figures
from lightning_merge.errors import ConfigError, MergeError
from lightning_merge.files import read_json
from lightning_merge.plots.figure import Figures, Stored, figures

# Figures drawn from checkpoints, with options of their own, and the modules that draw them.
OF_NETWORKS = {
    "embedding": "plot_embedding",
    "kernels": "plot_patterns",
    "templates": "plot_patterns",
}

_LONGEST = 120


def plot(words: list[str]) -> None:
    """Draws figures and writes them as PNG and SVG.

    `barrier` draws the line, and the triangle beside it (its name ends in `-triangle`) where
    the results hold both; `magnitude` draws three figures. `templates`, `kernels` and `embedding`
    are drawn from checkpoints, and have options of their own (`plot templates --help`).
    """
    if words and words[0] in OF_NETWORKS:
        commands = import_module(f"lightning_merge.commands.{OF_NETWORKS[words[0]]}")
        getattr(commands, words[0])(words[1:])
        return
    chosen = _parser().parse_args(words)
    kind = figures.get(chosen.figure).value
    if len(chosen.source) > 1 and not kind.several:
        raise ConfigError(
            f"{chosen.figure} is drawn from one file, not {len(chosen.source)}: give one"
        )
    first = chosen.source[0]
    read = _of_merge if kind.source == "checkpoint" else _results
    results = [read(source) for source in chosen.source]
    labels = _labels(chosen.source, results, chosen.labels) if kind.several else [""]
    path = chosen.output or first.with_name(f"{first.stem}-{chosen.figure}")
    try:
        drawn = kind.draw(Stored(results, chosen.title, labels))
        if not drawn:
            raise ConfigError(f"{first} {kind.lacking}")
        write_figures(_endings(chosen.figure, drawn), path, chosen.overwrite)
    except (MergeError, OSError):
        raise
    except Exception as error:
        # A damaged or untrusted file may contain anything anywhere.
        raise ConfigError(
            f"{first} does not hold what {chosen.figure} is drawn from, or is damaged "
            f"({type(error).__name__}: {error}): give the file as it was written"
        ) from error


def _parser() -> PlainParser:
    parser = PlainParser(
        prog="python -m lightning_merge plot",
        description="Draws figures from what merge, compare and study stored.",
    )
    parser.add_argument(
        "figure",
        choices=[entry.name for entry in figures],
        help="which figure; those that are drawn from networks have options of their own, see plot "
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
    parser.add_argument("--title", default="", help="heads the figure")
    parser.add_argument("--overwrite", action="store_true", help="write over existing files")
    return parser


def _endings(figure: str, drawn: Figures) -> Figures:
    """Figures by the suffix that is added to the file name: none for the first one."""
    first, *rest = drawn
    named = {"": drawn[first]}
    return named | {f"-{name.removeprefix(f'{figure}-')}": drawn[name] for name in rest}


def _of_merge(source: Path) -> dict[str, Any]:
    found = read_checkpoint(source).content.get("lightning_merge")
    return found if isinstance(found, dict) else {}


def _labels(
    sources: Sequence[Path], results: Sequence[dict[str, Any]], given: Sequence[str] | None
) -> Sequence[str]:
    """Labels for several runs: as given, or their networks' names, or their paths."""
    labels = given or [str(one.get("network", "")) for one in results]
    if not all(labels) or len(set(labels)) < len(labels):
        # All have one architecture, so only their paths differ.
        labels = given or [source.resolve().parent.name for source in sources]
    if len(labels) != len(results) or len(set(labels)) < len(labels):
        raise ConfigError(
            f"{len(results)} results are called {', '.join(labels)}: give --labels, a different "
            "one for each"
        )
    return labels


def _results(source: Path) -> dict[str, Any]:
    if not source.is_file():
        raise ConfigError(f"{source}: no such file; give the results.json of compare or study")
    try:
        found = _with_short_names(read_json(source))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{source} is not JSON: give the results.json of a run") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{source} holds no results: give the results.json of a run")
    return found


def _with_short_names(value: Any) -> Any:
    """Stored results whose texts fit a picture, which becomes as wide as its longest one."""
    if isinstance(value, str):
        return value if len(value) <= _LONGEST else f"{value[:_LONGEST]}…"
    if isinstance(value, dict):
        return {_with_short_names(k): _with_short_names(v) for k, v in value.items()}
    return [_with_short_names(one) for one in value] if isinstance(value, list) else value
