"""REPAIR meets its goals in every layer, for any number of parents and any batches."""

import copy

import pytest
import torch
from torch import Tensor, nn

from lightning_merge.aggregate import average
from lightning_merge.errors import ConfigError
from lightning_merge.recalibrate import Repair, repair


def perceptron() -> nn.Module:
    layers: list[nn.Module] = []
    for inputs, outputs in ((6, 11), (11, 9), (9, 8)):
        layers += [nn.Linear(inputs, outputs), nn.GELU()]
    return nn.Sequential(*layers, nn.Linear(8, 3))


def convolutions() -> nn.Module:
    """As a VGG: padded convolutions, activations in place, pools, two linear layers."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((2, 7), (7, 9), (9, 8)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(inplace=True)]
        layers += [nn.MaxPool2d(2, ceil_mode=True)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3))


NETWORKS = {"perceptron": (perceptron, (6,), 3), "convolutions": (convolutions, (2, 7, 7), 4)}


def parents_of(build, count: int) -> list[nn.Module]:
    """Networks with random weights and biases, in float64."""
    models = []
    for seed in range(count):
        torch.manual_seed(seed)
        model = build().double().eval()
        for parameter in model.parameters():
            if parameter.ndim == 1:
                nn.init.normal_(parameter, std=0.3)
        models.append(model)
    return models


def merge_of(parents: list[nn.Module], weights: list[float]) -> nn.Module:
    merged = copy.deepcopy(parents[0])
    merged.load_state_dict(average([parent.state_dict() for parent in parents], weights))
    return merged


def measured(model: nn.Module, names: list[str], x: Tensor) -> dict[str, Tensor]:
    """Mean and deviation of each layer's channels on all data at once, `(2, C)`."""
    found: dict[str, Tensor] = {}
    handles = []
    for name in names:

        def hook(_m: nn.Module, _i: object, y: Tensor, name: str = name) -> None:
            rows = y.detach().transpose(0, 1).flatten(1)
            found[name] = torch.stack([rows.mean(1), rows.std(1, correction=0)])

        handles.append(model.get_submodule(name).register_forward_hook(hook))
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return found


def layers_of(model: nn.Module) -> list[str]:
    """All convolutions and linear layers but the classifier."""
    kinds = (nn.Conv2d, nn.Linear)
    return [name for name, layer in model.named_modules() if isinstance(layer, kinds)][:-1]


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("weights", [[0.3, 0.7], [0.2, 0.5, 0.3]])
def test_the_measured_statistics_are_the_goals(network: str, weights: list[float]) -> None:
    build, shape, count = NETWORKS[network]
    parents = parents_of(build, len(weights))
    merged = merge_of(parents, weights)
    x = 2 * torch.randn(48, *shape, dtype=torch.float64) + 0.5
    names = layers_of(merged)
    assert len(names) == count
    of_parents = [measured(parent, names, x) for parent in parents]
    before = measured(merged, names, x)
    correct = Repair(parents, [x[:7], x[7:40], x[40:]])
    assert correct.layers == names
    # Any multiple of the weights says the same.
    assert correct(merged, [10 * weight for weight in weights]) == count
    now = measured(merged, names, x)
    for name in names:
        goal = sum(w * found[name] for w, found in zip(weights, of_parents, strict=True))
        torch.testing.assert_close(now[name], goal, rtol=1e-9, atol=1e-11)
        stated = correct.goal(name, weights)
        torch.testing.assert_close(torch.stack([stated.mean, stated.std]), goal)
        assert not torch.allclose(before[name], goal, rtol=1e-2)


def test_correcting_all_layers_at_once_would_miss_the_goals() -> None:
    """Why each layer is measured behind the corrected ones."""
    parents = parents_of(perceptron, 2)
    merged = merge_of(parents, [0.5, 0.5])
    x = torch.randn(64, 6, dtype=torch.float64)
    names = layers_of(merged)
    correct = Repair(parents, [x])
    before = measured(merged, names, x)
    at_once = copy.deepcopy(merged)
    for name in names:
        layer, goal = at_once.get_submodule(name), correct.goal(name)
        scale = goal.std / before[name][1]
        with torch.no_grad():
            layer.bias.copy_((layer.bias - before[name][0]) * scale + goal.mean)
            layer.weight.mul_(scale[:, None])
    correct(merged)
    missed, met = (measured(model, names, x) for model in (at_once, merged))
    for position, name in enumerate(names):
        goal = correct.goal(name)
        wanted = torch.stack([goal.mean, goal.std])
        torch.testing.assert_close(met[name], wanted)
        assert torch.allclose(missed[name], wanted) == (position == 0)


