"""Layers that keep what they make of their weights in evaluation mode, as LeViT's do."""

import copy

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lightning_merge import MergeModule, PermutationSpec
from lightning_merge.aggregate import diagonal_fisher
from lightning_merge.measure.sweeps.weight_scaling import _Network


class Shift(nn.Module):
    """Adds twice its weight, which it makes anew each time it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.made()

    def made(self) -> Tensor:
        return 2 * self.weight


class KeptShift(Shift):
    """The same, made once until the mode is set."""

    kept: Tensor | None = None

    def train(self, mode: bool = True) -> "KeptShift":
        self.kept = None
        return super().train(mode)

    def made(self) -> Tensor:
        if self.training:
            return super().made()
        if self.kept is None:
            self.kept = super().made()
        return self.kept


class Network(LightningModule):
    """A body that stays in evaluation mode."""

    def __init__(self, shift: type[Shift] = KeptShift, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.body = nn.Sequential(nn.Linear(5, 6), shift(), nn.ReLU(), nn.Linear(6, 3))
        self.train()

    def train(self, mode: bool = True) -> "Network":
        super().train(mode)
        self.body.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self(batch).square().sum()


X = torch.randn(4, 5, generator=torch.Generator().manual_seed(1))


def test_fisher_information_is_that_of_the_network_that_keeps_nothing():
    network = Network()
    before = network(X)
    found = diagonal_fisher(network, [X[:2], X[2:]], None)
    torch.testing.assert_close(found, diagonal_fisher(Network(Shift), [X], None))
    assert found["body.1.weight"].any()
    assert torch.equal(network(X), before)


def test_multiplied_weights_are_those_that_run():
    expected = Network(Shift)
    with torch.no_grad():
        scaled = _Network(Network())
        scaled(X)
        scaled.multiply(3.0)
        for parameter in expected.parameters():
            parameter.mul_(3)
        torch.testing.assert_close(scaled(X)[0], expected(X))


def test_each_step_of_a_learned_merge_runs_its_own_weights():
    found = []
    for shift in (KeptShift, Shift):
        states = [Network(shift, seed).state_dict() for seed in range(2)]
        module = MergeModule(Network(shift), states)
        for _ in range(2):
            module.training_step(X, 0).backward()
            module.on_after_backward()
            with torch.no_grad():
                module.alpha_logits += 1
        found.append(module.alpha_logits.grad)
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("ran", [False, True])
def test_listed_groups_are_verified_and_the_network_is_left_as_it_was(ran):
    network = Network().eval()
    groups = PermutationSpec.from_model(copy.deepcopy(network), X).groups
    if ran:
        network(X)
    spec = PermutationSpec.from_groups(groups, network, X)
    assert len(spec.groups) == len(groups) == 1
    torch.testing.assert_close(network(X), Network(Shift)(X))
