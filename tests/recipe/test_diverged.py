"""Trainings that end in NaN are no results."""

from contextlib import nullcontext

import pytest
import torch
from strangers import quiet_trainer
from tiny_contexts import Learner, Points, made_context

from lightning_merge import FineTune, NPMerge, Recipe
from lightning_merge.errors import NonFiniteError
from lightning_merge.recipe.fitting import fit_resumably


class Diverging(Learner):
    """Its third epoch makes its last layer NaN."""

    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) * (
            torch.nan if self.current_epoch == 2 else 1
        )


def test_a_training_stops_in_the_epoch_that_loses_its_weights(tmp_path):
    kept = tmp_path / "training.ckpt"
    module = Diverging()
    with pytest.raises(NonFiniteError, match=r"diverged in epoch 3: 'net\.0\.weight' holds NaN"):
        fit_resumably(module, Points(), quiet_trainer(max_epochs=9), kept)
    # What goes on from the file does not begin with numbers that are none.
    if kept.exists():
        state = torch.load(kept, weights_only=True)["state_dict"]
        assert not any(value.isnan().any() for value in state.values())


def explode(parameters):
    return torch.optim.SGD(parameters, lr=float("inf"))


@pytest.mark.parametrize("kind", [FineTune, NPMerge])
@pytest.mark.parametrize("norm", [False, True])
def test_a_merge_that_diverged_says_so(kind, norm):
    context = made_context(norm=norm)
    context.module.__class__ = Learner
    # Of numbers that are none there are no statistics.
    refused = pytest.raises(NonFiniteError, match="BatchNorm") if norm else nullcontext()
    recipe = Recipe(
        "one", kind(max_epochs=1, optimizer=explode), recalibrate="batchnorm" if norm else None
    )
    said = pytest.warns(UserWarning, match=r"recipe 'one': training diverged, '.+' holds NaN")
    with said, refused:
        recipe(context)


@pytest.mark.parametrize("norm", [False, True])
def test_a_candidate_that_diverged_is_not_chosen_and_not_spoken_of(recwarn, norm):
    context = made_context(norm=norm)
    context.module.__class__ = Learner
    aggregate = FineTune(1, torch.optim.SGD, learning_rates=[1e30, 0.001])
    found = Recipe("one", aggregate, recalibrate="batchnorm" if norm else None)(context)
    assert found.choices[-1].details["learning_rate"] == 0.001
    assert not [one for one in recwarn if "diverged" in str(one.message)]
