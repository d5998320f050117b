"""Doing the work of a study of several tasks, each piece at most once."""

import time
from collections.abc import Mapping, Sequence
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
from lightning_merge.errors import ConfigError, SelectionError
from lightning_merge.loaders import statistics_batches_of
from lightning_merge.modules import CLIPClassifier
from lightning_merge.recalibrate import reset_batchnorm
from lightning_merge.study.build import build_data, build_recipe, changed_trainer, trainer_maker
from lightning_merge.study.compare import run_recipe
from lightning_merge.study.cost import parameters_at_inference
from lightning_merge.study.measure import fit
from lightning_merge.study.plan import Plain, Task
from lightning_merge.study.probe import linear_probe
from lightning_merge.study.recalibration import own_recalibration
from lightning_merge.study.recipe import Recipe
from lightning_merge.study.store import Store
from lightning_merge.study.task_heads import (
    check_images_for,
    check_prompts,
    module_for,
    module_to_train,
    starting_module,
)
from lightning_merge.study.task_measure import Conditions, measure_tasks
from lightning_merge.study.task_plan import INDIVIDUAL, TaskStudy
from lightning_merge.study.task_pool import TaskData, TaskPool, head_of
from lightning_merge.study.work import Maker, Report


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
    changes = [study.training, *(one.get("training") or {} for one in study.tasks)]
    body: StateDict | None = None
    if study.pretraining is not None:
        changes.append(study.pretraining.get("trainer") or {})
        data = _read(study.data(study.pretraining["data"], seed))
        start = module_for(study.pretraining_model or study.model, data)
        body = _headless(start.state_dict(), start, head_of(start, data, start.state_dict()))
    for one in changes:
        trainer_maker(changed_trainer(trainer or {}, one), False)()
    tasks = []
    for one in study.tasks:
        check_prompts(study.model, one)
        data = _read(study.data(one["data"], seed))
        path = one.get("checkpoint")
        module = module_for(study.model, data, None if path is None else read_checkpoint(path))
        check_images_for(module, data, one["name"])
        head = head_of(module, data, module.state_dict())
        if body is not None and path is None:
            fit_names({**body, **head}, module.state_dict(), "the pre-trained network")
        tasks.append(TaskData(one["name"], module, head, data, not one.get("unseen")))
    if study.task_statistics and own_recalibration(tasks[0].module) != "batchnorm":
        raise ConfigError(
            "task_statistics: this network has no BatchNorm statistics, of a task or otherwise: "
            "leave it out"
        )
    bodies = [task.module.state_dict() for task in tasks if task.seen]
    pool = TaskPool.of(
        tasks,
        bodies,
        bodies[0],
        trainer_maker(trainer or {}, False),
        statistics_examples=study.statistics_examples,
        task_statistics=study.task_statistics,
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
    _Maker(study, work, store, trainer, progress).do_missing(on_done)


class _Maker(Maker[TaskStudy]):
    _pool: tuple[int, TaskPool, Conditions, dict[str, StateDict]] | None = None

    def do(self, work: Task) -> None:
        seed_everything(work.seed, verbose=False)
        {
            "pretraining": self._pretrain,
            "task": self._fine_tune,
            "baseline": self._baseline,
            "merge": self._merge,
        }[work.kind](work)

    def _pretrain(self, work: Task) -> None:
        start = time.perf_counter()
        if "file" in work.settings:
            checkpoint = read_checkpoint(str(self.study.pretrained))
            self.store.put(work.key, {"seconds": None}, _content_of_file(checkpoint))
            return
        if "weights" in work.settings:
            assert self.study.model is not None
            data = build_data(self.study.data(self.study.tasks[0]["data"], work.seed))
            module = starting_module(self.study.model, data)
            self.store.put(work.key, {"seconds": None}, _content(module))
            return
        made = work.settings["pretraining"]
        data = _read(made["data"])
        module = module_to_train(work.settings["model"], data)
        trainer = self.make_trainer(made.get("trainer"))
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
            module = module_for(self.study.model, data, checkpoint)
            expected = module.state_dict()
            module.load_state_dict(fit_names(checkpoint.state_dict, expected, path))
            result |= {"head": "of its checkpoint", "seconds": None}
        else:
            module, head, said = self._start(work, data)
            tuned = 0
            if "training" in settings:
                trainer = self.make_trainer(settings["training"])()
                tuned = _tune(module, data, trainer, list(head), settings["train_heads"])
            seen = max(said.pop("train_examples", 0), tuned)
            result |= {**said, "train_examples": seen, "seconds": time.perf_counter() - start}
        result["split_hash"] = getattr(data, "split_hash", None)
        content = _content(module)
        result["digest"] = digest(content["state_dict"])
        self.store.put(work.key, result, content)

    def _start(
        self, work: Task, data: LightningDataModule
    ) -> tuple[LightningModule, StateDict, dict[str, Any]]:
        """The pre-trained body under a head for the task, the head, and what is said of it."""
        module = self._module_to_train(data, work.settings.get("prompts"))
        head = head_of(module, data, module.state_dict())
        body = _headless(self.store.state(work.needs[0]), module, head)
        start_at = fit_names({**body, **head}, module.state_dict(), "the pre-trained network")
        module.load_state_dict(start_at)
        if isinstance(module, CLIPClassifier):
            sentences = len(module.hparams["made_from"]["prompts"])
            return module, head, {"head": f"made of the classes' names in {sentences} prompts"}
        device = self.make_trainer(work.settings.get("training"))().strategy.root_device
        if self.study.task_statistics:
            images = statistics_batches_of(
                data, module, device, self.study.statistics_examples, work.seed
            )
            reset_batchnorm(module.to(device), images)
        per_class = work.settings.get("head_examples_per_class")
        head, examples = linear_probe(module, data, device, per_class)
        module.load_state_dict({**module.state_dict(), **head})
        fitted = f"fitted to the pre-trained body on {examples:,} labelled examples"
        return module, head, {"head": fitted, "train_examples": examples}

    def _module_to_train(
        self, data: LightningDataModule, prompts: Sequence[str] | str | None = None
    ) -> LightningModule:
        assert self.study.model is not None
        return module_to_train(self.study.model, data, prompts)

    def _baseline(self, work: Task) -> None:
        pool, conditions, bodies = self._pool_of(work)

        def body(task: TaskData) -> LightningModule | None:
            if work.name == INDIVIDUAL:
                return pool.build_for(task, bodies[task.name]) if task.name in bodies else None
            return pool.build_for(task, pool.pretrained)

        said = {"method": work.name, "kind": "baseline", "seed": work.seed}
        rows = measure_tasks(body, conditions, self.make_trainer(), said, self.progress)
        parameters = parameters_at_inference(pool.module) * (
            len(bodies) if work.name == INDIVIDUAL else 1
        )
        self.store.put(
            work.key, {"rows": rows, "parameters": parameters, "settings": work.settings}
        )

    def _merge(self, work: Task) -> None:
        pool, conditions, _ = self._pool_of(work)
        recipe = build_recipe(work.settings["recipe"])
        try:
            made = run_recipe(recipe, pool)
        except SelectionError as error:
            # Only what training gave tells; the other recipes need not suffer for it.
            left: Plain = {"rows": [], "not_merged": str(error), "settings": work.settings}
            self.store.put(work.key, left)
            return
        assert made.content is not None
        body = made.content["state_dict"]
        said = {"method": work.name, "kind": "merge", "seed": work.seed}
        rows = measure_tasks(
            lambda task: pool.build_for(task, body),
            conditions,
            self.make_trainer(),
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
            by_key = {one.key: one for one in self.work}
            for key in work.needs[1:]:
                one = by_key[key]
                data = build_data(one.settings["data"])
                weights = read_checkpoint(self.store.weights(key))
                module = module_for(self.study.model, data, weights)
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
                self.make_trainer(),
                seed=work.seed,
                progress=self.progress,
                statistics_examples=self.study.statistics_examples,
                task_statistics=self.study.task_statistics,
            )
            self._pool = work.seed, pool, _conditions(self.study, pool.tasks), bodies
        return self._pool[1:]


def _read(config: Plain) -> LightningDataModule:
    data = build_data(config)
    data.prepare_data()
    data.setup("fit")
    return data


def _conditions(study: TaskStudy, tasks: Sequence[TaskData]) -> Conditions:
    return Conditions(tasks, study.corruptions, study.severity, study.corrupted_tasks)


def _headless(state: StateDict, module: LightningModule, head: StateDict) -> StateDict:
    named = prefixed(state, module.state_dict())
    return {name: value for name, value in named.items() if name not in head}


def _tune(
    module: LightningModule,
    data: LightningDataModule,
    trainer: Trainer,
    head: list[str],
    train_head: bool,
) -> int:
    """Trains the body, and its head if that is wanted; returns how many examples it saw."""
    before = {name: module.get_parameter(name).requires_grad for name in head}
    for name in head:
        module.get_parameter(name).requires_grad_(train_head)
    examples = fit(module, data, trainer)
    for name, state in before.items():
        module.get_parameter(name).requires_grad_(state)
    return examples or 0


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
