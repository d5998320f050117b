"""What `report.html` shows of a study of several tasks."""

from collections.abc import Mapping, Sequence
from typing import Any

from lightning_merge.measure.recommendation import Recommendation
from lightning_merge.report.comparison_page import judged_rows, shows
from lightning_merge.report.page import Page, PageTable
from lightning_merge.report.task_report import chosen_lines, intro, missing_lines
from lightning_merge.report.task_tables import (
    cells,
    condition_tables,
    corruption_table,
    majority_line,
    task_table,
)
from lightning_merge.study.task_plan import TaskStudy

Row = Mapping[str, Any]

_KINDS = {"ingredient": "pre-trained body", "ensemble": "a body for each task"}


def task_page(
    study: TaskStudy,
    results: Mapping[str, Any],
    recommendation: Recommendation,
    heads: Mapping[str, str],
    figures: Sequence[str],
) -> Page:
    """The page of a study of tasks; the arguments are those of `task_report`."""
    rows, summary, methods = (results[key] for key in ("measurements", "summary", "methods"))
    of_means = {row["method"]: row for row in summary}
    lines = task_table(rows)
    shown = cells(lines, summary, majority_line(rows))
    about = [of_means.get(line["method"], {}) for line in lines]
    caption = intro(study, rows, summary).replace("`", "'")
    tables = [judged_rows("Seen and unseen tasks", shown, about, caption, _KINDS)]
    if study.corruptions:
        tested = list(dict.fromkeys(row["task"] for row in rows))
        average = f"Averages over {', '.join(study.corrupted_tasks or tested)}."
        title = f"Corrupted test images, severity {study.severity}"
        tables.append(PageTable.of_cells(title, cells(corruption_table(rows)), average))
        tables += [
            PageTable.of_cells(f"{condition.replace('_', ' ').capitalize()}, by task", cells(table))
            for condition, table in condition_tables(rows).items()
        ]
    return Page(
        title=study.title,
        made_by=results,
        facts=_facts(study, recommendation),
        advice=recommendation.lines,
        chosen=recommendation.use is not None,
        tables=tables,
        figures={name: shows(name) for name in figures},
        choices=[
            *(f"{task}: the head is {head}" for task, head in heads.items()),
            *missing_lines(study, methods),
            *chosen_lines(methods),
        ],
        differing=results["differing"],
        config=results.get("config"),
    )


def _facts(study: TaskStudy, recommendation: Recommendation) -> list[str]:
    unseen = sum(bool(task.get("unseen")) for task in study.tasks)
    facts = [f"{len(study.tasks) - unseen} seen tasks", f"{unseen} unseen"]
    use, seeds = recommendation.use, len(study.seeds)
    if use is not None:
        facts.append(f"{use.test_examples:,} test examples of seen tasks")
        facts.append(f"{use.held_out_examples:,} held out of train")
    return [*facts, f"{seeds} seeds" if seeds > 1 else "1 seed"]
