"""What a comparison or a study leaves for people: tables, figures, a report."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_merge.callbacks.alpha_monitor import alpha_rows
from lightning_merge.checkpoint import StateDict
from lightning_merge.files import write_csv, write_json, write_text
from lightning_merge.loggers import log_figure, log_table
from lightning_merge.study.lines import class_name
from lightning_merge.study.measure import Measurement
from lightning_merge.study.report import SIZE, markdown_table, pool_sizes, pool_table, summarise

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger
    from matplotlib.figure import Figure

Row = Mapping[str, Any]

_MAGNITUDE = ("magnitude", "magnitude-gap", "magnitude-scatter")
FIGURES = ("methods", "pools", "gap", "barrier", "triangle", *_MAGNITUDE, "alphas")
RESULTS = (
    "results.csv",
    "results.json",
    "report.md",
    "merges",
    *(f"{name}.{kind}" for name in FIGURES for kind in ("png", "svg")),
)


def publish(
    folder: Path,
    title: str,
    rows: Sequence[Row],
    made_by: Mapping[str, Any],
    details: Mapping[str, Any],
    lines: Sequence[Mapping[str, Any]] = (),
    triangles: Sequence[Mapping[str, Any]] = (),
    alphas: StateDict | None = None,
    loggers: Sequence["Logger"] = (),
    magnitudes: Sequence[Mapping[str, Any]] = (),
) -> list[Path]:
    """Writes results, figures and the report, and sends them to the loggers.

    Args:
        folder: Where to; files of earlier results are written over.
        title: What tables and figures are headed with.
        rows: One a measurement (`Measurement.row`).
        made_by: Command, versions and device (`provenance`).
        details: What else the JSON is to hold: configuration, ingredients' hashes.
        lines: The lines of the loss barrier (`Line.plain`), of all seeds.
        triangles: Likewise between three ingredients (`Triangle.plain`).
        alphas: Learned alphas by parameter name.
        loggers: Where tables and figures are sent as well.
        magnitudes: Accuracy against weight magnitude (`Magnitude.plain`), of all seeds.

    Returns:
        The files.
    """
    from lightning_merge.plots import plot_alphas, plot_barrier, plot_triangle, save
    from lightning_merge.plots.style import files

    columns = metric_columns(rows)
    summary = summarise(rows, columns)
    recipes = details.get("config", {}).get("recipes", [])
    figures = _of_methods(summary, recipes, title)
    if lines:
        figures["barrier"] = plot_barrier(lines, title)
    if triangles:
        figures["triangle"] = plot_triangle(triangles, title)
    if magnitudes:
        figures |= magnitude_figures(magnitudes, title)
    if alphas:
        figures["alphas"] = plot_alphas(alphas, f"{title}: learned alphas by layer")
    written = [
        write_csv(folder / "results.csv", rows),
        write_json(
            folder / "results.json",
            {
                **made_by,
                **details,
                "measurements": rows,
                "summary": summary,
                "lines": lines,
                "triangles": triangles,
                "magnitudes": magnitudes,
            },
        ),
    ]
    for name in FIGURES:
        if name in figures:
            written += save(figures[name], folder / name)
        else:
            # A figure of earlier results would stand beside these.
            for file in files(folder / name):
                file.unlink(missing_ok=True)
    landscapes = [*_barriers(lines), *_triangles(triangles)]
    examples = details.get("statistics_examples")
    report = _report(title, rows, summary, columns, made_by, landscapes, list(figures), examples)
    written.append(write_text(folder / "report.md", report))
    for logger in loggers:
        log_table(logger, "comparison", rows)
        if alphas:
            log_table(logger, "alphas_by_layer", alpha_rows(alphas))
        for name, figure in figures.items():
            log_figure(logger, name, figure)
    return written


def magnitude_figures(curves: Sequence[Mapping[str, Any]], title: str) -> dict[str, "Figure"]:
    """The figures of `Magnitude.plain`, by their names.

    Args:
        curves: As they are stored.
        title: What to head the figures with.

    Returns:
        The curves; and where there are a soup and an ensemble of logits, their gap, and their
        scatter by batch.
    """
    from lightning_merge.plots import plot_magnitude, plot_magnitude_gap, plot_magnitude_scatter
    from lightning_merge.plots.magnitude import has_pair

    def heading(what: str) -> str:
        return f"{title}: {what}" if title else ""

    figures = {"magnitude": plot_magnitude(curves, heading("accuracy by weight magnitude"))}
    if has_pair(curves):
        what = heading("soup minus ensemble by weight magnitude")
        figures["magnitude-gap"] = plot_magnitude_gap(curves, what)
        what = heading("soup and ensemble, batch by batch")
        figures["magnitude-scatter"] = plot_magnitude_scatter(curves, what)
    return figures


def first_ensemble(recipes: Sequence[Mapping[str, Any]], summary: Sequence[Row]) -> str | None:
    """The method that merges are held against.

    Args:
        recipes: Recipes as plain configuration.
        summary: The table.

    Returns:
        The name of the first `LogitsEnsemble`, of any ensemble where there is none, or None.
    """
    names = [
        recipe["name"] for recipe in recipes if class_name(recipe["aggregate"]) == "LogitsEnsemble"
    ]
    names += [row["method"] for row in summary if row["kind"] == "ensemble"]
    return names[0] if names else None


def _of_methods(
    summary: Sequence[Row], recipes: Sequence[Mapping[str, Any]], title: str
) -> dict[str, "Figure"]:
    from lightning_merge.plots import plot_gap, plot_methods, plot_pools

    sizes = pool_sizes(summary)
    if len(sizes) < 2:
        return {"methods": plot_methods(summary, title)}
    largest = max(size for size in sizes if size is not None)
    of_all = [row for row in summary if row.get(SIZE) in (largest, None)]
    figures = {
        "methods": plot_methods(of_all, f"{title}, {largest} networks"),
        "pools": plot_pools(summary, f"{title}: by number of networks"),
    }
    ensemble = first_ensemble(recipes, summary)
    if ensemble is not None and any(row["kind"] == "merge" for row in summary):
        figures["gap"] = plot_gap({"": summary}, ensemble, f"{title}: gap to the ensemble")
    return figures


def keep_only(folder: Path, merges: set[Path]) -> None:
    """Removes merged checkpoints of earlier results, which would lie beside these.

    Args:
        folder: The output folder; only its `merges` is looked at.
        merges: The checkpoints that belong to these results.
    """
    for path in (folder / "merges").rglob("*.ckpt"):
        if path not in merges:
            path.unlink()


def metric_columns(rows: Sequence[Row]) -> list[str]:
    """The metrics that a table shows beside accuracy."""
    own = {field.name for field in fields(Measurement)} | {"chosen"}
    found = dict.fromkeys(name for row in rows for name in row if name not in own)
    return sorted(found, key=lambda name: (name == "loss", list(found).index(name)))


def _report(
    title: str,
    rows: Sequence[Row],
    summary: Sequence[Row],
    columns: Sequence[str],
    made_by: Mapping[str, Any],
    landscapes: Sequence[str],
    figures: Sequence[str],
    statistics_examples: int | None,
) -> str:
    seeds = sorted({row["seed"] for row in rows})
    examples = sorted({row["test_examples"] for row in rows})
    learned = sorted({row["train_examples"] for row in rows if row["kind"] != "ingredient"} - {0})
    versions = ", ".join(f"{name} {version}" for name, version in made_by["versions"].items())
    parts = [
        f"# {title}\n",
        f"    {made_by['command']}\n",
        f"{versions}; {made_by['device']}.\n",
        f"{_listed('seed', seeds)}; {_listed('test example count', examples)}; merges that learn "
        f"saw {', '.join(str(count) for count in learned) or 'no'} labelled training examples. "
        "Mean ± standard deviation over seeds; seconds are those of making the model (training "
        "for an ingredient; alignment, aggregation and recalibration for a merge); MFLOPs are "
        "those of one prediction, a multiply-add counting as two.\n",
        *([pool_table(summary)] if len(pool_sizes(summary)) > 1 else []),
        markdown_table(summary, columns),
    ]
    parts += _choices(rows)
    if statistics_examples is not None:
        parts.append(
            "Activations, BatchNorm statistics and REPAIR's were read from "
            f"{statistics_examples:,} training examples, drawn at random.\n"
        )
    parts += landscapes
    parts += [f"![{name}]({name}.png)\n" for name in figures]
    return "\n".join(parts)


def _choices(rows: Sequence[Row]) -> list[str]:
    """What was chosen on held-out data: once for all methods that share a choice."""
    several = len(pool_sizes(rows)) > 1
    methods: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row.get("chosen"):
            where = f"{row[SIZE]} networks, " if several else ""
            where += f"seed {row['seed']}"
            methods.setdefault((where, row["chosen"]), []).append(row["method"])
    lines = [f"* {', '.join(of)}, {where}: {what}\n" for (where, what), of in methods.items()]
    return ["".join(lines)] if lines else []


def _barriers(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    text = "| line from B to A | loss barrier | accuracy at α = 0.5 |\n| --- | ---: | ---: |\n"
    for name, same in _by_name(lines).items():
        middle = [line["accuracy"][len(line["accuracy"]) // 2] for line in same]
        text += f"| {name} | {_mean([line['barrier'] for line in same])} | {_mean(middle)} |\n"
    return [text] if lines else []


def _triangles(triangles: Sequence[Mapping[str, Any]]) -> list[str]:
    text = "| triangle A, B, C | loss barrier | lowest accuracy |\n| --- | ---: | ---: |\n"
    for name, same in _by_name(triangles).items():
        lowest = [min(triangle["accuracy"]) for triangle in same]
        text += f"| {name} | {_mean([one['barrier'] for one in same])} | {_mean(lowest)} |\n"
    return [text] if triangles else []


def _by_name(landscapes: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    found: dict[str, list[Mapping[str, Any]]] = {}
    for one in landscapes:
        found.setdefault(one["name"], []).append(one)
    return found


def _mean(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None and math.isfinite(value)]
    # The mean of some seeds would look like that of all.
    return f"{statistics.fmean(known):.4f}" if len(known) == len(values) else "-"


def _listed(what: str, values: Sequence[int]) -> str:
    plural = "s" if len(values) > 1 else ""
    return f"{what}{plural} {', '.join(str(value) for value in values)}"
