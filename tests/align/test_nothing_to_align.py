"""Networks without units that could be permuted: rightly so, or because of how they are written."""

import warnings

import pytest
import torch
from networks import Perceptron, randomised
from torch import nn
from torch.nn.utils.parametrizations import orthogonal, spectral_norm, weight_norm
from torch.nn.utils.parametrize import remove_parametrizations

from lightning_merge.align import (
    ActivationMatching,
    CCAMatching,
    CycleConsistentMatching,
    MergeMany,
    PermutationSpec,
    TransportMatching,
    WeightMatching,
)
from lightning_merge.errors import AlignmentError

X = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))


def computed(wrap) -> Perceptron:
    model = randomised(Perceptron())
    for layer in (model.one, model.two, model.out):
        wrap(layer)
    return model


@pytest.mark.filterwarnings("ignore:.*the output does not depend on it")  # What is only kept.
@pytest.mark.parametrize(
    ("wrap", "kind"),
    [(weight_norm, "WeightNorm"), (spectral_norm, "SpectralNorm"), (orthogonal, "Orthogonal")],
)
def test_computed_weights_are_refused_by_the_name_of_what_computes_them(wrap, kind) -> None:
    model = computed(wrap)
    for _ in range(2):  # what was derived once is refused again
        with pytest.raises(AlignmentError, match=f"'one.weight' by .*{kind}.*remove_param") as info:
            PermutationSpec.from_model(model, X)
        assert "\n" not in str(info.value)
    for layer in (model.one, model.two, model.out):
        remove_parametrizations(layer, "weight")
    assert [group.name for group in PermutationSpec.from_model(model, X).groups] == ["one", "two"]


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_older_weight_norm_is_refused_too() -> None:
    model = computed(torch.nn.utils.weight_norm)
    with pytest.raises(AlignmentError, match=r"weight_norm.*remove_weight_norm"):
        PermutationSpec.from_model(model, X)


def test_one_computed_layer_among_others_is_named() -> None:
    class Deeper(Perceptron):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(5, 4)
            self.second = weight_norm(nn.Linear(4, 5))

        def forward(self, x):
            return super().forward(self.second(self.first(x).relu()))

    with pytest.warns(UserWarning, match=r"1 layers? .*'second.weight'.*remove_parametrizations"):
        spec = PermutationSpec.from_model(Deeper(), X)
    assert [group.name for group in spec.groups] == ["one", "two"]


def test_an_operator_without_a_rule_that_costs_all_groups_is_named() -> None:
    class Summed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.out = nn.Linear(5, 8), nn.Linear(8, 3)

        def forward(self, x):
            return self.out(self.one(x).cumsum(-1))

    with pytest.raises(AlignmentError, match=r"operator cumsum has no rule.*from_groups"):
        PermutationSpec.from_model(Summed(), X)


@pytest.mark.parametrize(
    "matching",
    [
        ActivationMatching(),
        WeightMatching(),
        CCAMatching(0.1),
        MergeMany(symmetries="all"),
        CycleConsistentMatching(),
        TransportMatching(),
    ],
)
def test_a_linear_classifier_is_left_as_it_is_and_that_is_no_secret(matching) -> None:
    a, b = nn.Linear(5, 3), nn.Linear(5, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        spec = PermutationSpec.from_model(a, X)
    assert spec.groups == []
    with pytest.warns(UserWarning, match="nothing to align.*the network's output") as caught:
        state = matching.align(spec, a, b, [X])
    assert all("\n" not in str(warning.message) for warning in caught)
    assert all(torch.equal(state[name], tensor) for name, tensor in b.state_dict().items())
