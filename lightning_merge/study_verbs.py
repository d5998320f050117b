"""`run_study` and `run_tasks`: plan a study, do its work, and read results from the store."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from lightning_merge.checkpoint import digest, read_checkpoint
from lightning_merge.loggers import log_config
from lightning_merge.measure.outcome import check_names
from lightning_merge.measure.sweep import sweeps
from lightning_merge.recipe.build import Plain, build_recipe, instantiate_trainer
from lightning_merge.recipe.context import check_statistics_examples
from lightning_merge.recipe.recipe import Recipe
from lightning_merge.report.comparison import Comparison
from lightning_merge.report.publish import WRITTEN
from lightning_merge.report.study_results import study_results, task_results
from lightning_merge.report.task_results import TaskResults
from lightning_merge.study.checks import check_recipes
from lightning_merge.study.folder import StudyFolder
from lightning_merge.study.plan import Study, plan
from lightning_merge.study.runner import OnDone, run
from lightning_merge.study.store import Store
from lightning_merge.study.study_options import options_of
from lightning_merge.study.task_checks import check_task_recipe, check_work
from lightning_merge.study.task_plan import TaskStudy, check_tasks, checkpoints_of, plan_tasks
from lightning_merge.study.work import Work

R = TypeVar("R", Comparison, TaskResults)


@dataclass(frozen=True)
class Watcher:
    """Callbacks of a running study, and its command.

    Attributes:
        command: The arguments after `python -m lightning_merge`; those of this process if None.
        on_plan: Called with the number of pieces of work and the number already done.
        on_done: Called with each piece of work, its result, and whether it was already stored.
    """

    command: list[str] | None = None
    on_plan: Callable[[int, int], None] | None = None
    on_done: OnDone | None = None


def run_study(
    study: Study | Mapping[str, Any] | str | Path,
    output: str | Path,
    *,
    overwrite: bool = False,
    progress: bool = True,
    watcher: Watcher | None = None,
) -> Comparison:
    """Trains ingredients, runs recipes on them over seeds; resumes where it was stopped.

    Args:
        study: A `Study`, the options of `study` as a mapping, or a YAML file with them.
        output: The folder for results and for finished work.
        overwrite: Whether another study's results there may be overwritten.
        progress: Whether to show progress bars.
        watcher: Callbacks and the command to store.

    Returns:
        The results of all seeds, in the form that `compare` returns.

    Raises:
        MergeError: If parts of the study do not fit together, or the folder has another study.
    """
    config = options_of(study, Study)
    made = Study.of_config(config)
    made.pool_sizes = made.pool_sizes or [len(made.ingredients)]
    config["pool_sizes"] = made.pool_sizes
    recipes = _recipes(made)
    shown = ("title", "sweeps", *(entry.value.option for entry in sweeps))
    return _run(
        StudyFolder(Path(output), "study.json", shown),
        config,
        plan(made),
        lambda: check_recipes(made, recipes),
        partial(study_results, made),
        overwrite,
        progress,
        watcher or Watcher(),
    )


def run_tasks(
    study: TaskStudy | Mapping[str, Any] | str | Path,
    output: str | Path,
    *,
    overwrite: bool = False,
    progress: bool = True,
    watcher: Watcher | None = None,
) -> TaskResults:
    """Merges bodies of several tasks, and tests each merge on all; resumes where it was stopped.

    Args:
        study: A `TaskStudy`, the options of `tasks` as a mapping, or a YAML file with them.
        output: As for `run_study`.
        overwrite: As for `run_study`.
        progress: As for `run_study`.
        watcher: As for `run_study`.

    Returns:
        The results: rows by method, task and condition.

    Raises:
        MergeError: As `run_study` does.
    """
    config = options_of(study, TaskStudy)
    made = TaskStudy(**config)
    check_tasks(made)
    recipes = _recipes(made)
    for recipe in recipes:
        check_task_recipe(recipe)
    digests = {path: digest(read_checkpoint(path).state_dict) for path in checkpoints_of(made)}
    return _run(
        StudyFolder(Path(output), "tasks.json", ("title",)),
        config,
        plan_tasks(made, digests),
        lambda: check_work(made, recipes),
        partial(task_results, made),
        overwrite,
        progress,
        watcher or Watcher(),
    )


def _recipes(study: Study | TaskStudy) -> list[Recipe]:
    check_statistics_examples(study.statistics_examples)
    recipes = [build_recipe(recipe) for recipe in study.recipes]
    check_names(recipes)
    return recipes


def _run(
    folder: StudyFolder,
    config: Plain,
    works: Sequence[Work],
    check: Callable[[], None],
    results: Callable[[Sequence[Work], Store, Plain, list[str] | None], R],
    overwrite: bool,
    progress: bool,
    watcher: Watcher,
) -> R:
    """Does a study's remaining work, saves its results in its folder, and returns them."""
    with folder.alone():
        store = folder.store
        store.check_schema()
        loggers = instantiate_trainer(config.get("trainer") or {}).pop("loggers")
        done = sum(work.key in store for work in works)
        if done < len(works):
            check()
        folder.claim(config, WRITTEN, overwrite)
        for logger in loggers:
            log_config(logger, config)
        if watcher.on_plan is not None:
            watcher.on_plan(len(works), done)
        run(works, store, watcher.on_done, progress)
        found = results(works, store, config, watcher.command)
        found.loggers = loggers
        found.save(folder.folder, overwrite=True)
        return found
