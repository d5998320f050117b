"""Tables of measurements, summarised over seeds: for the terminal and for Markdown."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import fields
from functools import partial
from typing import Any

from lightning_merge.durations import in_seconds
from lightning_merge.errors import markdown_cell
from lightning_merge.measure.measurement import AVERAGE, Measurement
from lightning_merge.measure.recommendation import Recommendation, interval_over_seeds
from lightning_merge.measure.whole_means import mean_and_deviation, whole_mean
from lightning_merge.plots.figure import SIZE, pool_sizes
from lightning_merge.report.fitted_table import FittedTable

Row = Mapping[str, Any]
Shown = Callable[[float, float | None], str]

MAJORITY = "Most frequent class"

STYLES = {"best": "bold green", "tied": "green"}


def summarise(rows: Sequence[Row], columns: Sequence[str] = ()) -> list[dict[str, Any]]:
    """One row for each method: the mean over seeds, and the standard deviation.

    The measurements are rows of `Measurement.row`; `columns` are further numbers besides `accuracy`
    and `seconds`. First come the ingredients; then, for each number of ingredients, their average
    and the merges and ensembles of that many, in order of appearance. Each number is under its
    name, and its sample standard deviation under `name_sd` (None with one seed).
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


def judged(
    summary: Sequence[Row], rows: Sequence[Measurement], recommendation: Recommendation
) -> list[dict[str, Any]]:
    """The summary with intervals over test examples, the baseline, and what is best.

    These are `accuracy_low`, `accuracy_high` and `interval`, `majority`, `mark` (`best`, `tied` or
    empty) and `guessing` (whether the accuracy is not above the majority's).
    """
    names = list(dict.fromkeys(row.method for row in rows if row.kind == "ingredient"))
    guessing = {(one.method, one.pool_size) for one in recommendation.guessing}
    found = []
    for line in summary:
        method, size = line["method"], line[SIZE]
        of = names[:size] if method == AVERAGE else [method]
        kind, size_of_rows = line["kind"], None if line["kind"] == "ingredient" else size
        same = [row for row in rows if (row.kind, row.pool_size) == (kind, size_of_rows)]
        interval = interval_over_seeds([row for row in same if row.method in of])
        found.append(
            {
                **line,
                "accuracy_low": interval and interval.low,
                "accuracy_high": interval and interval.high,
                "interval": interval.how if interval else "",
                "majority": recommendation.majority,
                "mark": recommendation.mark(method, size),
                "guessing": (method, size) in guessing,
            }
        )
    return found


def metric_columns(rows: Sequence[Row]) -> list[str]:
    """The metrics that a table shows besides accuracy."""
    own = {field.name for field in fields(Measurement)}
    found = dict.fromkeys(name for row in rows for name in row if name not in own)
    return sorted(found, key=lambda name: (name == "loss", list(found).index(name)))


def terminal_table(summary: Sequence[Row], title: str, columns: Sequence[str] = ()) -> FittedTable:
    """The summary as a table for the terminal; the best on held-out data is in green."""
    # The loss is in the files; a terminal is narrow.
    header, *lines = table_cells(summary, [column for column in columns if column != "loss"])
    several = len(pool_sizes(summary)) > 1
    averages = [row["method"] == AVERAGE for row in summary]
    captions = []
    if any(row.get("accuracy_low") is not None for row in summary):
        captions.append("95%: over test examples")
    if any(row.get("seconds") is not None for row in summary):
        captions.append("seconds: to train or merge it")
    if any(row.get("flops") is not None for row in summary):
        captions.append("MFLOPs: for one prediction; a multiply-add counts as two")
    return FittedTable(
        header,
        lines,
        title,
        sections=[number for number, average in enumerate(averages) if average and several],
        styles={
            number: STYLES[row["mark"]] for number, row in enumerate(summary) if row.get("mark")
        },
        caption="; ".join(captions),
    )


