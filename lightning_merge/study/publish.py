"""What a comparison or a study leaves for people: tables, figures, a report."""

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

FIGURES = ("methods", "barrier", "alphas")
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
        alphas: Learned alphas by parameter name.
        loggers: Where tables and figures are sent as well.

    Returns:
        The files.
    """
    from lightning_merge.plots import plot_alphas, plot_barrier, plot_methods, save
    from lightning_merge.plots.style import files

    columns = metric_columns(rows)
    summary = summarise(rows, columns)
    figures = {"methods": plot_methods(summary, title)}
    if lines:
        figures["barrier"] = plot_barrier(lines, title)
    if alphas:
        figures["alphas"] = plot_alphas(alphas, f"{title}: learned alphas by layer")
    written = [
        write_csv(folder / "results.csv", rows),
        write_json(
            folder / "results.json",
            {**made_by, **details, "measurements": rows, "summary": summary, "lines": lines},
        ),
    ]
    for name in FIGURES:
        if name in figures:
            written += save(figures[name], folder / name)
        else:
            # A figure of earlier results would stand beside these.
            for file in files(folder / name):
                file.unlink(missing_ok=True)
    report = _report(title, rows, summary, columns, made_by, lines, list(figures))
    written.append(write_text(folder / "report.md", report))
    for logger in loggers:
        log_table(logger, "comparison", rows)
        if alphas:
            log_table(logger, "alphas_by_layer", alpha_rows(alphas))
        for name, figure in figures.items():
            log_figure(logger, name, figure)
    return written


def metric_columns(rows: Sequence[Row]) -> list[str]:
    """The metrics that a table shows beside accuracy."""
    own = {field.name for field in fields(Measurement)}
    found = dict.fromkeys(name for row in rows for name in row if name not in own)
    return sorted(found, key=lambda name: (name == "loss", list(found).index(name)))


def _report(
    title: str,
    rows: Sequence[Row],
    summary: Sequence[Row],
    columns: Sequence[str],
    made_by: Mapping[str, Any],
    lines: Sequence[Mapping[str, Any]],
    figures: Sequence[str],
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
        "for an ingredient; alignment, aggregation and recalibration for a merge).\n",
        markdown_table(summary, columns),
    ]
    if lines:
        parts.append(_barriers(lines))
    parts += [f"![{name}]({name}.png)\n" for name in figures]
    return "\n".join(parts)


def _barriers(lines: Sequence[Mapping[str, Any]]) -> str:
    from statistics import fmean

    names = list(dict.fromkeys(line["name"] for line in lines))
    text = "| line from B to A | loss barrier | accuracy at α = 0.5 |\n| --- | ---: | ---: |\n"
    for name in names:
        same = [line for line in lines if line["name"] == name]
        middle = fmean(line["accuracy"][len(line["accuracy"]) // 2] for line in same)
        barrier = fmean(line["barrier"] for line in same)
        text += f"| {name} | {barrier:.4f} | {middle:.4f} |\n"
    return text


def _listed(what: str, values: Sequence[int]) -> str:
    plural = "s" if len(values) > 1 else ""
    return f"{what}{plural} {', '.join(str(value) for value in values)}"
