"""`run_study` and `run_tasks`: plan a study, do its work, and read results from the store."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from lightning_merge.checkpoint import digest, read_checkpoint
from lightning_merge.errors import ConfigError
from lightning_merge.loggers import log_config
from lightning_merge.measure.outcome import check_names
from lightning_merge.measure.sweep import sweeps
from lightning_merge.quiet_trainers import quiet_trainers
from lightning_merge.randomness import randomness_of_caller
from lightning_merge.recipe.build import Plain, build_recipe, instantiate_trainer
from lightning_merge.recipe.context import check_statistics_examples
from lightning_merge.recipe.recipe import Recipe
from lightning_merge.report.comparison import Comparison
from lightning_merge.report.publish import WRITTEN
from lightning_merge.report.study_results import study_results, task_results
from lightning_merge.report.task_results import TaskResults
from lightning_merge.study.checks import check_recipes
from lightning_merge.study.estimate import Estimate, estimate
from lightning_merge.study.executor import Executor
from lightning_merge.study.executors.in_process import InProcess
from lightning_merge.study.folder import StudyFolder
from lightning_merge.study.joining import gather, joined_config, study_of
from lightning_merge.study.plan import Study, plan
from lightning_merge.study.runner import OnDone
from lightning_merge.study.store import Store
from lightning_merge.study.study_options import options_of
from lightning_merge.study.task_checks import check_task_recipe, check_work
from lightning_merge.study.task_plan import TaskStudy, check_tasks, checkpoints_of, plan_tasks
from lightning_merge.study.work import Work

R = TypeVar("R", Comparison, TaskResults)

# What may differ between two commands on one folder, the last of which counts.
_OF_REPORT = ("title", "paper", "differs")
_SHOWN = (*_OF_REPORT, "sweeps", *(entry.value.option for entry in sweeps))


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


@dataclass(frozen=True)
class Joined:
    """How many pieces of work `join` copied, and how many are left: none if it wrote results."""

    copied: int
    left: int


@dataclass(frozen=True)
class _Prepared(Generic[R]):
    """A study's pieces of work, what checks them untrained, and what reads their results."""

    works: Sequence[Work]
    check: Callable[[], None]
    results: Callable[[Store, list[str] | None], R]


def run_study(
    study: Study | Mapping[str, Any] | str | Path,
    output: str | Path,
    *,
    overwrite: bool = False,
    progress: bool = True,
    watcher: Watcher | None = None,
    executor: Executor | None = None,
) -> Comparison:
    """Trains ingredients, runs recipes on them over seeds; resumes where it was stopped.

    A folder has one study, to which every call adds: its seeds, recipes (by name), pool sizes and
    ingredients are those of all calls together, and a call ends when all of them are finished.
    Several processes may work in one folder at the same time, and share what is to be done.

    Args:
        study: A `Study`, the options of `study` as a mapping, or a YAML file with them.
        output: The folder for results and for finished work.
        overwrite: Whether the folder's study may be replaced, by another one or by one that does
            less. What both share is not computed again.
        progress: Whether to show progress bars.
        watcher: Callbacks and the command to store.
        executor: Does the pieces of work; this process if not given.

    Returns:
        The results of all seeds, in the form that `compare` returns.

    Raises:
        MergeError: If parts of the study do not fit together, or the folder has another study.
    """
    folder = StudyFolder(Path(output), "study.json", _SHOWN)
    config = config_of_study(study)
    return _run(folder, config, _of_study, overwrite, progress, watcher, executor)


def run_tasks(
    study: TaskStudy | Mapping[str, Any] | str | Path,
    output: str | Path,
    *,
    overwrite: bool = False,
    progress: bool = True,
    watcher: Watcher | None = None,
    executor: Executor | None = None,
) -> TaskResults:
    """Merges bodies of several tasks, and tests each merge on all; resumes where it was stopped.

    Args:
        study: A `TaskStudy`, the options of `tasks` as a mapping, or a YAML file with them.
        output: As for `run_study`.
        overwrite: As for `run_study`.
        progress: As for `run_study`.
        watcher: As for `run_study`.
        executor: As for `run_study`.

    Returns:
        The results: rows by method, task and condition.

    Raises:
        MergeError: As `run_study` does.
    """
    folder = StudyFolder(Path(output), "tasks.json", _OF_REPORT)
    config = options_of(study, TaskStudy)
    return _run(folder, config, _of_tasks, overwrite, progress, watcher, executor)


def estimate_study(
    study: Study | Mapping[str, Any] | str | Path, output: str | Path, overwrite: bool = False
) -> Estimate:
    """What is left of a study in a folder, how long it will take and how large it will be.

    Nothing is written into the folder. The arguments are those of `run_study`.

    Raises:
        MergeError: As `run_study` does before it begins.
    """
    folder = StudyFolder(Path(output), "study.json", _SHOWN)
    return _estimate(folder, config_of_study(study), _of_study, overwrite)


