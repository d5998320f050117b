"""BatchNorm reset on training images as they are augmented, as a recipe's choice."""

import pytest
import torch
from tiny_contexts import Points, made_context

from lightning_merge import Average, Recipe, average, reset_batchnorm
from lightning_merge.recipe.build import build_recipe


class Shifted(Points):
    """Points that training shifts by three; statistics may be read without that."""

    def train_dataloader(self):
        loader = super().train_dataloader()
        x, y = loader.dataset.tensors
        loader.dataset.tensors = (x + 3, y)
        return loader


@pytest.mark.parametrize(
    "augmented",
    ["batchnorm-augmented", {"class_path": "StatisticsReset", "init_args": {"augmented": True}}],
)
def test_statistics_are_those_of_the_images_that_training_sees(augmented):
    context = made_context(norm=True, data=Shifted())
    recipes = {"plain": "batchnorm", "augmented": augmented}
    found = {
        name: build_recipe({"name": name, "aggregate": "Average", "recalibrate": given})(context)
        for name, given in recipes.items()
    }
    loaders = {
        "plain": context.data.statistics_dataloader(),
        "augmented": context.data.train_dataloader(),
    }
    for name, made in found.items():
        expected = context.build(average(context.states))
        reset_batchnorm(expected, loaders[name])
        for key, value in expected.state_dict().items():
            torch.testing.assert_close(made.module.state_dict()[key], value)
    first = "net.1.running_mean"
    plain, shifted = (found[name].module.state_dict()[first] for name in ("plain", "augmented"))
    assert (plain - shifted).abs().max() > 0.1


def test_it_is_refused_without_batchnorm_as_the_plain_one_is():
    with pytest.raises(Exception, match="has nothing to reset"):
        Recipe("R", Average(), None, "batchnorm-augmented").check(made_context().module)
