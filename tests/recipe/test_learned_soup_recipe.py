"""The learned soup of its authors: shares and a logit scale, on held-out data only."""

import pytest
import torch
from strangers import quiet_trainer
from tiny_contexts import Learner, Perceptron, Points, trained
from torch import nn
from torch.func import functional_call

from lightning_merge import Context, LearnedSoup, Recipe
from lightning_merge.errors import ConfigError
from lightning_merge.recipe.build import build_recipe


class OnlyHeldOut(Points):
    """Points of which neither training nor test examples may be read."""

    def __init__(self):
        super().__init__(testable=False)

    def train_dataloader(self):
        raise AssertionError("training data were looked at")

    statistics_dataloader = train_dataloader


def context_of(count, data=None, kind=Learner, norm=False):
    states = [trained(seed, norm=norm).state_dict() for seed in range(count - 1)]
    states.append(Perceptron(norm=norm).state_dict())
    names = [f"n{number}" for number in range(count)]
    data = data or OnlyHeldOut()
    return Context(kind(norm=norm), states, names, data, quiet_trainer, progress=False)


def by_hand(context, layers, epochs):
    """The authors' loop: softmax over K logits for the model or each tensor, and a scale."""
    names = list(context.module.state_dict())
    stacked = {name: torch.stack([state[name] for state in context.states]) for name in names}
    count = len(context.states)
    logits = torch.zeros(len(names) if layers else 1, count, requires_grad=True)
    scale = torch.ones((), requires_grad=True)
    optimizer = torch.optim.AdamW([logits, scale], lr=0.05, weight_decay=0.0)
    x, y = context.data.val_dataloader().dataset.tensors

    def soup():
        shares = logits.softmax(1).expand(len(names), count)
        return {
            name: torch.einsum("k,k...->...", shares[row], stacked[name])
            for row, name in enumerate(names)
        }

    for _ in range(epochs):
        logits_of = functional_call(context.module, soup(), (x,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(scale * logits_of, y).backward()
        optimizer.step()
    return soup(), logits.softmax(1), float(scale.detach())


@pytest.mark.parametrize("granularity", ["model", "layer"])
def test_three_are_mixed_as_the_authors_loop_mixes_them(granularity):
    context = context_of(3)
    made = LearnedSoup(granularity, max_epochs=4, batch_size=70)(context.states, context)
    soup, shares, scale = by_hand(context, granularity == "layer", 4)
    for name, value in made.module.state_dict().items():
        torch.testing.assert_close(value, soup[name].detach(), rtol=1e-3, atol=1e-5, msg=name)
    (choice,) = made.choices
    assert choice.details["logit_scale"] == pytest.approx(scale, rel=1e-4)
    assert abs(scale - 1) > 0.01
    found = torch.tensor(list(choice.details["shares"].values())).T
    torch.testing.assert_close(found, shares.detach(), rtol=1e-3, atol=1e-5)
    assert made.labelled_examples == choice.details["examples"] == 70


def test_the_useless_one_of_two_is_left_out_and_the_scale_is_not_in_the_weights():
    context = context_of(2)
    made = LearnedSoup(max_epochs=60)(context.states, context)
    share = made.choices[0].details["shares"]["n0"][0]
    assert share > 0.7
    assert made.choices[0].details["shares"]["n1"] == [pytest.approx(1 - share)]
    for name, value in made.module.state_dict().items():
        a, b = (state[name] for state in context.states)
        torch.testing.assert_close(value, share * a + (1 - share) * b)
    x = torch.randn(4, 6)
    plain = context.build(made.module.state_dict())
    torch.testing.assert_close(made.module(x), plain(x))
    assert "logit scale" in str(made.choices[0])


def test_it_is_reached_by_name_and_a_last_batch_of_one_is_no_error():
    recipe = build_recipe(
        {
            "name": "Learned",
            "aggregate": {
                "class_path": "LearnedSoup",
                # 70 examples: the last batch would have one
                "init_args": {"granularity": "layer", "max_epochs": 1, "batch_size": 23},
            },
            "recalibrate": "batchnorm",
        }
    )
    context = context_of(2, Points(testable=False), norm=True)
    made = recipe(context)
    assert made.labelled_examples == 70
    assert len(made.choices[0].details["shares"]["n0"]) == len(list(context.module.parameters()))


def test_what_cannot_be_learned_is_refused_in_a_line():
    with pytest.raises(ConfigError, match="no validation data"):
        Recipe("L", LearnedSoup()).check_context(context_of(2, Points(validated=False)))
    with pytest.raises(ConfigError, match="too fine"):
        LearnedSoup("parameter")


class Inside(Learner):
    """A module whose training step does not go through its forward."""

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])


def test_a_step_that_the_scale_does_not_reach_is_refused():
    context = context_of(2, kind=Inside)
    with pytest.raises(ConfigError, match=r"call self\(inputs\)"):
        LearnedSoup(max_epochs=1)(context.states, context)


class Tempered(Learner):
    """A network with a parameter that is one number."""

    def __init__(self, norm=False):
        super().__init__(norm=norm)
        self.temperature = nn.Parameter(torch.tensor(1.0))

    def forward(self, x):
        return super().forward(x) * self.temperature


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("granularity", ["model", "layer"])
def test_a_parameter_that_is_one_number_has_a_share_like_the_others(count, granularity):
    names = [f"n{number}" for number in range(count)]
    states = [Tempered().state_dict() for _ in names]
    context = Context(Tempered(), states, names, OnlyHeldOut(), quiet_trainer, progress=False)
    (choice,) = LearnedSoup(granularity, max_epochs=1)(states, context).choices
    shares = torch.tensor(list(choice.details["shares"].values()))
    assert shares.shape == (count, 1 if granularity == "model" else len(states[0]))
    torch.testing.assert_close(shares.sum(0), torch.ones(shares.shape[1]))
