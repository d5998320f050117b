"""`tasks`: one body for several tasks, measured on seen and unseen ones, clean and corrupted."""

from pathlib import Path
from typing import Any

from lightning_merge.checkpoint import digest, read_checkpoint
from lightning_merge.commands import options
from lightning_merge.errors import OutputExistsError
from lightning_merge.files import claim_folder, read_json, write_json
from lightning_merge.study.build import build_recipe, instantiate_trainer
from lightning_merge.study.compare import check_names, file_name
from lightning_merge.study.plan import Task
from lightning_merge.study.pool import check_statistics_examples
from lightning_merge.study.provenance import provenance
from lightning_merge.study.publish import keep_only
from lightning_merge.study.recipe import Recipe
from lightning_merge.study.store import Store
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
    parser.add_argument("--training", type=dict[str, Any], default={}, help="for fine-tuning")
    parser.add_argument(
        "--train_heads",
        type=bool,
        default=False,
        help="whether fine-tuning changes the heads that were fitted to the pre-trained body",
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
    parsed = parser.parse_args(words)
    config = options.plain(parser, parsed)
    options.quiet()
    folder, overwrite = Path(config.pop("output")), config.pop("overwrite")
    trainer = instantiate_trainer(config["trainer"])
    trainer.pop("loggers")
    study = TaskStudy(**config)
    check_tasks(study)
    check_statistics_examples(study.statistics_examples)
    recipes = [build_recipe(recipe) for recipe in study.recipes]
    check_names(recipes)
    for recipe in recipes:
        check_task_recipe(recipe)
    digests = {path: digest(read_checkpoint(path).state_dict) for path in checkpoints_of(study)}
    work = plan_tasks(study, digests)
    store = Store(folder / "runs")
    done = sum(one.key in store for one in work)
    if done < len(work):
        check_work(study, recipes, trainer)
    _claim(folder, config, overwrite)
    options.console.print(f"[bold]{study.title}[/bold]: {len(work)} pieces, {done} already done")
    run_tasks(study, work, store, trainer, _say)
    _finish(folder, study, work, store, config, words)


def _claim(folder: Path, config: dict[str, Any], overwrite: bool) -> None:
    # The same study, or one with other seeds or recipes, goes on in its folder.
    kept = folder / "tasks.json"
    grows = ("seeds", "recipes", "title")
    if kept.is_file() and not overwrite:
        before = read_json(kept)
        if any(before.get(key) != config[key] for key in config if key not in grows):
            raise OutputExistsError(
                f"{folder} holds another study: choose another --output, or add --overwrite (what "
                "both studies share is not computed again)"
            )
    claim_folder(folder, () if kept.is_file() else RESULTS, overwrite)
    write_json(kept, config)


def _say(work: Task, result: dict[str, Any], stored: bool) -> None:
    text = f"  seed {work.seed}  {work.name}"
    if result.get("rows"):
        (row,) = task_table(result["rows"])
        text += "".join(
            f"  {name} {row[name]:.4f}" for name in ("seen", "unseen") if row.get(name) is not None
        )
    if result.get("seconds") is not None:
        text += f" ({result['seconds']:.1f} s)"
    if result.get("chosen"):
        text += f"; {result['chosen']}"
    options.console.print(text + ("  [dim](stored)[/dim]" if stored else ""), soft_wrap=True)


def _finish(
    folder: Path,
    study: TaskStudy,
    work: list[Task],
    store: Store,
    config: dict[str, Any],
    words: list[str],
) -> None:
    results = {one.key: store.result(one.key) for one in work}
    kept: set[Path] = set()
    for one in work:
        if one.kind == "merge":
            path = folder / "merges" / f"seed{one.seed}" / f"{file_name(one.name)}.ckpt"
            store.export(one.key, path)
            kept.add(path)
    keep_only(folder, kept)
    publish_tasks(folder, study, work, results, config, provenance(["tasks", *words]))
    rows = [row for result in results.values() for row in result.get("rows", [])]
    options.console.print(terminal(task_table(rows), study.title))
    under = corruption_table(rows)
    if under:
        options.console.print(terminal(under, f"Under corruptions, severity {study.severity}"))
    options.console.print(f"{folder}: results.csv, results.json, report.md, merges/")
