"""Learning rates and schedules of fine-tuning and NP Merge, chosen on held-out data."""

import math

import pytest
import torch
from lightning.pytorch import seed_everything
from strangers import quiet_trainer
from tiny_contexts import Learner, Points, trained

from lightning_merge import Context, FineTune, NPMerge, Recipe
from lightning_merge.errors import ConfigError
from lightning_merge.recipe.build import build_recipe

RATES = [1e-6, 0.02, 300.0]


def context_of(data=None, norm=False):
    states = [trained(seed, steps=8, norm=norm).state_dict() for seed in range(2)]
    data = data or Points(testable=False)
    return Context(Learner(norm=norm), states, ["a", "b"], data, quiet_trainer, progress=False)


def state_of(aggregate, context, recalibrate=None):
    made = Recipe("one", aggregate, recalibrate=recalibrate)(context)
    return {name: value.clone() for name, value in made.module.state_dict().items()}


def right(state, context):
    module = context.build(state).eval()
    x, y = context.data.val_dataloader().dataset.tensors
    with torch.no_grad():
        return float((module(x).argmax(1) == y).double().mean())


@pytest.mark.parametrize("kind", [FineTune, NPMerge])
@pytest.mark.parametrize("norm", [False, True])
def test_the_rate_with_the_best_held_out_accuracy_is_kept(kind, norm):
    context, recalibrate = context_of(norm=norm), "batchnorm" if norm else None
    alone = {}
    for rate in RATES:
        # A rate by itself, as the optimizer's own, is trained without any choice.
        by_hand = kind(max_epochs=2, optimizer=lambda p, lr=rate: torch.optim.Adam(p, lr=lr))
        alone[rate] = state_of(by_hand, context, recalibrate)
    scores = {rate: right(state, context) for rate, state in alone.items()}
    best = max(scores, key=scores.__getitem__)
    assert len(set(scores.values())) > 1
    made = Recipe("all", kind(max_epochs=2, learning_rates=RATES), recalibrate=recalibrate)(context)
    (choice,) = made.choices
    assert choice.details["learning_rate"] == best
    assert list(choice.details["scores"].values()) == pytest.approx(list(scores.values()))
    assert choice.details["examples"] == 70
    assert made.labelled_examples == 96 + 70
    for name, value in alone[best].items():
        torch.testing.assert_close(made.module.state_dict()[name], value)


def test_a_cosine_schedule_ends_at_zero_and_is_chosen_like_a_rate():
    context, seen = context_of(), []

    class Recorded(torch.optim.SGD):
        def step(self, closure=None):
            loss = super().step(closure)
            seen.append(self.param_groups[0]["lr"])
            return loss

    aggregate = FineTune(
        2, lambda p: Recorded(p, lr=1.0), learning_rates=[0.1], schedules=["cosine"]
    )
    made = Recipe("one", aggregate)(context)
    expected = [0.05 * (1 + math.cos(math.pi * step / 6)) for step in range(6)]
    assert seen == pytest.approx(expected)
    assert made.choices == ()
    both = FineTune(1, learning_rates=[0.1, 0.2], schedules=["constant", "cosine"])
    (choice,) = Recipe("four", both)(context).choices
    assert len(choice.details["scores"]) == 4
    assert choice.details["schedule"] in ("constant", "cosine")


def test_without_candidates_training_is_what_the_optimizer_says():
    context = context_of()
    found = state_of(FineTune(1, lambda p: torch.optim.SGD(p, lr=0.1)), context)
    seed_everything(context.seed)
    states = context.states
    module = context.build({name: (states[0][name] + states[1][name]) / 2 for name in states[0]})
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for batch in context.data.train_dataloader():
        optimizer.zero_grad()
        module.training_step(batch, 0).backward()
        optimizer.step()
    for name, value in module.state_dict().items():
        torch.testing.assert_close(found[name], value)


def test_weights_say_where_fine_tuning_starts():
    context = context_of()
    start = FineTune(1, weights=[1, 0]).untrained(context.states, context).state_dict()
    assert all(torch.equal(start[name], value) for name, value in context.states[0].items())
    with pytest.raises(ConfigError, match="FineTune: "):
        Recipe("one", FineTune(weights=[1, 0, 0])).check_context(context)


def test_what_cannot_be_chosen_is_refused():
    for rates, schedules in (([0.1, -1.0], None), ([], None), ([0.1], [])):
        with pytest.raises(ConfigError, match="NPMerge: learning_rates"):
            NPMerge(learning_rates=rates, schedules=schedules)
    recipe = Recipe("one", FineTune(learning_rates=[0.1, 0.2]))
    with pytest.raises(ConfigError, match="held-out"):
        recipe.check_context(context_of(Points(validated=False)))
    Recipe("one", FineTune(learning_rates=[0.1])).check_context(context_of(Points(validated=False)))


def test_both_are_options_of_a_configuration():
    plain = {"max_epochs": 3, "learning_rates": [0.1, 1], "schedules": ["cosine"]}
    for name in ("FineTune", "NPMerge"):
        recipe = build_recipe({"name": "x", "aggregate": {"class_path": name, "init_args": plain}})
        assert [str(one) for one in recipe.aggregate.candidates] == [
            "learning rate 0.1, cosine schedule",
            "learning rate 1, cosine schedule",
        ]