def test_the_first_layer_has_the_closed_form_of_its_parents_moments() -> None:
    """Merged pre-activations of the first layer are the parents' average: its variance is that
    of a weighted sum of two correlated variables."""
    parents = parents_of(perceptron, 2)
    alpha = 0.3
    merged = merge_of(parents, [alpha, 1 - alpha])
    x = torch.randn(200, 6, dtype=torch.float64) @ torch.randn(6, 6, dtype=torch.float64)
    weight = merged[0].weight.detach().clone()
    a, b = (parent[0](x).detach() for parent in parents)
    s_a, s_b = a.std(0, correction=0), b.std(0, correction=0)
    rho = ((a - a.mean(0)) * (b - b.mean(0))).mean(0) / (s_a * s_b)
    variance = (
        (alpha * s_a) ** 2 + ((1 - alpha) * s_b) ** 2 + 2 * alpha * (1 - alpha) * rho * s_a * s_b
    )
    repair(merged, *parents, [x], alpha=alpha)
    scale = (alpha * s_a + (1 - alpha) * s_b) / variance.sqrt()
    # Averaging never adds to the deviation; here it takes much of it away.
    assert (scale >= 1).all()
    assert scale.max() > 2
    torch.testing.assert_close(merged[0].weight.detach(), weight * scale[:, None])


def test_padded_convolutions_have_the_closed_form_of_their_patches() -> None:
    torch.manual_seed(3)
    a, b = (
        nn.Sequential(nn.Conv2d(2, 5, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(180, 2))
        for _ in range(2)
    )
    a, b = a.double(), b.double()
    merged = merge_of([a, b], [1, 1])
    old = merged[0].weight.detach().flatten(1).clone(), merged[0].bias.detach().clone()
    x = torch.randn(9, 2, 6, 6, dtype=torch.float64) + 1
    patches = nn.functional.unfold(x, 3, padding=1).transpose(0, 1).flatten(1)
    mean, covariance = patches.mean(1), torch.cov(patches, correction=0)

    def moments(w: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        return w @ mean + shift, (w @ covariance @ w.T).diagonal().sqrt()

    of_a, of_b = (
        moments(model[0].weight.detach().flatten(1), model[0].bias.detach()) for model in (a, b)
    )
    m, s = moments(*old)
    repair(merged, a, b, [x[:4], x[4:]])
    scale = (of_a[1] + of_b[1]) / 2 / s
    torch.testing.assert_close(merged[0].weight.detach().flatten(1), old[0] * scale[:, None])
    torch.testing.assert_close(
        merged[0].bias.detach(), (old[1] - m) * scale + (of_a[0] + of_b[0]) / 2
    )


def test_parents_are_looked_at_one_at_a_time_and_batches_once() -> None:
    parents = parents_of(perceptron, 3)
    merged = merge_of(parents, [1, 1, 1])
    again = copy.deepcopy(merged)
    x = torch.randn(20, 6, dtype=torch.float64)
    correct = Repair((parent for parent in parents), (batch for batch in (x[:9], x[9:])))
    assert correct.without_bias == []
    correct(merged)
    correct(again, [1, 1, 1])
    for one, other in zip(merged.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)
    # Done a second time it changes nothing: the goals are met.
    before = copy.deepcopy(merged.state_dict())
    correct(merged)
    for name, value in merged.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("weights", [[1.0], [1.5, -0.5], [0.0, 0.0], [float("nan"), 1.0]])
def test_weights_without_a_deviation_to_aim_at_are_refused(weights: list[float]) -> None:
    parents = parents_of(perceptron, 2)
    correct = Repair(parents, [torch.randn(4, 6, dtype=torch.float64)])
    with pytest.raises(ConfigError, match="one for each, none negative"):
        correct(parents[0], weights)


def test_no_parents() -> None:
    with pytest.raises(ConfigError, match="at least one"):
        Repair([], [torch.randn(4, 6)])


def test_layers_without_a_bias_are_named() -> None:
    model = nn.Sequential(nn.Linear(4, 3, bias=False), nn.ReLU(), nn.Linear(3, 3), nn.Linear(3, 2))
    assert Repair([model], [torch.randn(5, 4)]).without_bias == ["0"]
