"""Checks of a study of tasks on networks that have learned nothing, before any is trained."""

from collections.abc import Sequence

from lightning_merge.checkpoint import StateDict, fit_names, read_checkpoint, tensors_of
from lightning_merge.division import warn_of_other_divisions
from lightning_merge.errors import ConfigError
from lightning_merge.measure.task_conditions import Conditions
from lightning_merge.measure.task_heads import check_images_for, check_prompts, module_for
from lightning_merge.preprocessing import warn_of_other_classes
from lightning_merge.recipe.build import trainer_of
from lightning_merge.recipe.recalibration import keeps_statistics
from lightning_merge.recipe.recipe import Recipe
from lightning_merge.recipe.task_context import TaskContext, TaskData, head_of
from lightning_merge.study.kinds.task_training import headless, set_up
from lightning_merge.study.plan import determining
from lightning_merge.study.task_plan import TaskStudy, further_networks


def check_task_recipe(recipe: Recipe) -> None:
    """Checks that a recipe makes one body without tasks' labels; a `ConfigError` if not."""
    kind = type(recipe.aggregate).__name__
    if recipe.aggregate.is_ensemble:
        raise ConfigError(
            f"recipe '{recipe.name}': {kind} makes no one body for all tasks: leave it out"
        )
    if recipe.aggregate.learns:
        raise ConfigError(
            f"recipe '{recipe.name}': {kind} trains on one task's labels, and there are several "
            "tasks: leave it out"
        )


def check_work(study: TaskStudy, recipes: Sequence[Recipe]) -> None:
    """Checks data and recipes on networks that have learned nothing, before any is trained."""
    seed = study.seeds[0]
    networks = {one["name"]: further_networks(one) for one in study.tasks}
    trained = [one for task in study.tasks for one in (task, *networks[task["name"]])]
    changes = [study.training, *(one.get("training") or {} for one in trained)]
    body: StateDict | None = None
    if study.pretraining is not None:
        changes.append(study.pretraining.get("trainer") or {})
        data = set_up(study.data(study.pretraining["data"], seed))
        start = module_for(study.pretraining_model or study.model, data)
        body = headless(tensors_of(start), start, head_of(start, data, tensors_of(start)))
    for one in changes:
        trainer_of({**determining(study.trainer), **one}, False)()
    tasks = []
    for one in study.tasks:
        check_prompts(study.model, one)
        data = set_up(study.data(one["data"], seed))
        path = one.get("checkpoint")
        read = None if path is None else read_checkpoint(path)
        module = module_for(study.model, data, read)
        if read is not None:
            named = [one["name"]], [read.content], data
            warn_of_other_divisions(*named)
            warn_of_other_classes(*named)
        check_images_for(module, data, one["name"])
        head = head_of(module, data, tensors_of(module))
        if len(head) == len(tensors_of(module)):
            raise ConfigError(
                f"task '{one['name']}': the network is one layer, which is the task's head, and "
                "has no body to merge: choose another model"
            )
        if body is not None and path is None:
            fit_names({**body, **head}, tensors_of(module), "the pre-trained network")
        tasks.append(TaskData(one["name"], module, head, data, not one.get("unseen")))
    if study.task_statistics and not keeps_statistics(tasks[0].module):
        raise ConfigError(
            "task_statistics: this network has no BatchNorm statistics, of a task or otherwise: "
            "leave it out"
        )
    bodies = [tensors_of(task.module) for task in tasks if task.seen]
    context = TaskContext.of_tasks(
        tasks,
        bodies,
        bodies[0],
        trainer_of(determining(study.trainer), False),
        {
            one["name"]: (task.name, tensors_of(task.module))
            for task in tasks
            for one in networks[task.name]
        },
        statistics_examples=study.statistics_examples,
        task_statistics=study.task_statistics,
    )
    Conditions(tasks, study.corruptions, study.severity, study.corrupted_tasks).check()
    for recipe in recipes:
        recipe.check_context(context)
