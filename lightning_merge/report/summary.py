"""Tables of measurements, summarised over seeds: for the terminal and for Markdown."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from rich.table import Table

from lightning_merge.measure.measurement import AVERAGE, Measurement
from lightning_merge.plots.figure import SIZE, pool_sizes

Row = Mapping[str, Any]


def summarise(rows: Sequence[Row], columns: Sequence[str] = ()) -> list[dict[str, Any]]:
    """One row for each method: the mean over seeds, and the standard deviation.

    Args:
        rows: Measurements, as `Measurement.row` returns them.
        columns: Further numbers to summarise, besides `accuracy` and `seconds`.

    Returns:
        The ingredients; then, for each number of ingredients, their average and the merges and
        ensembles of that many, in order of appearance. Each number is under its name, and its
        sample standard deviation under `name_sd` (None with one seed).
    """
    ingredients = [row for row in rows if row["kind"] == "ingredient"]
    made = [row for row in rows if row["kind"] != "ingredient"]
    names = list(dict.fromkeys(row["method"] for row in ingredients))
    summary = [
        _summary(name, [row for row in ingredients if row["method"] == name], columns)
        for name in names
    ]
    for size in pool_sizes(made) or [None]:
        first = [row for row in ingredients if row["method"] in names[:size]]
        if len(names) > 1:
            # Averaged within each seed first, so that the deviation is that of the average.
            means = [
                {**_mean_row([row for row in first if row["seed"] == seed], columns), SIZE: size}
                for seed in dict.fromkeys(row["seed"] for row in first)
            ]
            summary.append(_summary(AVERAGE, means, columns))
        of_size = [row for row in made if row.get(SIZE) == size]
        for method in dict.fromkeys(row["method"] for row in of_size):
            same = [row for row in of_size if row["method"] == method]
            summary.append(_summary(method, same, columns))
    return summary


def metric_columns(rows: Sequence[Row]) -> list[str]:
    """The metrics that a table shows besides accuracy."""
    own = {field.name for field in fields(Measurement)}
    found = dict.fromkeys(name for row in rows for name in row if name not in own)
    return sorted(found, key=lambda name: (name == "loss", list(found).index(name)))


def terminal_table(summary: Sequence[Row], title: str, columns: Sequence[str] = ()) -> Table:
    """The summary as a table for the terminal."""
    table = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
    table.add_column("method", no_wrap=True)
    # The loss is in the files; a terminal is narrow.
    shown = [column for column in _shown(summary, columns) if column != "loss"]
    sizes = pool_sizes(summary)
    of = ["models"] if len(sizes) > 1 else []
    for column in [*of, *shown, "seconds", "parameters", "MFLOPs"]:
        table.add_column(column, justify="right", no_wrap=True)
    # None is marked as the best: test accuracies must not be used to choose a method.
    for row in summary:
        cells = [_models(row)] if of else []
        if of and row["method"] == AVERAGE:
            table.add_section()
        cells += [_number(row, column) for column in shown]
        cells += [_seconds(row), _count(row["parameters"]), _mflops(row)]
        table.add_row(row["method"], *cells)
    if any(row.get("flops") is not None for row in summary):
        table.caption = "MFLOPs: for one image; a multiply-add counts as two"
        table.caption_justify = "left"
    return table


def table_cells(summary: Sequence[Row], columns: Sequence[str] = ()) -> list[list[str]]:
    """The summary as text, a list of cells per line, headings first."""
    shown = _shown(summary, columns)
    of = ["models"] if len(pool_sizes(summary)) > 1 else []
    lines = [["method", *of, *shown, "seconds", "parameters", "MFLOPs"]]
    for row in summary:
        cells = [row["method"], *([_models(row)] if of else [])]
        cells += [_number(row, column) for column in shown]
        lines.append([*cells, _seconds(row), _count(row["parameters"]), _mflops(row)])
    return lines


def markdown_table(summary: Sequence[Row], columns: Sequence[str] = ()) -> str:
    """The summary as a Markdown table."""
    header, *lines = table_cells(summary, columns)
    return markdown_lines([header, ["---", *["---:"] * (len(header) - 1)], *lines])


def pool_table(summary: Sequence[Row]) -> str:
    """Accuracy by number of ingredients as a Markdown table, a row for each method."""
    made = [row for row in summary if row["kind"] != "ingredient" or row["method"] == AVERAGE]
    sizes = pool_sizes(summary)
    lines = [["accuracy", *(f"{size} models" for size in sizes)]]
    lines.append(["---", *["---:"] * len(sizes)])
    for method in dict.fromkeys(row["method"] for row in made):
        of = {row.get(SIZE): _number(row, "accuracy") for row in made if row["method"] == method}
        lines.append([method, *(of.get(size, "-") for size in sizes)])
    return markdown_lines(lines)


def markdown_lines(lines: Sequence[Sequence[str]]) -> str:
    """Cells as a Markdown table; the second line sets the alignment of columns."""
    return "".join("| " + " | ".join(cells) + " |\n" for cells in lines)


def _shown(summary: Sequence[Row], columns: Sequence[str]) -> list[str]:
    return [
        column
        for column in ["accuracy", *columns]
        if any(row.get(column) is not None for row in summary)
    ]


def _mean_row(rows: Sequence[Row], columns: Sequence[str]) -> dict[str, Any]:
    row = dict(rows[0])
    for column in ["accuracy", "seconds", *columns]:
        values = [row[column] for row in rows if row.get(column) is not None]
        row[column] = statistics.fmean(values) if len(values) == len(rows) else None
    return row


def _summary(method: str, rows: Sequence[Row], columns: Sequence[str]) -> dict[str, Any]:
    summary: dict[str, Any] = {
        "method": method,
        "kind": rows[0]["kind"],
        SIZE: rows[0].get(SIZE),
        "parameters": rows[0]["parameters"],
        "flops": rows[0].get("flops"),
        "seeds": len(rows),
    }
    for column in ["accuracy", "seconds", *columns]:
        values = [row[column] for row in rows if row.get(column) is not None]
        # NaN is stored as null; a mean over the other seeds would hide the failed one.
        whole = len(values) == len(rows)
        summary[column] = statistics.fmean(values) if whole else None
        summary[f"{column}_sd"] = statistics.stdev(values) if whole and len(values) > 1 else None
    return summary


def _number(row: Row, column: str) -> str:
    value, deviation = row.get(column), row.get(f"{column}_sd")
    if value is None:
        return "-"
    return f"{value:.4f}" if deviation is None else f"{value:.4f} ± {deviation:.4f}"


def _models(row: Row) -> str:
    return "" if row.get(SIZE) is None else str(row[SIZE])


def _seconds(row: Row) -> str:
    return "-" if row.get("seconds") is None else f"{row['seconds']:.1f}"


def _mflops(row: Row) -> str:
    return "-" if row.get("flops") is None else f"{row['flops'] / 1e6:,.1f}"


def _count(number: int) -> str:
    return f"{number:,}"
