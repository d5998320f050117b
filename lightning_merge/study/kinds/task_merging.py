"""Merging bodies of several tasks, and the two rows that merges are compared with."""

from lightning.pytorch import LightningModule

from lightning_merge.checkpoint import StateDict, fit_names, read_checkpoint
from lightning_merge.errors import SelectionError
from lightning_merge.measure.cost import parameters_at_inference
from lightning_merge.measure.outcome import run_recipe
from lightning_merge.measure.task_conditions import Conditions, measure_tasks
from lightning_merge.measure.task_heads import module_for
from lightning_merge.recipe.build import Plain, build_recipe, trainer_of
from lightning_merge.recipe.task_context import TaskContext, TaskData, head_of
from lightning_merge.study.kinds.task_training import headless
from lightning_merge.study.store import Store
from lightning_merge.study.work import Session, Work, work_kinds

_Prepared = tuple[TaskContext, Conditions, dict[str, StateDict]]


@work_kinds.register("task_baseline")
def test_baseline(work: Work, store: Store, session: Session) -> None:
    """Tests the pre-trained body on all tasks, or each task's own body on its task."""
    context, conditions, bodies = _prepared(work, store, session)
    individual = work.settings["individual"]

    def network(task: TaskData) -> LightningModule | None:
        if individual:
            return context.build_for(task, bodies[task.name]) if task.name in bodies else None
        return context.build_for(task, context.pretrained)

    named = work.name, "baseline", work.seed, session.progress
    rows = measure_tasks(network, conditions, context.trainer, *named)
    # Heads of other tasks have other sizes.
    used = [task.module for task in context.tasks if task.name in bodies]
    parameters = sum(map(parameters_at_inference, used if individual else [context.module]))
    plain = [row.stored() for row in rows]
    store.put(work.key, {"rows": plain, "parameters": parameters, "settings": work.settings})


@work_kinds.register("task_merge")
def merge_bodies(work: Work, store: Store, session: Session) -> None:
    """Runs a recipe on the bodies, and tests the merged body on all tasks."""
    context, conditions, _ = _prepared(work, store, session)
    try:
        made = run_recipe(build_recipe(work.settings["recipe"]), context)
    except SelectionError as error:
        # It is known only after training; the other recipes need not suffer for it.
        left: Plain = {"rows": [], "not_merged": str(error), "settings": work.settings}
        store.put(work.key, left)
        return
    assert made.content is not None
    body = made.content["state_dict"]
    named = work.name, "merge", work.seed, session.progress

    def network(task: TaskData) -> LightningModule:
        own = made.for_tasks.get(task.name)
        return context.build_for(task, body) if own is None else own

    rows = measure_tasks(network, conditions, context.trainer, *named)
    copied = ("seconds", "train_examples", "chosen")
    beside = sum(
        parameters_at_inference(own) - parameters_at_inference(context.task(name).module)
        for name, own in made.for_tasks.items()
    )
    result = {
        "rows": [row.stored() for row in rows],
        "parameters": made.measurement.parameters + beside,
        **{name: getattr(made.measurement, name) for name in copied},
        "choices": made.choices,
        "settings": work.settings,
    }
    store.put(work.key, result, made.content)


def _prepared(work: Work, store: Store, session: Session) -> _Prepared:
    """The context, the test sets, and the bodies by task; kept within a repetition."""
    key = ("tasks", *work.needs, str(work.settings["trainer"]))
    return session.recall(key, lambda: _prepare(work, store, session))


def _prepare(work: Work, store: Store, session: Session) -> _Prepared:
    settings = work.settings
    tasks, bodies, further = [], {}, {}
    for task in settings["tasks"]:
        data = session.data(task["data"], store)
        module = module_for(settings["model"], data, read_checkpoint(store.weights(task["key"])))
        state = fit_names(store.state(task["key"]), module.state_dict(), task["name"])
        head = head_of(module, data, state)
        tasks.append(TaskData(task["name"], module, head, data, not task["unseen"]))
        if task["has_body"]:
            bodies[task["name"]] = state
        for name, key in task.get("networks", {}).items():
            further[name] = task["name"], fit_names(store.state(key), module.state_dict(), name)
    context = TaskContext.of_tasks(
        tasks,
        [bodies[task.name] for task in tasks if task.seen],
        headless(store.state(work.needs[0]), tasks[0].module, tasks[0].head),
        trainer_of(settings["trainer"], session.progress),
        further,
        seed=work.seed,
        progress=session.progress,
        statistics_examples=settings["statistics_examples"],
        task_statistics=settings["task_statistics"],
        cache=session.cache,
    )
    conditions = Conditions(
        context.tasks, settings["corruptions"], settings["severity"], settings["corrupted_tasks"]
    )
    return context, conditions, bodies
