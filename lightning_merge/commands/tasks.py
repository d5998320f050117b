"""`tasks`: one body for several tasks, measured on seen and unseen ones, clean and corrupted."""

from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule

from lightning_merge.checkpoint import digest, read_checkpoint
from lightning_merge.commands import options
from lightning_merge.commands.going_on import Run
from lightning_merge.study.build import build_recipe
from lightning_merge.study.compare import check_names, file_name
from lightning_merge.study.plan import Task
from lightning_merge.study.pool import check_statistics_examples
from lightning_merge.study.provenance import provenance
from lightning_merge.study.publish import keep_only
from lightning_merge.study.recipe import Recipe
from lightning_merge.study.task_plan import TaskStudy, check_tasks, checkpoints_of, plan_tasks
from lightning_merge.study.task_publish import RESULTS, publish_tasks
from lightning_merge.study.task_run import check_task_recipe, check_work, run_tasks
from lightning_merge.study.task_tables import corruption_table, task_table, terminal


def tasks(words: list[str]) -> None:
    """Fine-tunes a body on tasks where that is missing, merges, and measures on all tasks.

    Args:
        words: The command line after `tasks`.

    Raises:
        MergeError: If the user can mend it.
    """
    parser = options.parser(
        "tasks",
        "Merges bodies that were fine-tuned on different tasks, and measures each merge on every "
        "task under its own head: averages over seen and unseen tasks, and under corruptions.",
        "results.csv, results.json, report.md, merges and finished runs",
    )
    options.add_optional_model(parser)
    parser.add_argument("--tasks", type=list[dict[str, Any]], required=True)
    parser.add_argument("--recipes", type=list[Recipe], required=True)
    parser.add_argument("--pretrained", type=str | None, default=None, help="a checkpoint")
    parser.add_argument(
        "--pretraining",
        type=dict[str, Any] | None,
        default=None,
        help="`data` and `trainer` to make the pre-trained network with, where there is none",
    )
    parser.add_subclass_arguments(
        LightningModule,
        "pretraining_model",
        required=False,
        help="the model while it is pre-trained, where that has another optimizer",
    )
    parser.add_argument("--training", type=dict[str, Any], default={}, help="for fine-tuning")
    parser.add_argument(
        "--train_heads",
        type=bool,
        default=False,
        help="whether fine-tuning changes the heads that were fitted to the pre-trained body",
    )
    parser.add_argument(
        "--head_examples_per_class",
        type=int | None,
        default=None,
        help="fit heads on so few labelled examples of each class; on all if not given",
    )
    parser.add_argument(
        "--task_statistics",
        type=bool,
        default=False,
        help="ask every body for a task with BatchNorm statistics of that task's images",
    )
    parser.add_argument("--seeds", type=list[int], default=[0])
    parser.add_argument(
        "--data_defaults", type=dict[str, Any], default={}, help="init_args of every data module"
    )
    parser.add_argument("--root", type=str | None, default=None, help="replaces every data `root`")
    parser.add_argument("--corruptions", type=list[str], default=[])
    parser.add_argument("--severity", type=int, default=3)
    parser.add_argument(
        "--corrupted_tasks", type=list[str], default=[], help="all if none is named"
    )
    options.add_statistics(parser)
    parser.add_argument("--title", type=str, default="Tasks")
    options.add_trainer(parser)
    asked = Run.of(parser, words)
    study = TaskStudy(**asked.config)
    check_tasks(study)
    check_statistics_examples(study.statistics_examples)
    recipes = [build_recipe(recipe) for recipe in study.recipes]
    check_names(recipes)
    for recipe in recipes:
        check_task_recipe(recipe)
    digests = {path: digest(read_checkpoint(path).state_dict) for path in checkpoints_of(study)}
    work = plan_tasks(study, digests)
    store = asked.store
    done = sum(one.key in store for one in work)
    if done < len(work):
        check_work(study, recipes, asked.trainer)
    asked.claim("tasks.json", RESULTS, ("title",))
    options.console.print(f"[bold]{study.title}[/bold]: {len(work)} pieces, {done} already done")
    run_tasks(study, work, store, asked.trainer, _say)
    _finish(asked, study, work, words)


def _say(work: Task, result: dict[str, Any], stored: bool) -> None:
    text = f"  seed {work.seed}  {work.name}"
    if result.get("rows"):
        (row,) = task_table(result["rows"])
        text += "".join(
            f"  {name} {row[name]:.4f}" for name in ("seen", "unseen") if row.get(name) is not None
        )
    if "not_merged" in result:
        text += f": not merged: {result['not_merged']}"
    if result.get("seconds") is not None:
        text += f" ({result['seconds']:.1f} s)"
    if result.get("chosen"):
        text += f"; {result['chosen']}"
    options.console.print(text + ("  [dim](stored)[/dim]" if stored else ""), soft_wrap=True)


def _finish(asked: Run, study: TaskStudy, work: list[Task], words: list[str]) -> None:
    folder, store = asked.folder, asked.store
    results = {one.key: store.result(one.key) for one in work}
    kept: set[Path] = set()
    for one in work:
        if one.kind == "merge" and store.weights(one.key).is_file():
            path = folder / "merges" / f"seed{one.seed}" / f"{file_name(one.name)}.ckpt"
            store.export(one.key, path)
            kept.add(path)
    keep_only(folder, kept)
    made_by = provenance(["tasks", *words])
    publish_tasks(folder, study, work, results, asked.config, made_by, asked.loggers)
    rows = [row for result in results.values() for row in result.get("rows", [])]
    options.console.print(terminal(task_table(rows), study.title, options.console.width))
    under = corruption_table(rows)
    if under:
        title = f"Under corruptions, severity {study.severity}"
        options.console.print(terminal(under, title, options.console.width))
    options.console.print(f"{folder}: results.csv, results.json, report.md, merges/")
