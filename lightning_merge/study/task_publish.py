"""What a study of several tasks leaves for people: tables, and all that they stand on."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_merge.files import write_csv, write_json, write_text
from lightning_merge.loggers import log_table
from lightning_merge.study.plan import Task
from lightning_merge.study.task_plan import TaskStudy
from lightning_merge.study.task_tables import (
    condition_tables,
    corruption_table,
    markdown,
    task_table,
)

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger

RESULTS = ("results.csv", "results.json", "report.md", "merges")

Results = Mapping[str, Mapping[str, Any]]


def publish_tasks(
    folder: Path,
    study: TaskStudy,
    work: Sequence[Task],
    results: Results,
    config: Mapping[str, Any],
    made_by: Mapping[str, Any],
    loggers: Sequence["Logger"] = (),
) -> list[Path]:
    """Writes `results.csv` (a line a measurement), `results.json` and `report.md`.

    Args:
        folder: Where to; files of earlier results are written over.
        study: The study.
        work: Its work.
        results: What each piece gave, by its key.
        config: The configuration.
        made_by: Command, versions and device (`provenance`).
        loggers: Where tables are sent as well.

    Returns:
        The files.
    """
    rows = [row for one in work for row in results[one.key].get("rows", [])]
    methods = [_method(one, results[one.key]) for one in work if "rows" in results[one.key]]
    tables: dict[str, Any] = {
        "tasks": task_table(rows),
        "corruptions": corruption_table(rows),
        "conditions": condition_tables(rows),
    }
    details = {
        "config": config,
        "ingredients": {
            one.key: {"task": one.name, "seed": one.seed, **_plain(results[one.key])}
            for one in work
            if one.kind in ("pretraining", "task")
        },
        "methods": methods,
        "measurements": rows,
        "tables": tables,
    }
    for logger in loggers:
        log_table(logger, "measurements", rows)
        for name in ("tasks", "corruptions"):
            if tables[name]:
                log_table(logger, name, tables[name])
    return [
        write_csv(folder / "results.csv", rows),
        write_json(folder / "results.json", {**made_by, **details}),
        write_text(folder / "report.md", _report(study, work, results, rows, methods, made_by)),
    ]


def _method(one: Task, result: Mapping[str, Any]) -> dict[str, Any]:
    names = ("parameters", "seconds", "train_examples", "choices", "chosen", "not_merged")
    known = {name: result[name] for name in names if name in result}
    return {"method": one.name, "kind": one.kind, "seed": one.seed, **known}


def _plain(result: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in result.items() if name != "settings"}


def _report(
    study: TaskStudy,
    work: Sequence[Task],
    results: Results,
    rows: Sequence[Mapping[str, Any]],
    methods: Sequence[Mapping[str, Any]],
    made_by: Mapping[str, Any],
) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in made_by["versions"].items())
    seeds = ", ".join(str(seed) for seed in study.seeds)
    tested = {row["task"]: row["test_examples"] for row in rows}
    unseen = [task["name"] for task in study.tasks if task.get("unseen")]
    parts = [
        f"# {study.title}\n",
        f"    {made_by['command']}\n",
        f"{versions}; {made_by['device']}.\n",
        f"Accuracy, mean ± standard deviation over seeds ({seeds}), on "
        + ", ".join(f"{count:,} test images of {name}" for name, count in tested.items())
        + ". Each row but the individual ones is one body, asked for each task through the "
        f"task's own head. Not among the ingredients: {', '.join(unseen) or 'none'}.\n",
        "## Seen and unseen tasks\n",
        markdown(task_table(rows)),
    ]
    heads = dict.fromkeys(
        f"* {one.name}: the head is {results[one.key]['head']}"
        for one in work
        if "head" in results[one.key]
    )
    parts.append("\n".join(heads) + "\n")
    without = ", and not in the means" if len(study.seeds) > 1 else ""
    missing = [
        f"* {method['method']}, seed {method['seed']}: not merged{without}: {method['not_merged']}"
        for method in methods
        if "not_merged" in method
    ]
    if missing:
        parts.append("\n".join(missing) + "\n")
    chosen = [
        f"* {method['method']}, seed {method['seed']}: {method['chosen']} "
        f"({method['train_examples']:,} labelled examples seen)"
        for method in methods
        if method.get("chosen")
    ]
    if chosen:
        parts.append("\n".join(chosen) + "\n")
    if study.corruptions:
        tasks = study.corrupted_tasks or list(tested)
        parts += [
            f"## Corrupted test images, severity {study.severity}\n",
            f"Averages over {', '.join(tasks)}.\n",
            markdown(corruption_table(rows)),
        ]
        for condition, table in condition_tables(rows).items():
            parts += [f"### {condition.replace('_', ' ')}\n", markdown(table)]
    return "\n".join(parts)
