"""What a comparison or a study leaves for people: tables, figures, a report."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_merge.callbacks.alphas import alpha_rows
from lightning_merge.checkpoint import StateDict
from lightning_merge.files import write_csv, write_json, write_text
from lightning_merge.loggers import log_figure, log_table
from lightning_merge.study.measure import Measurement
from lightning_merge.study.report import markdown_table, summarise

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger

Row = Mapping[str, Any]

FIGURES = ("methods", "barrier", "triangle", "alphas")
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

    Returns:
        The files.
    """
    from lightning_merge.plots import plot_alphas, plot_barrier, plot_methods, plot_triangle, save
    from lightning_merge.plots.style import files

    columns = metric_columns(rows)
    summary = summarise(rows, columns)
    figures = {"methods": plot_methods(summary, title)}
    if lines:
        figures["barrier"] = plot_barrier(lines, title)
    if triangles:
        figures["triangle"] = plot_triangle(triangles, title)
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
        markdown_table(summary, columns),
    ]
    chosen = [
        f"* {row['method']}, seed {row['seed']}: {row['chosen']}"
        for row in rows
        if row.get("chosen")
    ]
    if chosen:
        parts.append("\n".join(chosen) + "\n")
    if statistics_examples is not None:
        parts.append(
            "Activations, BatchNorm statistics and REPAIR's were read from "
            f"{statistics_examples:,} training examples, drawn at random.\n"
        )
    parts += landscapes
    parts += [f"![{name}]({name}.png)\n" for name in figures]
    return "\n".join(parts)


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
