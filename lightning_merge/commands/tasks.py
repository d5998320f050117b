"""`tasks`: one body for several tasks, tested on seen and unseen ones, clean and corrupted."""

from collections.abc import Mapping
from typing import Any

from jsonargparse import ArgumentParser

from lightning_merge.commands import options
from lightning_merge.commands.execution import add_execution, run
from lightning_merge.recipe.recipe import Recipe
from lightning_merge.report.task_tables import task_table
from lightning_merge.study_verbs import estimate_tasks, run_tasks


def tasks(words: list[str]) -> None:
    """Fine-tunes a body on tasks where that is missing, merges, and measures on all tasks."""
    result, folder = run("tasks", _parser(), words, estimate_tasks, run_tasks, _measured)
    if result is None:
        return
    options.console.print(result.table())
    under = result.corruptions()
    if under is not None:
        options.console.print(under)
    options.print_advice(result.recommendation.text)
    options.print_written(folder)


def _parser() -> ArgumentParser:
    parser = options.parser(
        "tasks",
        "Merges bodies that were fine-tuned on different tasks, and measures each merge on every "
        "task under its own head: averages over seen and unseen tasks, and under corruptions.",
        "results.csv, results.json, report.md, merges and finished runs",
    )
    options.add_model(parser)
    _add_tasks(parser)
    _add_training(parser)
    parser.add_argument(
        "--seeds", type=list[int], default=[0], help="the study is run once for each"
    )
    _add_data(parser)
    options.add_statistics(parser)
    parser.add_argument("--title", type=str, default="Tasks", help=options.TITLE)
    options.add_paper(parser)
    options.add_trainer(parser)
    add_execution(parser)
    return parser


def _add_tasks(to: ArgumentParser) -> None:
    to.add_argument(
        "--tasks",
        type=list[dict[str, Any]],
        required=True,
        help="a list of tasks, each a name, its data module, and whether it is seen in training",
    )
    to.add_argument("--recipes", type=list[Recipe], required=True, help=options.RECIPES)


def _add_training(to: ArgumentParser) -> None:
    to.add_argument(
        "--pretrained",
        type=str | None,
        default=None,
        help="the checkpoint that all tasks are fine-tuned from",
    )
    to.add_argument(
        "--pretraining",
        type=dict[str, Any] | None,
        default=None,
        help="`data` and `trainer` to make the pre-trained network with, where there is none",
    )
    trained = "the model while it is pre-trained, where that has another optimizer"
    options.add_model(to, trained, "pretraining_model")
    to.add_argument(
        "--training",
        type=dict[str, Any],
        default={},
        help="the Trainer's arguments for fine-tuning",
    )
    to.add_argument(
        "--train_heads",
        type=bool,
        default=False,
        help="whether fine-tuning changes the heads that were fitted to the pre-trained body",
    )
    to.add_argument(
        "--head_examples_per_class",
        type=int | None,
        default=None,
        help="fit heads on so few labelled examples of each class; on all if not given",
    )
    to.add_argument(
        "--task_statistics",
        type=bool,
        default=False,
        help="ask every body for a task with BatchNorm statistics of that task's images",
    )


def _add_data(to: ArgumentParser) -> None:
    to.add_argument(
        "--data_defaults", type=dict[str, Any], default={}, help="init_args of every data module"
    )
    to.add_argument("--root", type=str | None, default=None, help="replaces every data `root`")
    to.add_argument(
        "--corruptions",
        type=list[str],
        default=[],
        help="measure on test images that are corrupted so, too, for example '[motion_blur]'",
    )
    to.add_argument("--severity", type=int, default=3, help="of the corruptions, from 1 to 5")
    to.add_argument(
        "--corrupted_tasks",
        type=list[str],
        default=[],
        help="the tasks whose test images are corrupted; all if none is named",
    )


def _measured(result: Mapping[str, Any]) -> str:
    text = ""
    if result.get("rows"):
        (row,) = task_table(result["rows"])
        shown = (name for name in ("seen", "unseen") if row.get(name) is not None)
        text += "".join(f"  {name} {row[name]:.4f}" for name in shown)
    if "not_merged" in result:
        text += f": not merged: {result['not_merged']}"
    return text