def table_cells(summary: Sequence[Row], columns: Sequence[str] = ()) -> list[list[str]]:
    """The summary as text, a list of cells per line, headings first.

    The last line is the accuracy of always giving the most frequent class, where that is known.
    """
    shown = _shown(summary, columns)
    made: dict[str, Callable[[Row], str]] = {"method": lambda row: str(row["method"])}
    if len(pool_sizes(summary)) > 1:
        made["models"] = lambda row: "" if row.get(SIZE) is None else str(row[SIZE])
    for column in shown:
        made[column] = partial(number, column=column)
        if column == "accuracy" and any(row.get("accuracy_low") is not None for row in summary):
            made["95%"] = _interval
        if column == "accuracy" and any(row.get("held_out") is not None for row in summary):
            made["held out"] = held_out
    made |= {
        "seconds": lambda row: "-" if row.get("seconds") is None else in_seconds(row["seconds"]),
        "parameters": lambda row: f"{row['parameters']:,}",
        "MFLOPs": _mflops,
    }
    lines = [list(made), *([cell(row) for cell in made.values()] for row in summary)]
    majority = next((row["majority"] for row in summary if row.get("majority") is not None), None)
    if majority is not None and "accuracy" in made:
        known = {"method": MAJORITY, "accuracy": f"{majority:.4f}"}
        lines.append([known.get(name, "") for name in made])
    return lines


def markdown_table(summary: Sequence[Row], columns: Sequence[str] = ()) -> str:
    """The summary as a Markdown table."""
    return markdown_lines(table_cells(summary, columns))


def pool_table(summary: Sequence[Row]) -> str:
    """Accuracy by number of ingredients as a Markdown table, a row for each method."""
    made = [row for row in summary if row["kind"] != "ingredient" or row["method"] == AVERAGE]
    sizes = pool_sizes(summary)
    lines = [["accuracy", *(f"{size} models" for size in sizes)]]
    for method in dict.fromkeys(row["method"] for row in made):
        of = {row.get(SIZE): number(row, "accuracy") for row in made if row["method"] == method}
        lines.append([method, *(of.get(size, "-") for size in sizes)])
    return markdown_lines(lines)


def markdown_lines(cells: Sequence[Sequence[str]], words: Collection[str] = ()) -> str:
    """Cells as a Markdown table, headings first.

    Columns with these `words` as headings are not numbers; the first one never is.
    """
    header, *lines = cells
    sides = ["---", *("---" if name in words else "---:" for name in header[1:])]
    shown = [[markdown_cell(cell) for cell in line] for line in (header, sides, *lines)]
    return "".join("| " + " | ".join(line) + " |\n" for line in shown)


def _shown(summary: Sequence[Row], columns: Sequence[str]) -> list[str]:
    return [
        column
        for column in ["accuracy", *columns]
        if any(row.get(column) is not None for row in summary)
    ]


def _mean_row(rows: Sequence[Row], columns: Sequence[str]) -> dict[str, Any]:
    row = dict(rows[0])
    for column in ["accuracy", "held_out", "seconds", *columns]:
        row[column] = whole_mean(one.get(column) for one in rows)
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
    for column in ["accuracy", "held_out", "seconds", *columns]:
        found = mean_and_deviation(row.get(column) for row in rows)
        summary[column], summary[f"{column}_sd"] = found
    return summary


def fraction(value: float, deviation: float | None) -> str:
    """A number as tables in files show it."""
    return f"{value:.4f}" if deviation is None else f"{value:.4f} ± {deviation:.4f}"


def number(row: Row, column: str, shown: Shown = fraction) -> str:
    """A row's mean and deviation."""
    value = row.get(column)
    return "-" if value is None else shown(value, row.get(f"{column}_sd"))


def held_out(row: Row, shown: Shown = fraction) -> str:
    """The accuracy on held-out data, by which one is chosen, and whether it was."""
    text = number(row, "held_out", shown)
    return f"{text} {row['mark']}" if row.get("mark") else text


def _mflops(row: Row) -> str:
    if row.get("flops") is None:
        return "-"
    millions = row["flops"] / 1e6
    return f"{millions:,.1f}" if millions >= 0.95 else f"{millions:.2g}"


def _interval(row: Row) -> str:
    low, high = row.get("accuracy_low"), row.get("accuracy_high")
    return "-" if low is None or high is None else f"{low:.3f}-{high:.3f}"
