"""Tables of measurements: for the terminal, for Markdown, and over seeds."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

Row = Mapping[str, Any]

AVERAGE = "Ingredients' average"


def summarise(rows: Sequence[Row], columns: Sequence[str] = ()) -> list[dict[str, Any]]:
    """One row for each method: the mean over seeds, and the standard deviation.

    Args:
        rows: Measurements, as `Measurement.row` gives them.
        columns: Further numbers to summarise, beside `accuracy` and `seconds`.

    Returns:
        In order of appearance, with the ingredients' average after the last ingredient;
        each number under its name, and its sample standard deviation under `name_sd`
        (None with one seed).
    """
    methods = list(dict.fromkeys(row["method"] for row in rows))
    ingredients = [row for row in rows if row["kind"] == "ingredient"]
    names = list(dict.fromkeys(row["method"] for row in ingredients))
    summary = []
    for method in methods:
        summary.append(_summary(method, [row for row in rows if row["method"] == method], columns))
        if len(names) > 1 and method == names[-1]:
            # Averaged within each seed first: the deviation is that of the average.
            means = [
                _mean_row([row for row in ingredients if row["seed"] == seed], columns)
                for seed in dict.fromkeys(row["seed"] for row in ingredients)
            ]
            summary.append(_summary(AVERAGE, means, columns))
    return summary


def terminal_table(summary: Sequence[Row], title: str, columns: Sequence[str] = ()) -> Table:
    """The summary as a table for the terminal."""
    table = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
    table.add_column("method", no_wrap=True)
    # The loss is in the files; a terminal is narrow.
    shown = [column for column in _shown(summary, columns) if column != "loss"]
    for column in [*shown, "seconds", "parameters", "MFLOPs"]:
        table.add_column(column, justify="right", no_wrap=True)
    best = _best(summary)
    for row in summary:
        cells = [_number(row, column) for column in shown]
        style = "bold green" if row["method"] == best else None
        cells += [_seconds(row), _count(row["parameters"]), _mflops(row)]
        table.add_row(row["method"], *cells, style=style)
    if any(row.get("flops") is not None for row in summary):
        table.caption = "MFLOPs: for one image; a multiply-add counts as two"
        table.caption_justify = "left"
    return table


def markdown_table(summary: Sequence[Row], columns: Sequence[str] = ()) -> str:
    """The summary as a Markdown table."""
    shown = _shown(summary, columns)
    lines = ["| method | " + " | ".join([*shown, "seconds", "parameters", "MFLOPs"]) + " |"]
    lines.append("| --- |" + " ---: |" * (len(shown) + 3))
    for row in summary:
        cells = [_number(row, column) for column in shown]
        cells += [_seconds(row), _count(row["parameters"]), _mflops(row)]
        lines.append(f"| {row['method']} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _shown(summary: Sequence[Row], columns: Sequence[str]) -> list[str]:
    return [
        column
        for column in ["accuracy", *columns]
        if any(row.get(column) is not None for row in summary)
    ]


def _best(summary: Sequence[Row]) -> str | None:
    merges = [row for row in summary if row["kind"] == "merge" and row.get("accuracy") is not None]
    return max(merges, key=lambda row: row["accuracy"])["method"] if merges else None


def _mean_row(rows: Sequence[Row], columns: Sequence[str]) -> dict[str, Any]:
    row = dict(rows[0])
    for column in ["accuracy", "seconds", *columns]:
        values = [row[column] for row in rows if row.get(column) is not None]
        row[column] = statistics.fmean(values) if values else None
    return row


def _summary(method: str, rows: Sequence[Row], columns: Sequence[str]) -> dict[str, Any]:
    summary: dict[str, Any] = {
        "method": method,
        "kind": rows[0]["kind"],
        "parameters": rows[0]["parameters"],
        "flops": rows[0].get("flops"),
        "seeds": len(rows),
    }
    for column in ["accuracy", "seconds", *columns]:
        values = [row[column] for row in rows if row.get(column) is not None]
        # NaN is stored as null: a mean of the other seeds would hide the one that failed.
        summary[column] = statistics.fmean(values) if len(values) == len(rows) else None
        summary[f"{column}_sd"] = statistics.stdev(values) if len(values) > 1 else None
    return summary


def _number(row: Row, column: str) -> str:
    value, deviation = row.get(column), row.get(f"{column}_sd")
    if value is None:
        return "-"
    return f"{value:.4f}" if deviation is None else f"{value:.4f} ± {deviation:.4f}"


def _seconds(row: Row) -> str:
    return "-" if row.get("seconds") is None else f"{row['seconds']:.1f}"


def _mflops(row: Row) -> str:
    return "-" if row.get("flops") is None else f"{row['flops'] / 1e6:,.1f}"


def _count(number: int) -> str:
    return f"{number:,}"
