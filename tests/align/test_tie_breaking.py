"""Units that the data do not tell apart are told apart by their weights."""

import copy

import pytest
import torch
from networks import Attention, ResNet20, randomised
from torch import Tensor, nn

from lightning_merge.align import ActivationMatching, PermutationSpec
from lightning_merge.align.matching.tie_breaking import tied_units


def convolutional() -> nn.Module:
    """A network of which many units are dead: their biases are far below zero."""
    model = randomised(
        nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 24, 3, padding=1),
            nn.BatchNorm2d(24),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(24, 20),
            nn.ReLU(),
            nn.Linear(20, 4),
        )
    )
    with torch.no_grad():
        model[1].bias[3:11] = -50.0
        model[4].bias[::2] = -50.0
        model[8].bias[5:] = -50.0
    return model


def residual() -> nn.Module:
    """Dead units inside blocks and in streams."""
    model = randomised(ResNet20(width=6))
    with torch.no_grad():
        for block in model.blocks:
            block.bn1.bias[1:4] = -50.0
        model.bn1.bias[:3] = -50.0
    return model


def attention() -> nn.Module:
    """Values that never vary: two columns of one head."""
    model = randomised(Attention())
    with torch.no_grad():
        model.v.weight[4:6] = 0.0
    return model


CASES = {
    "convolutional": (convolutional, (64, 3, 8, 8)),
    "residual": (residual, (16, 3, 16, 16)),
    "attention": (attention, (16, 6, 5)),
}


@pytest.mark.parametrize("case", CASES)
def test_a_permuted_copy_with_dead_units_averages_to_the_network_itself(case: str) -> None:
    build, shape = CASES[case]
    model, twin = build().eval(), build().eval()
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    spec = PermutationSpec.from_model(model, x)
    for seed in range(3):
        permutation = spec.random(torch.Generator().manual_seed(seed))
        twin.load_state_dict(spec.apply(model, permutation))
        state = ActivationMatching().align(spec, model, twin, x.split(16))
        mean = {
            name: (tensor + state[name]) / 2 if tensor.is_floating_point() else tensor
            for name, tensor in model.state_dict().items()
        }
        # Not only on the data: what is dead there need not be dead elsewhere.
        other = 20 * torch.randn(shape, generator=torch.Generator().manual_seed(2))
        for inputs in (x, other):
            expected = model(inputs)
            error = (torch.func.functional_call(model, mean, inputs) - expected).norm()
            assert error <= 1e-6 * expected.norm()


def test_units_that_fire_on_the_same_example_only() -> None:
    class Spikes(nn.Module):
        """Four of the hidden units see one example alone, so that all of them look alike."""

        def __init__(self) -> None:
            super().__init__()
            self.one, self.out = nn.Linear(6, 9), nn.Linear(9, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.one(x).relu())

    generator = torch.Generator().manual_seed(4)
    model, twin = randomised(Spikes()), Spikes()
    x = torch.randn(50, 6, generator=generator)
    x[:, 5] = 0.0
    x[7, 5] = 30.0
    with torch.no_grad():
        model.one.bias[:4] = -40.0
        model.one.weight[:4, 5] = torch.tensor([2.0, 2.5, 3.0, 3.5])
    spec = PermutationSpec.from_model(model, x)
    twin.load_state_dict(spec.apply(model, {"one": torch.randperm(9, generator=generator)}))
    state = ActivationMatching().align(spec, model, twin, [x])
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("seed", range(8))
def test_dead_units_are_told_apart_by_what_joins_them_to_known_ones(seed: int) -> None:
    model = randomised(
        nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 3)), seed
    )
    with torch.no_grad():
        one, two, out = model[0], model[2], model[4]
        # Three dead units that differ in what reads them only, three behind them that differ in
        # what they read of those only.
        one.bias[:3], one.bias[3:], one.weight[3:] = 2, -1, 0
        two.bias[:4], two.bias[4:], two.weight[4:, :3] = 3, -100, 1
        two.weight[4:, 3:] *= 5
        out.weight[:, 4:] = 0
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(9))
    spec = PermutationSpec.from_model(model, x)
    own = model.state_dict()
    other = copy.deepcopy(model)
    other.load_state_dict(spec.apply(own, spec.random(torch.Generator().manual_seed(seed))))
    found = ActivationMatching().align(spec, model, other, [x])
    for name, tensor in own.items():
        assert torch.equal(found[name], tensor), name


def test_ties_are_those_whose_exchange_costs_nothing() -> None:
    scores = torch.eye(8, dtype=torch.float64)
    scores[2, 2] = scores[5, 5] = scores[7, 7] = 0.0  # dead
    scores[:2, :2] = 1.0  # alike
    assert [units.tolist() for units in tied_units(scores)] == [[0, 1], [2, 5, 7]]
    assert [units.tolist() for units in tied_units(scores, blocks=2)] == [[0, 1], [5, 7]]
    assert tied_units(torch.eye(4)) == []
