"""Checks of a study on networks that have learned nothing, before any is trained."""

from collections.abc import Sequence

from lightning_merge.checkpoint import tensors_of
from lightning_merge.division import DIVIDING, warn_of_other_divisions
from lightning_merge.measure.sweep import chosen_sweeps
from lightning_merge.recipe.build import build_data, build_module, trainer_of
from lightning_merge.recipe.context import Context
from lightning_merge.recipe.recipe import Recipe
from lightning_merge.study.plan import Study, data_for, determining


def check_recipes(study: Study, recipes: Sequence[Recipe]) -> None:
    """Checks that recipes and sweeps suit the network, the data and the numbers of ingredients.

    Warns where an ingredient may be trained on what is held out or tested.
    """
    common = determining(study.trainer)
    for training in (study.start, study.training):
        trainer_of({**common, **(training or {})}, False)()
    module = build_module(study.model)
    count = len(study.ingredients)
    context = Context(
        module=module,
        states=[tensors_of(module)] * count,
        names=[f"Ingredient {index + 1}" for index in range(count)],
        data=build_data(data_for(study.data, study.seeds[0], {})),
        trainer=trainer_of(common, False),
        pretrained=None if study.start is None else tensors_of(module),
    )
    _check_divisions(study, context)
    for size in study.pool_sizes or [count]:
        for recipe in recipes:
            recipe.check_context(context.first(size))
    for sweep in chosen_sweeps(study.sweeps):
        sweep.check_context(context)


def _check_divisions(study: Study, context: Context) -> None:
    """Warns of ingredients whose own arguments divide the examples otherwise."""
    # Who has no such argument has the division of all, for which nothing is to be read.
    differing = [
        (name, build_data(data_for(study.data, study.seeds[0], changes)))
        for name, changes in zip(context.names, study.ingredients, strict=True)
        if not changes.keys().isdisjoint(DIVIDING)
    ]
    names, modules = [name for name, _ in differing], [module for _, module in differing]
    warn_of_other_divisions(names, modules, context.data)
