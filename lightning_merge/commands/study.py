"""`study`: trains the ingredients too, over seeds, and goes on where it was stopped."""

from pathlib import Path
from typing import Any

from lightning_merge.checkpoint import read_checkpoint
from lightning_merge.commands import options
from lightning_merge.commands.going_on import Run
from lightning_merge.study.barrier import check_triangle
from lightning_merge.study.build import build_module, build_recipe
from lightning_merge.study.compare import check_names, merge_path, network_name
from lightning_merge.study.plan import Study, Task, plan
from lightning_merge.study.pool import check_statistics_examples
from lightning_merge.study.provenance import provenance
from lightning_merge.study.publish import RESULTS, keep_only, metric_columns, publish
from lightning_merge.study.recipe import Recipe
from lightning_merge.study.report import summarise, terminal_table
from lightning_merge.study.run import check_recipes, run


def study(words: list[str]) -> None:
    """Trains ingredients, runs recipes on them, and writes tables, figures and a report.

    Args:
        words: The command line after `study`.

    Raises:
        MergeError: If the user can mend it.
    """
    parser = options.parser(
        "study",
        "Trains the ingredients that are missing, runs recipes on them over seeds, reports.",
        "results.csv, results.json, report.md, figures, merges and finished runs",
    )
    options.add_model(parser)
    parser.add_argument("--ingredients", type=list[dict[str, Any]], default=[{}, {}])
    parser.add_argument("--training", type=dict[str, Any], default={})
    parser.add_argument(
        "--start",
        type=dict[str, Any] | None,
        default=None,
        help="the Trainer's arguments, for example '{max_epochs: 2}', for a network that all "
        "ingredients start from; each has initial weights of its own if not given",
    )
    parser.add_argument("--seeds", type=list[int], default=[0])
    parser.add_argument("--recipes", type=list[Recipe], required=True)
    options.add_landscape(parser)
    options.add_pools(parser)
    options.add_statistics(parser)
    parser.add_argument("--title", type=str, default="Study")
    options.add_data_and_trainer(parser)
    asked = Run.of(parser, words)
    config = asked.config
    config["pool_sizes"] = config["pool_sizes"] or [len(config["ingredients"])]
    planned = Study(**config)
    recipes = [build_recipe(recipe) for recipe in planned.recipes]
    check_names(recipes)
    check_triangle(planned.triangle, len(planned.ingredients))
    check_statistics_examples(planned.statistics_examples)
    tasks = plan(planned)
    store = asked.store
    done = {task.key for task in tasks if task.key in store}
    if len(done) < len(tasks):
        check_recipes(planned, recipes, asked.trainer)
    asked.claim("study.json", RESULTS, ("title", "barrier", "triangle", "magnitudes"))

    options.console.print(
        f"[bold]{planned.title}[/bold]: {len(tasks)} tasks, {len(done)} already done"
    )
    run(planned, tasks, store, asked.trainer, on_done=_say)
    _finish(asked, planned, tasks, words)


def _say(task: Task, result: dict[str, Any], stored: bool) -> None:
    size = (result.get("row") or {}).get("pool_size")
    text = f"  seed {task.seed}  {task.name}" + (f" of {size}" if size else "")
    row = result.get("row")
    if row is not None and row["accuracy"] is not None:
        text += f": {row['accuracy']:.4f} ({row['seconds']:.1f} s)"
    if row is not None and row.get("chosen"):
        text += f"; {row['chosen']}"
    options.console.print(text + ("  [dim](stored)[/dim]" if stored else ""), soft_wrap=True)


def _finish(asked: Run, planned: Study, tasks: list[Task], words: list[str]) -> None:
    folder, store = asked.folder, asked.store
    results = {task.key: store.result(task.key) for task in tasks}
    rows = [result["row"] for result in results.values() if "row" in result]
    lines = [line for result in results.values() for line in result.get("lines", [])]
    triangles = [one for result in results.values() for one in result.get("triangles", [])]
    magnitudes = [one for result in results.values() for one in result.get("magnitudes", [])]
    alphas = None
    kept: set[Path] = set()
    for task in tasks:
        if task.kind != "merge" or not store.weights(task.key).is_file():
            continue
        path = _merge_path(folder, planned, task)
        store.export(task.key, path)
        kept.add(path)
        origin = read_checkpoint(path).content["lightning_merge"]
        alphas = origin.get("alphas", alphas)
    columns = metric_columns(rows)
    options.console.print(terminal_table(summarise(rows, columns), planned.title, columns))
    details = {
        "config": asked.config,
        "network": network_name(build_module(planned.model)),
        "ingredients": {
            task.key: results[task.key]["digest"] for task in tasks if task.kind == "ingredient"
        },
        "split_hashes": {
            task.key: result.get("split_hash")
            for task, result in zip(tasks, results.values(), strict=True)
        },
        "statistics_examples": planned.statistics_examples,
        "choices": {
            f"{task.name}{_of_size(planned, task)}, seed {task.seed}": results[task.key]["choices"]
            for task in tasks
            if results[task.key].get("choices")
        },
    }
    made_by = provenance(["study", *words])
    keep_only(folder, kept)
    publish(
        folder,
        planned.title,
        rows,
        made_by,
        details,
        lines,
        triangles,
        alphas,
        asked.loggers,
        magnitudes,
    )
    options.console.print(
        f"{folder}: results.csv, results.json, report.md, figures, merges/", soft_wrap=True
    )


def _of_size(planned: Study, task: Task) -> str:
    return f", {len(task.needs)} ingredients" if len(planned.pool_sizes) > 1 else ""


def _merge_path(folder: Path, planned: Study, task: Task) -> Path:
    path = merge_path(folder, task.name, len(task.needs), planned.pool_sizes)
    below = path.relative_to(folder / "merges")
    return folder / "merges" / f"seed{task.seed}" / below
