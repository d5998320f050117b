"""Doing a study's tasks, each at most once."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch import seed_everything

from lightning_merge.checkpoint import digest
from lightning_merge.study.barrier import measure_lines, measure_triangles
from lightning_merge.study.build import (
    build_data,
    build_module,
    build_recipe,
    changed_trainer,
    trainer_maker,
)
from lightning_merge.study.compare import run_recipe
from lightning_merge.study.magnitude import check_classes, measure_magnitudes
from lightning_merge.study.measure import fit, measure
from lightning_merge.study.plan import Study, Task, data_for
from lightning_merge.study.pool import Pool
from lightning_merge.study.recipe import Recipe
from lightning_merge.study.store import Store
from lightning_merge.study.work import Maker, Report


def check_recipes(
    study: Study, recipes: Sequence[Recipe], trainer: Mapping[str, Any] | None = None
) -> None:
    """Checks recipes on networks that have learned nothing, before any is trained.

    Args:
        study: The study.
        recipes: Its recipes.
        trainer: The Trainer's arguments, with callbacks made.

    Raises:
        MergeError: If data are missing, a Trainer cannot be made, or a recipe does not suit the
            network, the data or a number of ingredients.
    """
    for training in (study.start, study.training):
        trainer_maker(changed_trainer(trainer or {}, training or {}), False)()
    module = build_module(study.model)
    count = len(study.ingredients)
    pool = Pool(
        module=module,
        states=[module.state_dict()] * count,
        names=[f"Ingredient {index + 1}" for index in range(count)],
        data=build_data(data_for(study.data, study.seeds[0], {})),
        trainer=trainer_maker(trainer or {}, False),
        pretrained=None if study.start is None else module.state_dict(),
    )
    for size in study.pool_sizes or [count]:
        for recipe in recipes:
            recipe.check_pool(pool.first(size))
    if study.magnitudes:
        check_classes(pool)


def run(
    study: Study,
    tasks: list[Task],
    store: Store,
    trainer: Mapping[str, Any] | None = None,
    on_done: Report | None = None,
    progress: bool = True,
) -> None:
    """Does those tasks of a study that the store does not hold.

    Args:
        study: The study.
        tasks: Its tasks, in an order in which they can be done (`plan`).
        store: Holds what is finished; each result is put into it at once.
        trainer: The Trainer's arguments, with callbacks made.
        on_done: Called with each task, its result and whether that had been stored before.
        progress: Whether to show progress bars.
    """
    _Maker(study, tasks, store, trainer, progress).do_missing(on_done)


class _Maker(Maker[Study]):
    _pool: tuple[int, Pool] | None = None

    def do(self, work: Task) -> None:
        {
            "start": self._train,
            "ingredient": self._train,
            "merge": self._merge,
            "barrier": self._barrier,
            "triangle": self._triangle,
            "magnitudes": self._magnitudes,
        }[work.kind](work)

    def _train(self, task: Task) -> None:
        settings = task.settings
        seed_everything(settings["seed"], verbose=False)
        module = build_module(settings["model"])
        if task.needs:
            module.load_state_dict(self.store.state(task.needs[0]))
        data = build_data(settings["data"])
        start = time.perf_counter()
        training = self.study.training if task.kind == "ingredient" else self.study.start
        trainer = self.make_trainer(training)
        fitting = trainer()
        examples = fit(module, data, fitting)
        seconds = time.perf_counter() - start
        measured = {}
        if task.kind == "ingredient":
            row = measure(
                module, data, trainer(), task.name, "ingredient", seconds, task.seed, examples
            )
            measured["row"] = row.row()
        content: dict[str, Any] = fitting._checkpoint_connector.dump_checkpoint(weights_only=True)
        content["state_dict"] = {name: value.cpu() for name, value in content["state_dict"].items()}
        result = {
            **measured,
            "split_hash": getattr(data, "split_hash", None),
            "digest": digest(content["state_dict"]),
            "settings": settings,
        }
        self.store.put(task.key, result, content)

    def _merge(self, task: Task) -> None:
        pool = self._pool_of(task)
        outcome = run_recipe(build_recipe(task.settings["recipe"]), pool)
        result = {
            "row": outcome.row(),
            "choices": outcome.choices,
            "ingredients": pool.digests,
            "split_hash": getattr(pool.data, "split_hash", None),
            "settings": task.settings,
        }
        self.store.put(task.key, result, outcome.content)

    def _barrier(self, task: Task) -> None:
        pool = self._pool_of(task)
        recipes = [build_recipe(line) for line in task.settings["lines"]]
        lines = measure_lines(pool, recipes, task.settings["points"])
        self._put_measured(task, pool, lines=[line.plain() for line in lines])

    def _triangle(self, task: Task) -> None:
        pool = self._pool_of(task)
        recipes = [build_recipe(line) for line in task.settings["lines"]]
        triangles = measure_triangles(pool, recipes, task.settings["points"])
        self._put_measured(task, pool, triangles=[one.plain() for one in triangles])

    def _magnitudes(self, task: Task) -> None:
        pool = self._pool_of(task)
        settings = task.settings
        keys = {(name, size): key for name, size, key in settings["merges"]}
        found = measure_magnitudes(
            pool,
            [build_recipe(recipe) for recipe in settings["recipes"]],
            settings["factors"],
            settings["pool_sizes"],
            lambda name, size: self.store.state(keys[name, size]),
        )
        self._put_measured(task, pool, magnitudes=[one.plain() for one in found])

    def _put_measured(self, task: Task, pool: Pool, **measured: list[dict[str, Any]]) -> None:
        result = {
            "seed": task.seed,
            **measured,
            "ingredients": pool.digests,
            "settings": task.settings,
        }
        self.store.put(task.key, result)

    def _pool_of(self, task: Task) -> Pool:
        # Kept between the tasks of one repetition, with the alignments that it has found.
        if self._pool is None or self._pool[0] != task.seed:
            settings = task.settings
            keys = [
                one.key for one in self.work if (one.kind, one.seed) == ("ingredient", task.seed)
            ]
            starts = [one.key for one in self.work if (one.kind, one.seed) == ("start", task.seed)]
            seed_everything(settings["seed"], verbose=False)
            pool = Pool(
                module=build_module(settings["model"]),
                states=[self.store.state(key) for key in keys],
                names=[str(self.store.weights(key)) for key in keys],
                data=build_data(settings["data"]),
                trainer=self.make_trainer(),
                seed=task.seed,
                progress=self.progress,
                statistics_examples=settings.get("statistics_examples"),
                pretrained=next((self.store.state(key) for key in starts), None),
            )
            self._pool = (task.seed, pool)
        return self._pool[1].first(len(task.needs))
