"""What a study has to do: pieces of work, each under a hash of all that determines it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lightning_merge.errors import ConfigError
from lightning_merge.measure.sweep import Sweep, chosen_sweeps, sweeps
from lightning_merge.recipe.build import Plain
from lightning_merge.study.work import Work, make_work

# How far the seeds of two repetitions' trainings are apart, and which of them the start has.
_APART, _START = 1000, 999


@dataclass
class Study:
    """Ingredients to train, and recipes to run on them, for several seeds.

    Attributes:
        data: `class_path` and `init_args` of the data module, for merging and testing.
        model: `class_path` and `init_args` of the ingredients' LightningModule.
        recipes: The recipes, as plain configuration.
        ingredients: For each ingredient what differs in its data module's `init_args`.
        training: The Trainer's arguments for the ingredients, `max_epochs` above all.
        start: The Trainer's arguments for a network that is trained first, on the data as they are
            under `data`, and that all ingredients of a seed start from; None where each starts
            from initial weights of its own.
        seeds: One repetition each. A seed determines the initial weights, the order of the
            batches, and the split where the data module has a `split_seed`.
        trainer: The Trainer's arguments for everything, `precision` for example.
        sweeps: The values of sweeps' options, for example `{"barrier": 11}`; none of those
            that are left out or empty.
        pool_sizes: How many of the ingredients, the first ones, each recipe is run on: once for
            each number; on all of them if none is given.
        statistics_examples: How many training examples statistics are read from; None for all.
        title: What tables and figures are headed with.
        paper: The table of a paper that the study repeats: its `title`, its `table`, and, by
            recipe, the paper's own `figures`; see `check_paper`.
        differs: What differs from that paper's settings, a line each.
    """

    data: Plain
    model: Plain
    recipes: list[Plain]
    ingredients: list[Plain] = field(default_factory=lambda: [{}, {}])
    training: Plain = field(default_factory=dict)
    start: Plain | None = None
    seeds: list[int] = field(default_factory=lambda: [0])
    trainer: Plain = field(default_factory=dict)
    sweeps: Plain = field(default_factory=dict)
    pool_sizes: list[int] = field(default_factory=list)
    statistics_examples: int | None = None
    title: str = "study"
    paper: Plain = field(default_factory=dict)
    differs: list[str] = field(default_factory=list)

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> "Study":
        """A study from the options of `study`, where each sweep has an option of its own."""
        options = {entry.value.option for entry in sweeps}
        given = {name: value for name, value in config.items() if name in options}
        rest = {name: value for name, value in config.items() if name not in options}
        rest["sweeps"] = {**given, **rest.get("sweeps", {})}
        return cls(**rest)


def plan(study: Study) -> list[Work]:
    """The work of a study, in an order in which it can be done, after checking its numbers.

    For each seed: the start (if any), the ingredients, for each number of them the merges in the
    order of the recipes, then the sweeps.
    """
    check_seeds(study.seeds)
    if len(study.ingredients) < 2:
        raise ConfigError("a study needs two ingredients or more: list them under `ingredients`")
    check_pool_sizes(study.pool_sizes, len(study.ingredients))
    chosen = chosen_sweeps(study.sweeps)
    for sweep, value in chosen.items():
        sweep.check(value, len(study.ingredients))
    sizes = _sizes(study)
    swept = {sweep: sweep.settings(value, study.recipes, sizes) for sweep, value in chosen.items()}
    return [work for seed in study.seeds for work in _repetition(study, seed, swept)]


def check_seeds(seeds: Sequence[int]) -> None:
    """Checks that seeds differ, and that generators take them; a `ConfigError` if not."""
    if not seeds or len(set(seeds)) != len(seeds):
        raise ConfigError("a study needs seeds that differ from each other: set `seeds`")
    largest = (2**32 - 1 - _START) // _APART
    for seed in seeds:
        if not 0 <= seed <= largest:
            raise ConfigError(f"seeds has {seed}: choose whole numbers from 0 to {largest}")


def check_pool_sizes(sizes: Sequence[int], ingredients: int) -> None:
    """Checks the numbers of ingredients to merge, each given once; a `ConfigError` if not."""
    if any(not 2 <= size <= ingredients for size in sizes) or len(set(sizes)) != len(sizes):
        raise ConfigError(
            f"pool_sizes are {list(sizes)}: give numbers from 2 to {ingredients}, the number of "
            "ingredients, each once"
        )


def _sizes(study: Study) -> list[int]:
    return study.pool_sizes or [len(study.ingredients)]


def _repetition(study: Study, seed: int, swept: Mapping[Sweep, Plain]) -> list[Work]:
    works = []
    before: tuple[str, ...] = ()

    def train(kind: str, name: str, changes: Plain, arguments: Plain, number: int) -> Work:
        settings = {
            "model": study.model,
            "data": data_for(study.data, seed, changes),
            "trainer": {**determining(study.trainer), **arguments},
            # Far apart, so that no two repetitions ever share an initialisation.
            "seed": _APART * seed + number,
        }
        works.append(make_work(kind, name, seed, settings, before))
        return works[-1]

    if study.start is not None:
        before = (train("start", "Common start", {}, study.start, _START).key,)
    names = [f"Ingredient {index + 1}" for index in range(len(study.ingredients))]
    trained = [
        train("ingredient", names[index], changes, study.training, index).key
        for index, changes in enumerate(study.ingredients)
    ]
    common = {
        "model": study.model,
        "data": data_for(study.data, seed, {}),
        "trainer": determining(study.trainer),
        "started": bool(before),
        "statistics_examples": study.statistics_examples,
    }
    merges = []
    for size in _sizes(study):
        of = {**common, "names": names[:size]}
        needs = (*before, *trained[:size])
        for recipe in study.recipes:
            settings = {**of, "recipe": recipe}
            merges.append(make_work("merge", recipe["name"], seed, settings, needs))
    works += merges
    for sweep, own in swept.items():
        settings = {**common, "names": names, "sweep": sweep.option, "of": own}
        needs = (*before, *trained)
        if sweep.reads_merges:
            settings["merges"] = [
                [work.name, len(work.settings["names"]), work.key] for work in merges
            ]
            needs = (*needs, *(work.key for work in merges))
        works.append(make_work("sweep", sweep.title, seed, settings, needs))
    return works


def data_for(data: Plain, seed: int, changes: Mapping[str, Any]) -> Plain:
    """A data module's configuration with some `init_args` changed, and split by `seed`."""
    arguments = {**data.get("init_args", {})}
    if "split_seed" in arguments:
        arguments["split_seed"] = seed
    return {**data, "init_args": {**arguments, **changes}}


def determining(trainer: Mapping[str, Any]) -> Plain:
    """Those of the Trainer's arguments that are set, without those that only show something."""
    shown = ("logger", "enable_progress_bar", "enable_model_summary")
    return {
        name: value for name, value in trainer.items() if name not in shown and value is not None
    }
