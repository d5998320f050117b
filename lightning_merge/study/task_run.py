"""Doing the work of a study of several tasks, each piece at most once."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule, Trainer, seed_everything
from lightning.pytorch import __version__ as lightning_version

from lightning_merge.checkpoint import (
    Checkpoint,
    StateDict,
    digest,
    fit_names,
    prefixed,
    read_checkpoint,
)
from lightning_merge.errors import ConfigError
from lightning_merge.study.build import (
    build_data,
    build_module,
    build_recipe,
    module_of,
    trainer_maker,
)
from lightning_merge.study.compare import run_recipe
from lightning_merge.study.cost import parameters_at_inference
from lightning_merge.study.measure import fit
from lightning_merge.study.plan import Plain, Task
from lightning_merge.study.probe import linear_probe
from lightning_merge.study.recipe import Recipe
from lightning_merge.study.store import Store
from lightning_merge.study.task_measure import Conditions, measure_tasks
from lightning_merge.study.task_plan import INDIVIDUAL, TaskStudy
from lightning_merge.study.task_pool import TaskData, TaskPool, head_of

Report = Callable[[Task, dict[str, Any], bool], None]


def check_task_recipe(recipe: Recipe) -> None:
    """Checks that a recipe makes one body, without any task's labels to learn from.

    Raises:
        ConfigError: If not.
    """
    kind = type(recipe.aggregate).__name__
    if not recipe.aggregate.merges:
        raise ConfigError(
            f"recipe '{recipe.name}': {kind} makes no one body for all tasks: leave it out"
        )
    if recipe.aggregate.learns:
        raise ConfigError(
            f"recipe '{recipe.name}': {kind} trains on one task's labels, and there are several "
            "tasks: leave it out"
        )


def check_work(
    study: TaskStudy, recipes: Sequence[Recipe], trainer: Mapping[str, Any] | None = None
) -> None:
    """Checks data and recipes on networks that have learned nothing, before any is trained.

    Args:
        study: The study.
        recipes: Its recipes.
        trainer: The Trainer's arguments, with callbacks made.

    Raises:
        MergeError: If data are missing or cannot be corrupted as the study says, or a recipe
            does not suit the network or the data.
    """
    seed = study.seeds[0]
    if study.pretraining is not None:
        _read(study.data(study.pretraining["data"], seed))
    tasks = []
    for one in study.tasks:
        data = _read(study.data(one["data"], seed))
        path = one.get("checkpoint")
        module = _module(study, data, None if path is None else read_checkpoint(path))
        head = head_of(module, data, module.state_dict())
        tasks.append(TaskData(one["name"], module, head, data, not one.get("unseen")))
    bodies = [task.module.state_dict() for task in tasks if task.seen]
    pool = TaskPool.of(
        tasks,
        bodies,
        bodies[0],
        trainer_maker(trainer or {}, False),
        statistics_examples=study.statistics_examples,
    )
    _conditions(study, tasks).check()
    for recipe in recipes:
        recipe.check_pool(pool)


def run_tasks(
    study: TaskStudy,
    work: list[Task],
    store: Store,
    trainer: Mapping[str, Any] | None = None,
    on_done: Report | None = None,
    progress: bool = True,
) -> None:
    """Does that work of a study which the store does not hold.

    Args:
        study: The study.
        work: Its work, in an order in which it can be done (`plan_tasks`).
        store: Holds what is finished; each result is put into it at once.
        trainer: The Trainer's arguments, with callbacks made.
        on_done: Called with each piece, its result and whether that had been stored before.
        progress: Whether to show progress bars.
    """
    maker = _Maker(study, work, store, trainer or {}, progress)
    for one in work:
        stored = one.key in store
        if not stored:
            maker.do(one)
        if on_done is not None:
            on_done(one, store.result(one.key), stored)


class _Maker:
    def __init__(
        self,
        study: TaskStudy,
        work: list[Task],
        store: Store,
        trainer: Mapping[str, Any],
        progress: bool,
    ) -> None:
        self.study = study
        self.work = {one.key: one for one in work}
        self.trainer = dict(trainer)
        self.store = store
        self.progress = progress
        self._pool: tuple[int, TaskPool, Conditions, dict[str, StateDict]] | None = None

    def do(self, work: Task) -> None:
        seed_everything(work.seed, verbose=False)
        {
            "pretraining": self._pretrain,
            "task": self._fine_tune,
            "baseline": self._baseline,
            "merge": self._merge,
        }[work.kind](work)

    def _make_trainer(self, changes: Mapping[str, Any]) -> Callable[..., Trainer]:
        return trainer_maker({**self.trainer, **changes}, self.progress)

    def _pretrain(self, work: Task) -> None:
        start = time.perf_counter()
        if "file" in work.settings:
            checkpoint = read_checkpoint(str(self.study.pretrained))
            self.store.put(work.key, {"seconds": None}, _content_of_file(checkpoint))
            return
        made = work.settings["pretraining"]
        data = build_data(made["data"])
        module = _module(self.study, data)
        trainer = self._make_trainer(made.get("trainer", {}))
        examples = fit(module, data, trainer())
        seconds = time.perf_counter() - start
        (row,) = measure_tasks(
            lambda _: module,
            Conditions([TaskData(work.name, module, {}, data)]),
            trainer,
            {"method": work.name},
            False,
        )
        result = {"seconds": seconds, "train_examples": examples, "accuracy": row["accuracy"]}
        self.store.put(work.key, result, _content(module))

    def _fine_tune(self, work: Task) -> None:
        start = time.perf_counter()
        settings = work.settings
        data = _read(settings["data"])
        result: dict[str, Any] = {"split_hash": None, "settings": settings}
        if "file" in settings:
            (path,) = (task["checkpoint"] for task in self.study.tasks if task["name"] == work.name)
            checkpoint = read_checkpoint(path)
            module = _module(self.study, data, checkpoint)
            expected = module.state_dict()
            module.load_state_dict(fit_names(checkpoint.state_dict, expected, path))
            result |= {"head": "of its checkpoint", "seconds": None}
        else:
            module = _module(self.study, data)
            own = head_of(module, data, module.state_dict())
            body = _headless(self.store.state(work.needs[0]), module, own)
            start_at = fit_names({**body, **own}, module.state_dict(), "the pre-trained network")
            module.load_state_dict(start_at)
            trainer = self._make_trainer(settings.get("training", {}))
            device = trainer().strategy.root_device
            head, examples = linear_probe(module, data, device)
            module.load_state_dict({**module.state_dict(), **head})
            if "training" in settings:
                _tune(module, data, trainer(), list(head) if not settings["train_heads"] else [])
            result |= {
                "head": f"fitted to the pre-trained body on {examples:,} labelled examples",
                "train_examples": examples,
                "seconds": time.perf_counter() - start,
            }
        result["split_hash"] = getattr(data, "split_hash", None)
        content = _content(module)
        result["digest"] = digest(content["state_dict"])
        self.store.put(work.key, result, content)

    def _baseline(self, work: Task) -> None:
        pool, conditions, bodies = self._pool_of(work)

        def body(task: TaskData) -> LightningModule | None:
            if work.name == INDIVIDUAL:
                return task.build(bodies[task.name]) if task.name in bodies else None
            return task.build(pool.pretrained)

        said = {"method": work.name, "kind": "baseline", "seed": work.seed}
        rows = measure_tasks(body, conditions, self._make_trainer({}), said, self.progress)
        parameters = parameters_at_inference(pool.module) * (
            len(bodies) if work.name == INDIVIDUAL else 1
        )
        self.store.put(
            work.key, {"rows": rows, "parameters": parameters, "settings": work.settings}
        )

    def _merge(self, work: Task) -> None:
        pool, conditions, _ = self._pool_of(work)
        recipe = build_recipe(work.settings["recipe"])
        made = run_recipe(recipe, pool)
        assert made.content is not None
        body = made.content["state_dict"]
        said = {"method": work.name, "kind": "merge", "seed": work.seed}
        rows = measure_tasks(
            lambda task: task.build(body),
            conditions,
            self._make_trainer({}),
            said,
            self.progress,
        )
        result = {
            "rows": rows,
            "parameters": made.measurement.parameters,
            "seconds": made.measurement.seconds,
            "train_examples": made.measurement.train_examples,
            "choices": made.choices,
            "chosen": made.chosen,
            "settings": work.settings,
        }
        self.store.put(work.key, result, made.content)

    def _pool_of(self, work: Task) -> tuple[TaskPool, Conditions, dict[str, StateDict]]:
        # Kept between the pieces of one repetition, with the corrupted images.
        if self._pool is None or self._pool[0] != work.seed:
            tasks, bodies = [], {}
            for key in work.needs[1:]:
                one = self.work[key]
                data = build_data(one.settings["data"])
                module = _module(self.study, data, read_checkpoint(self.store.weights(key)))
                state = fit_names(self.store.state(key), module.state_dict(), one.name)
                unseen = one.settings["unseen"]
                head = head_of(module, data, state)
                tasks.append(TaskData(one.name, module, head, data, not unseen))
                if not unseen or "file" in one.settings:
                    bodies[one.name] = state
            pool = TaskPool.of(
                tasks,
                [bodies[task.name] for task in tasks if task.seen],
                _headless(self.store.state(work.needs[0]), tasks[0].module, tasks[0].head),
                self._make_trainer({}),
                seed=work.seed,
                progress=self.progress,
                statistics_examples=self.study.statistics_examples,
            )
            self._pool = work.seed, pool, _conditions(self.study, pool.tasks), bodies
        return self._pool[1:]


def _read(config: Plain) -> LightningDataModule:
    data = build_data(config)
    data.prepare_data()
    data.setup("fit")
    return data


def _module(
    study: TaskStudy, data: LightningDataModule, checkpoint: Checkpoint | None = None
) -> LightningModule:
    config = study.model
    if config is None:
        assert checkpoint is not None
        return module_of(checkpoint)
    arguments = dict(config.get("init_args", {}))
    if hasattr(data, "num_classes"):
        arguments["num_classes"] = data.num_classes
    return build_module({**config, "init_args": arguments})


def _conditions(study: TaskStudy, tasks: Sequence[TaskData]) -> Conditions:
    return Conditions(tasks, study.corruptions, study.severity, study.corrupted_tasks)


def _headless(state: StateDict, module: LightningModule, head: StateDict) -> StateDict:
    named = prefixed(state, module.state_dict())
    return {name: value for name, value in named.items() if name not in head}


def _tune(
    module: LightningModule, data: LightningDataModule, trainer: Trainer, frozen: list[str]
) -> None:
    for name in frozen:
        module.get_parameter(name).requires_grad_(False)
    fit(module, data, trainer)
    for name in frozen:
        module.get_parameter(name).requires_grad_(True)


def _content(module: LightningModule) -> Plain:
    state = {name: value.detach().cpu().clone() for name, value in module.state_dict().items()}
    return {
        "epoch": 0,
        "global_step": 0,
        "pytorch-lightning_version": lightning_version,
        "state_dict": state,
        "hyper_parameters": dict(module.hparams),
    }


def _content_of_file(checkpoint: Checkpoint) -> Plain:
    kept = {"hyper_parameters": checkpoint.hyper_parameters} if checkpoint.hyper_parameters else {}
    return {"state_dict": checkpoint.state_dict, **kept}