def estimate_tasks(
    study: TaskStudy | Mapping[str, Any] | str | Path, output: str | Path, overwrite: bool = False
) -> Estimate:
    """The same for `run_tasks`."""
    folder = StudyFolder(Path(output), "tasks.json", _OF_REPORT)
    return _estimate(folder, options_of(study, TaskStudy), _of_tasks, overwrite)


def join(folders: Sequence[str | Path], output: str | Path) -> Joined:
    """Puts several folders of one study together into one folder.

    Finished pieces are checked and copied with how they were made. Where nothing of the joined
    study is left to do, its results are written as well.

    Args:
        folders: Those of `run_study`, or those of `run_tasks`.
        output: The folder for all; it may be one that has a part of the study already.

    Raises:
        MergeError: If there are no folders, or they are of different studies.
    """
    paths = [Path(folder) for folder in folders]
    if not paths:
        raise ConfigError("join: there are no folders to put together: give those of a study")
    name = study_of(paths, ("study.json", "tasks.json"))
    shown = _SHOWN if name == "study.json" else _OF_REPORT
    sources = [StudyFolder(path, name, shown) for path in paths]
    target = StudyFolder(Path(output), name, shown)
    config = joined_config(sources)
    prepare: Callable[[Plain], _Prepared[Any]] = _of_study if name == "study.json" else _of_tasks
    with target.entered() as lock, target.turn():
        config = target.united(config)
        works = prepare(config).works
        target.claim(config, WRITTEN, False, lock)
        copied = gather([source.store for source in sources], target.store)
        left = sum(work.key not in target.store for work in works)
    if not left:
        _run(target, config, prepare, False, False, None, None)
    return Joined(copied, left)


def _estimate(
    folder: StudyFolder,
    config: Plain,
    prepare: Callable[[Plain], _Prepared[Any]],
    overwrite: bool,
) -> Estimate:
    prepare(config)
    folder.store.check_schema()
    prepared = prepare(folder.united(config, overwrite))
    prepared.check()
    return estimate(prepared.works, folder.store)


def config_of_study(study: Study | Mapping[str, Any] | str | Path) -> Plain:
    """All options of a study, as its folder keeps them."""
    config = options_of(study, Study)
    config["pool_sizes"] = config["pool_sizes"] or [len(config["ingredients"])]
    return config


def _of_study(config: Plain) -> _Prepared[Comparison]:
    made = Study.of_config(config)
    recipes = _recipes(made)
    works = plan(made)
    return _Prepared(
        works,
        lambda: check_recipes(made, recipes),
        lambda store, command: study_results(made, works, store, config, command),
    )


def _of_tasks(config: Plain) -> _Prepared[TaskResults]:
    made = TaskStudy(**config)
    check_tasks(made)
    recipes = _recipes(made)
    for recipe in recipes:
        check_task_recipe(recipe)
    digests = {path: digest(read_checkpoint(path).state_dict) for path in checkpoints_of(made)}
    works = plan_tasks(made, digests)
    return _Prepared(
        works,
        lambda: check_work(made, recipes),
        lambda store, command: task_results(made, works, store, config, command),
    )


def _recipes(study: Study | TaskStudy) -> list[Recipe]:
    check_statistics_examples(study.statistics_examples)
    recipes = [build_recipe(recipe) for recipe in study.recipes]
    check_names(recipes)
    return recipes


@quiet_trainers()
@randomness_of_caller()
def _run(
    folder: StudyFolder,
    config: Plain,
    prepare: Callable[[Plain], _Prepared[R]],
    overwrite: bool,
    progress: bool,
    watcher: Watcher | None,
    executor: Executor | None,
) -> R:
    """Does what remains of a folder's study, saves its results there, and returns them."""
    watcher, executor = watcher or Watcher(), executor or InProcess()
    prepared = prepare(config)
    executor.check()
    grown = False
    with folder.entered() as lock:
        store = folder.store
        store.check_schema()
        while True:
            with folder.turn():
                both = folder.stored() if grown else folder.united(config, overwrite)
                if both != config:
                    config, prepared = both, prepare(both)
                works = prepared.works
                loggers = instantiate_trainer(config.get("trainer") or {}).pop("loggers")
                done = sum(work.key in store for work in works)
                if done < len(works):
                    prepared.check()
                folder.claim(config, WRITTEN, overwrite, lock)
            for logger in loggers:
                log_config(logger, config)
            if watcher.on_plan is not None:
                watcher.on_plan(len(works), done)
            executor.run(works, store, watcher.on_done, progress)
            with folder.turn():
                # Another command may have added to the study meanwhile.
                grown = not folder.has(config)
                if not grown:
                    found = prepared.results(store, watcher.command)
                    found.loggers = loggers
                    found.save(folder.folder, overwrite=True)
                    folder.tidy(works)
                    return found
