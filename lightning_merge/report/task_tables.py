"""Tables of several tasks: averages over seen and unseen ones, and under corruptions.

Like Tables 1 and 2 of "Quality and Diversity Both Matters When Merging Models".
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from lightning_merge.measure.task_conditions import CLEAN
from lightning_merge.measure.whole_means import mean_and_deviation, whole_mean
from lightning_merge.report.fitted_table import FittedTable
from lightning_merge.report.summary import (
    MAJORITY,
    STYLES,
    Shown,
    fraction,
    held_out,
    markdown_lines,
    number,
)

Row = Mapping[str, Any]

SEEN, UNSEEN, ALL = "seen", "unseen", "all"
AVERAGE = "average"


def task_table(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Accuracy on each task, and averages over the seen, the unseen and all tasks.

    For each method of `measure_tasks`, in order of appearance, there is under each column's name
    the mean over seeds, under `name_sd` the sample standard deviation (None with one seed).
    Averages are taken within each seed first; one over a task that was not measured is None.
    Measurements under corruptions are ignored.
    """
    clean = [row for row in rows if row["condition"] == CLEAN]
    groups = {
        SEEN: _names(row for row in clean if row["seen"]),
        UNSEEN: _names(row for row in clean if not row["seen"]),
    }
    order = [*groups[SEEN], SEEN, *groups[UNSEEN], *([UNSEEN] if groups[UNSEEN] else []), ALL]
    groups[ALL] = [*groups[SEEN], *groups[UNSEEN]]
    return _table(clean, order, {name: tasks for name, tasks in groups.items() if name in order})


