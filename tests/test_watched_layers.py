"""Networks whose layers are called otherwise, by name or by compiled code, as equals of others."""

import pytest
import torch
from strangers import quiet_trainer
from tiny_contexts import Perceptron, Points, trained
from torch import nn

from lightning_merge import (
    ActivationMatching,
    Average,
    CCAMatching,
    Context,
    Recipe,
    RegMean,
    ZipIt,
)
from lightning_merge.state_dicts import digest


class Named(nn.Sequential):
    """Every layer gets its input by name."""

    def forward(self, input):
        for layer in self:
            input = layer(input=input)
        return input


class ByName(Perceptron):
    def __init__(self, norm=False):
        super().__init__(norm)
        self.net = Named(*self.net)


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize(
    "parts",
    [
        {"aggregate": Average(), "align": ActivationMatching()},
        {"aggregate": Average(), "align": ActivationMatching(symmetries="all")},
        {"aggregate": Average(), "align": CCAMatching(gamma=0.1)},
        {"aggregate": Average(), "recalibrate": "least-squares"},
        {"aggregate": Average(), "recalibrate": "outputs"},
        {"aggregate": RegMean()},
        {"aggregate": ZipIt()},
    ],
    ids=["permutations", "all", "CCA", "least squares", "outputs", "RegMean", "ZipIt"],
)
def test_merges_do_not_depend_on_how_layers_are_called(norm, parts):
    states = [trained(seed, steps=8, norm=norm).state_dict() for seed in range(2)]
    found = [
        Recipe("one", **parts)(
            Context(kind(norm=norm), states, ["a", "b"], Points(), quiet_trainer, progress=False)
        ).module.state_dict()
        for kind in (Perceptron, ByName)
    ]
    assert digest(found[0]) == digest(found[1])
    assert digest(found[0]) != digest(states[0])


class Compiled(Perceptron):
    def __init__(self):
        super().__init__()
        self.net = torch.compile(self.net, backend="eager")


@pytest.mark.parametrize(
    "parts",
    [
        {"aggregate": Average(), "recalibrate": "repair"},
        {"aggregate": Average(), "recalibrate": "outputs"},
        {"aggregate": RegMean()},
    ],
    ids=["REPAIR", "outputs", "RegMean"],
)
def test_merges_of_networks_that_ran_compiled_are_those_of_plain_ones(parts):
    torch.compiler.reset()
    states = [trained(seed, steps=8).state_dict() for seed in range(2)]
    found = []
    for kind in (Perceptron, Compiled):
        module = kind().eval()
        with torch.no_grad():
            module(torch.zeros(32, 6))
        named = [dict(zip(module.state_dict(), s.values(), strict=True)) for s in states]
        context = Context(module, named, ["a", "b"], Points(), quiet_trainer, progress=False)
        found.append([*Recipe("one", **parts)(context).module.state_dict().values()])
    torch.testing.assert_close(found[1], found[0])
