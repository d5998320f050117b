"""The report of a study of several tasks, in Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

from lightning_merge.measure.recommendation import Recommendation
from lightning_merge.report.comparison_report import advice_part, intervals_line
from lightning_merge.report.publish import provenance_part
from lightning_merge.report.task_tables import (
    condition_tables,
    corruption_table,
    majority_line,
    markdown,
    task_table,
)
from lightning_merge.study.task_plan import TaskStudy

Row = Mapping[str, Any]


def task_report(
    study: TaskStudy,
    results: Mapping[str, Any],
    recommendation: Recommendation,
    heads: Mapping[str, str],
    figures: Sequence[str],
) -> str:
    """The text of `report.md` from the content of `results.json`.

    `heads` says how each task's head was made; `figures` are the names of those beside the report.
    """
    rows, summary, methods = (results[key] for key in ("measurements", "summary", "methods"))
    parts = [
        f"# {study.title}\n",
        advice_part(recommendation),
        provenance_part(results, results["differing"]),
        intro(study, rows, summary) + "\n",
        "## Seen and unseen tasks\n",
        markdown(task_table(rows), summary, majority_line(rows)),
    ]
    parts.append("".join(f"* {task}: the head is {head}\n" for task, head in heads.items()))
    for lines in (missing_lines(study, methods), chosen_lines(methods)):
        parts += ["".join(f"* {line}\n" for line in lines)] if lines else []
    if study.corruptions:
        tasks = study.corrupted_tasks or list(dict.fromkeys(row["task"] for row in rows))
        parts += [
            f"## Corrupted test images, severity {study.severity}\n",
            f"Averages over {', '.join(tasks)}.\n",
            markdown(corruption_table(rows)),
        ]
        for condition, table in condition_tables(rows).items():
            parts += [f"### {condition.replace('_', ' ')}\n", markdown(table)]
    parts += [f"![{name}]({name}.png)\n" for name in figures]
    return "\n".join(parts)


def intro(study: TaskStudy, rows: Sequence[Row], summary: Sequence[Row]) -> str:
    """What the numbers of the table are, and on how many images they stand."""
    seeds = ", ".join(str(seed) for seed in study.seeds)
    several = f", mean ± standard deviation over seeds ({seeds})," if len(study.seeds) > 1 else ""
    tested = {row["task"]: row["test_examples"] for row in rows}
    unseen = [task["name"] for task in study.tasks if task.get("unseen")]
    return (
        f"Accuracy{several} on "
        + ", ".join(f"{count:,} test images of {name}" for name, count in tested.items())
        + ". Each row but the individual ones is one body, tested on each task under the "
        f"task's own head. Not among the ingredients: {', '.join(unseen) or 'none'}. "
        + intervals_line(summary, "of the mean over seen tasks ")
        + "`held out` is the mean over seen tasks of the accuracy on examples held out of train: "
        "by it alone the best is chosen, and what is tied with it (within one example)."
    )


def missing_lines(study: TaskStudy, methods: Sequence[Row]) -> list[str]:
    """What was not merged, and why."""
    without = ", and not in the means" if len(study.seeds) > 1 else ""
    return [
        f"{method['method']}, seed {method['seed']}: not merged{without}: {method['not_merged']}"
        for method in methods
        if "not_merged" in method
    ]


def chosen_lines(methods: Sequence[Row]) -> list[str]:
    """What was chosen on labelled examples, and on how many."""
    return [
        f"{method['method']}, seed {method['seed']}: {method['chosen']} "
        f"({method['train_examples']:,} labelled examples seen)"
        for method in methods
        if method.get("chosen")
    ]