def corruption_table(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Accuracy under each corruption, averaged over the tasks that were measured under it.

    It is like `task_table`, with columns for the clean images of the same tasks, for each
    corruption, and for the average over corruptions; empty if there are no corruptions.
    """
    names = [name for name in _names(rows, "condition") if name != CLEAN]
    if not names:
        return []
    tasks = _names(row for row in rows if row["condition"] != CLEAN)
    kept = [row for row in rows if row["task"] in tasks]
    means = [
        {**row, "task": condition, "accuracy": whole_mean(values)}
        for condition in (CLEAN, *names)
        for row, values in _per_repetition(kept, condition, tasks)
    ]
    return _table(means, [CLEAN, *names, AVERAGE], {AVERAGE: names})


def condition_tables(rows: Sequence[Row]) -> dict[str, list[dict[str, Any]]]:
    """For each condition, the accuracy on each task that was also tested under corruptions."""
    tasks = _names(row for row in rows if row["condition"] != CLEAN)
    return {
        condition: _table(
            [row for row in rows if row["condition"] == condition and row["task"] in tasks],
            [*tasks, AVERAGE],
            {AVERAGE: tasks},
        )
        for condition in _names(rows, "condition")
        if tasks
    }


def majority_line(rows: Sequence[Row]) -> dict[str, Any] | None:
    """A line of `task_table` for always giving a task's most frequent class; None if unknown."""
    guessed = [
        {**row, "method": MAJORITY, "accuracy": row["majority"]}
        for row in rows
        if row.get("majority") is not None
    ]
    return next(iter(task_table(guessed)), None)


def joined_tables(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """All tables as one: columns of conditions are called `motion_blur: Cars`."""
    # What was not merged with every seed is a mean over those that are left.
    seeds = Counter(method for method, _ in {(row["method"], row["seed"]) for row in rows})
    joined = {row["method"]: {**row, "seeds": seeds[row["method"]]} for row in task_table(rows)}
    for condition, table in condition_tables(rows).items():
        for row in table:
            named = {f"{condition}: {name}": row[name] for name in row if name != "method"}
            joined[row["method"]] |= named
    return list(joined.values())


def markdown(table: Sequence[Row], summary: Sequence[Row] = (), last: Row | None = None) -> str:
    """A table as Markdown; the arguments are those of `cells`."""
    return markdown_lines(cells(table, summary, last))


def cells(
    table: Sequence[Row], summary: Sequence[Row] = (), last: Row | None = None
) -> list[list[str]]:
    """A table as text, a list of cells per line, headings first, and `last` below.

    The summary is what is known of each method's mean over the seen tasks (`summary.judged`): its
    interval and its held-out accuracy stand behind that mean.
    """
    return _text(table, summary, last, fraction)


def terminal(
    table: Sequence[Row], title: str, summary: Sequence[Row] = (), last: Row | None = None
) -> FittedTable:
    """The table of `cells` for a terminal, in per cent, with standard deviations below."""
    header, *lines = _text(table, summary, last, _per_cent)
    marks = {str(row["method"]): str(row.get("mark") or "") for row in summary}
    return FittedTable(
        header,
        lines,
        f"{title}: accuracy in %",
        styles={n: STYLES[marks[line[0]]] for n, line in enumerate(lines) if marks.get(line[0])},
        caption="95% (over test examples) and held out: of the mean over seen tasks"
        if "held out" in header
        else "",
    )


def _text(
    table: Sequence[Row], summary: Sequence[Row], last: Row | None, shown: Shown
) -> list[list[str]]:
    judged: dict[str, Callable[[Row], str]] = {}
    if any(row.get("accuracy_low") is not None for row in summary):
        judged["95%"] = partial(_ends, shown=shown)
    if any(row.get("held_out") is not None for row in summary):
        judged["held out"] = partial(held_out, shown=shown)
    known = {row["method"]: row for row in summary}
    made: dict[str, Callable[[Row], str]] = {"method": lambda row: str(row["method"])}
    for column in columns_of(table):
        made[column] = partial(number, column=column, shown=shown)
        if column == SEEN:
            made |= judged
    lines = []
    for row in [*table, *([last] if last else [])]:
        about = known.get(row["method"], {})
        lines.append([cell(about if name in judged else row) for name, cell in made.items()])
    return [list(made), *lines]


def _ends(row: Row, shown: Shown) -> str:
    low, high = row.get("accuracy_low"), row.get("accuracy_high")
    if low is None or high is None:
        return "-"
    # Four digits of an end say no more than three.
    return (
        f"{shown(low, None)}-{shown(high, None)}" if shown is _per_cent else f"{low:.3f}-{high:.3f}"
    )


def _per_cent(value: float, deviation: float | None) -> str:
    text = f"{100 * value:.1f}"
    return text if deviation is None else f"{text}\n±{100 * deviation:.1f}"


def columns_of(table: Sequence[Row]) -> list[str]:
    """The columns of numbers."""
    first = table[0] if table else {}
    return [name for name in first if f"{name}_sd" in first]


def _table(
    rows: Sequence[Row], order: Sequence[str], averages: Mapping[str, Sequence[str]]
) -> list[dict[str, Any]]:
    table = []
    for method in _names(rows, "method"):
        own = [row for row in rows if row["method"] == method]
        line: dict[str, Any] = {"method": method}
        for column in order:
            tasks = averages.get(column, [column])
            values = [_mean(own, seed, tasks) for seed in dict.fromkeys(row["seed"] for row in own)]
            line[column], line[f"{column}_sd"] = mean_and_deviation(values)
        table.append(line)
    return table


def _mean(rows: Sequence[Row], seed: int, tasks: Sequence[str]) -> float | None:
    found = {row["task"]: row["accuracy"] for row in rows if row["seed"] == seed}
    return whole_mean(found.get(task) for task in tasks)


def _per_repetition(
    rows: Sequence[Row], condition: str, tasks: Sequence[str]
) -> list[tuple[Row, list[float]]]:
    found: dict[tuple[str, int], list[Row]] = {}
    for row in (row for row in rows if row["condition"] == condition):
        found.setdefault((row["method"], row["seed"]), []).append(row)
    return [
        (same[0], [row["accuracy"] for row in same])
        for same in found.values()
        if {row["task"] for row in same} == set(tasks)
    ]


def _names(rows: Any, key: str = "task") -> list[str]:
    return list(dict.fromkeys(row[key] for row in rows))
