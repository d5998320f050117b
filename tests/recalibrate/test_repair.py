"""REPAIR against its closed form and against statistics measured anew."""

import copy
import warnings

import pytest
import timm
import torch
import torch.nn.functional as F
from strangers import randomise
from timm.layers import Conv2dSame, ScaledStdConv2d, ScaledStdConv2dSame
from torch import Tensor, nn

from lightning_merge.aggregate import interpolate
from lightning_merge.errors import ArchitectureMismatchError, ConfigError, DataError, NonFiniteError
from lightning_merge.recalibrate import LeastSquares, repair


class Small(nn.Module):
    """Convolutions with and without a bias, activations in place, and a classifier."""

    def __init__(self, softmax: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 6, 3)
        self.conv2 = nn.Conv2d(6, 8, 3, groups=2, bias=False)
        self.fc = nn.Linear(8, 7)
        self.out = nn.Linear(7, 3)
        self.softmax = softmax

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu_(self.conv2(F.relu_(self.conv1(x))))
        x = self.out(F.relu_(self.fc(F.dropout(x.mean((2, 3)), training=self.training))))
        return x.softmax(-1) if self.softmax else x


def ingredients(alpha: float, **options: bool) -> tuple[Small, Small, Small]:
    """A merged network and its two parents."""
    torch.manual_seed(0)
    a, b, merged = (Small(**options) for _ in range(3))
    merged.load_state_dict(interpolate(a.state_dict(), b.state_dict(), alpha))
    return merged, a, b


def statistics(model: nn.Module, x: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean and deviation of every layer's channels on all data at once, in float64."""
    model = copy.deepcopy(model).double().eval()
    found = {}
    for name, layer in model.named_children():

        def hook(_m: nn.Module, _i: object, y: Tensor, name: str = name) -> None:
            rows = y.detach().transpose(0, 1).flatten(1)
            found[name] = rows.mean(1), rows.std(1, correction=0)

        layer.register_forward_hook(hook)
    model(x.double())
    return found


@pytest.mark.parametrize("alpha", [0.5, 0.2])
@pytest.mark.parametrize("softmax", [False, True])
def test_the_outputs_have_the_statistics_of_their_goal_and_nothing_else_is_changed(
    alpha: float, softmax: bool
) -> None:
    merged, a, b = ingredients(alpha, softmax=softmax)
    before = copy.deepcopy(merged.state_dict())
    x = 1 + 2 * torch.randn(50, 2, 9, 9)
    assert repair(merged, a, b, x.split(20), alpha, which="output") == 1
    of_a, of_b, found = (statistics(model, x)["out"] for model in (a, b, merged))
    for k in (0, 1):
        goal = alpha * of_a[k] + (1 - alpha) * of_b[k]
        torch.testing.assert_close(found[k], goal, rtol=1e-4, atol=1e-5)
    changed = {n for n, v in merged.state_dict().items() if not torch.equal(v, before[n])}
    assert changed == {"out.weight", "out.bias"}


def test_outputs_that_were_rescaled_and_shifted_are_given_back_behind_batchnorm() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)).eval()
    spoiled = copy.deepcopy(network)
    with torch.no_grad():
        spoiled[3].weight *= torch.tensor([[0.2], [3.0], [1.0]])
        spoiled[3].bias += torch.tensor([5.0, -1.0, 0.5])
    x = torch.randn(64, 4)
    repair(spoiled, network, network, x.split(16), which="output")
    torch.testing.assert_close(spoiled(x), network(x), rtol=1e-4, atol=1e-5)


def test_a_classifier_of_timms_own_class_gets_its_outputs_and_is_fitted() -> None:
    torch.manual_seed(0)
    made = [nn.Sequential(nn.Linear(4, 6), nn.ReLU(), timm.layers.Linear(6, 3)) for _ in range(2)]
    a, merged, x = made[0], copy.deepcopy(made[1]), torch.randn(64, 4)
    assert repair(merged, a, a, [x], which="output") == 1
    with torch.no_grad():
        torch.testing.assert_close(merged(x).mean(0), a(x).mean(0))
    assert [step.name for step in LeastSquares([a], [x]).steps] == ["0", "2"]


class Heads(nn.Module):
    """An output that is made of others linearly: of two heads, or of one at several positions."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.body = nn.Linear(4, 7)
        self.heads = nn.ModuleList(nn.Linear(7, 3) for _ in range(heads))

    def forward(self, x: Tensor) -> Tensor:
        z = self.body(x).relu()
        if len(self.heads) == 1:
            return self.heads[0](z.view(-1, 2, 7)).mean(1)
        return (self.heads[0](z) + 3 * self.heads[1](z)) / 4


@pytest.mark.parametrize("heads", [1, 2])
def test_an_output_that_is_made_of_several_gets_the_statistics_of_its_goal(heads: int) -> None:
    torch.manual_seed(0)
    merged, a, b = (Heads(heads).eval() for _ in range(3))
    x = 1 + 2 * torch.randn(64, 4)
    before = copy.deepcopy(merged.state_dict())
    assert repair(merged, a, b, x.split(20), 0.3, which="output") == heads
    with torch.no_grad():
        of_a, of_b, found = (model(x) for model in (a, b, merged))
    torch.testing.assert_close(found.mean(0), 0.3 * of_a.mean(0) + 0.7 * of_b.mean(0))
    torch.testing.assert_close(found.std(0), 0.3 * of_a.std(0) + 0.7 * of_b.std(0))
    torch.testing.assert_close(merged.body.weight, before["body.weight"], rtol=0, atol=0)
    # What makes the output is none of the hidden layers.
    assert repair(merged, a, b, x.split(20)) == 1


class LargestAdded(Heads):
    """As VOLO: to one head's output the largest of the other's over all positions is added."""

    def forward(self, x: Tensor) -> Tensor:
        z = self.body(x).relu()
        return self.heads[0](z) + self.heads[1](z.view(-1, 2, 7)).amax(1)


def test_an_output_that_is_made_of_several_but_not_linearly_is_refused() -> None:
    made = [LargestAdded(2).eval() for _ in range(2)]
    x = torch.randn(8, 4)
    for network in made:
        network.body = nn.Linear(4, 14)
        network.heads[0] = nn.Linear(14, 3)
    with pytest.raises(ConfigError, match="the output of LargestAdded is not that of one"):
        repair(copy.deepcopy(made[1]), *made, [x], which="output")
    assert len(LeastSquares(made, [x]).steps) == 3


def test_an_output_that_no_layer_makes_once_is_refused() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(self.layer(x))

    with pytest.raises(ConfigError, match="the output of Twice is not that of one"):
        repair(Twice(), Twice(), Twice(), [torch.ones(2, 3)], which="output")


@pytest.mark.parametrize("alpha", [0.5, 0.2])
@pytest.mark.parametrize("softmax", [False, True])
def test_every_hidden_channel_has_the_statistics_of_its_goal(alpha: float, softmax: bool) -> None:
    merged, a, b = ingredients(alpha, softmax=softmax)
    merged.train()
    x = 1 + 2 * torch.randn(50, 2, 9, 9)
    before = {name: tensor.clone() for name, tensor in merged.state_dict().items()}
    with torch.inference_mode():
        count = repair(merged, a, b, [(x[:20], 0), (x[20:33], 0), (x[33:], 0)], alpha=alpha)
    assert count == 3
    assert merged.training
    assert torch.equal(merged.out.weight, before["out.weight"])
    assert torch.equal(merged.out.bias, before["out.bias"])
    assert merged.conv2.bias is not None
    assert merged.conv2.bias.requires_grad
    assert not merged.conv2.bias.is_inference()
    goal_a, goal_b, now = (statistics(model, x) for model in (a, b, merged))
    for name in ("conv1", "conv2", "fc"):
        for kind in (0, 1):
            goal = alpha * goal_a[name][kind] + (1 - alpha) * goal_b[name][kind]
            torch.testing.assert_close(now[name][kind], goal, rtol=1e-4, atol=1e-5)


def test_one_layer_has_the_closed_form() -> None:
    torch.manual_seed(1)
    models = [nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)) for _ in range(2)]
    a, b = (model.double() for model in models)
    merged = copy.deepcopy(a)
    merged.load_state_dict(interpolate(a.state_dict(), b.state_dict(), 0.5))
    W, bias = merged[0].weight.detach().clone(), merged[0].bias.detach().clone()
    x = torch.randn(64, 4, dtype=torch.float64) @ torch.randn(4, 4, dtype=torch.float64) + 3
    assert repair(merged, a, b, [x[:10], x[10:]]) == 1
    mean, covariance = x.mean(0), torch.cov(x.T, correction=0)

    def moments(weight: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        return weight @ mean + shift, (weight @ covariance @ weight.T).diagonal().sqrt()

    (m_a, s_a), (m_b, s_b) = (moments(m[0].weight.detach(), m[0].bias.detach()) for m in (a, b))
    m, s = moments(W, bias)
    scale = (s_a + s_b) / 2 / s
    torch.testing.assert_close(merged[0].weight.detach(), W * scale[:, None])
    torch.testing.assert_close(merged[0].bias.detach(), (bias - m) * scale + (m_a + m_b) / 2)


def test_a_network_merged_with_itself_stays_as_it_is() -> None:
    _, a, _ = ingredients(1.0)
    merged = copy.deepcopy(a)
    x = torch.randn(16, 2, 9, 9)
    repair(merged, a, a, [x])
    torch.testing.assert_close(merged.eval()(x), a.eval()(x), rtol=1e-4, atol=1e-5)


def test_channels_that_never_vary_are_shifted_only() -> None:
    merged, a, b = ingredients(0.5)
    with torch.no_grad():
        merged.conv1.weight[0] = 0
    repair(merged, a, b, [torch.randn(8, 2, 9, 9)])
    assert (merged.conv1.weight[0] == 0).all()
    assert all(torch.isfinite(tensor).all() for tensor in merged.state_dict().values())


@pytest.mark.parametrize("height", [300.0, -300.0])
def test_rounding_of_a_constant_is_no_variation(height: float) -> None:
    torch.manual_seed(0)
    a, b, merged = (nn.Sequential(nn.Linear(4, 2), nn.ReLU(), nn.Linear(2, 2)) for _ in range(3))
    with torch.no_grad():
        merged[0].weight[0] *= 1e-5
        merged[0].weight[1] *= 1e-2
        merged[0].bias.fill_(height)
    before, x = merged[0].weight.clone(), torch.randn(64, 4)
    assert merged[0](x)[:, 0].std() > 0
    repair(merged, a, b, [x])
    of_a, of_b, found = (statistics(model, x)["0"] for model in (a, b, merged))
    torch.testing.assert_close(found[0], (of_a[0] + of_b[0]) / 2, rtol=0, atol=1e-3)
    assert torch.equal(merged[0].weight[0], before[0])
    assert found[1][1].item() == pytest.approx((of_a[1][1] + of_b[1][1]).item() / 2, rel=0.01)


class Standardised(nn.Conv2d):
    """Computes with a weight that is not its parameter."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight - self.weight.mean(), self.bias)


def test_layers_that_a_scale_would_not_reach_are_left_alone() -> None:
    def build() -> nn.Sequential:
        first = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
        shared = nn.Linear(4, 4)
        return nn.Sequential(
            Standardised(1, 4, 2), nn.Flatten(), first, shared, shared, nn.Linear(4, 2)
        )

    a, b, merged = build(), build(), build()
    before = copy.deepcopy(merged.state_dict())
    with pytest.warns(UserWarning, match="corrects 0 hidden layers and leaves 3 .* '0' first"):
        assert repair(merged, a, b, [torch.randn(3, 1, 2, 2)]) == 0
    assert all(torch.equal(merged.state_dict()[name], before[name]) for name in before)


class Doubled(nn.Module):
    """A parametrisation."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


class OddBiases(nn.Module):
    """Two layers with one bias, a layer whose bias is computed, and one with its own."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three, self.four = (nn.Linear(4, 4) for _ in range(4))
        self.out = nn.Linear(4, 2)
        self.two.bias = self.one.bias
        nn.utils.parametrize.register_parametrization(self.three, "bias", Doubled())

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.one, self.two, self.three, self.four):
            x = layer(x).relu()
        return self.out(x)


def test_biases_that_are_shared_or_computed_are_left_alone() -> None:
    torch.manual_seed(0)
    a, b, merged = (OddBiases() for _ in range(3))
    for one, other, mean in zip(*(n.parameters() for n in (a, b, merged)), strict=True):
        mean.data = (one.data + other.data) / 2
    before, x = copy.deepcopy(merged.state_dict()), torch.randn(60, 4)
    fitted = LeastSquares([a, b], [x])
    assert [step.name for step in fitted.steps] == ["four", "out"]
    with pytest.warns(UserWarning, match="corrects 1 hidden layers and leaves 3 .* 'one' first"):
        assert repair(merged, a, b, [x]) == 1
    of_a, of_b, found = (statistics(model, x)["four"] for model in (a, b, merged))
    for k in (0, 1):
        torch.testing.assert_close(found[k], (of_a[k] + of_b[k]) / 2, rtol=1e-4, atol=1e-5)
    changed = {n for n, v in merged.state_dict().items() if not torch.equal(v, before[n])}
    assert changed == {"four.weight", "four.bias"}


@pytest.mark.parametrize("conv", [ScaledStdConv2d, ScaledStdConv2dSame, Conv2dSame])
def test_timms_own_convolutions_have_the_statistics_of_their_goal(conv: type[nn.Conv2d]) -> None:
    def network(seed: int) -> nn.Sequential:
        layers = [conv(2, 6, 3, stride=2), nn.ReLU(), nn.Conv2d(6, 3, 4)]
        return randomise(nn.Sequential(*layers), seed)

    a, b, merged = network(0), network(1), network(0)
    merged.load_state_dict(interpolate(a.state_dict(), b.state_dict(), 0.5))
    x = torch.randn(40, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert repair(merged, a, b, [x]) == 1
    of_a, of_b, found = (statistics(model, x)["0"] for model in (a, b, merged))
    for k in (0, 1):
        torch.testing.assert_close(found[k], (of_a[k] + of_b[k]) / 2, rtol=1e-4, atol=1e-5)


class Conditioned(nn.Module):
    """Layers that compute from parameters alone, without a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.code, self.picture = nn.Parameter(torch.randn(5)), nn.Parameter(torch.randn(2, 6, 6))
        self.gate, self.view = nn.Linear(5, 4), nn.Conv2d(2, 4, 3)
        self.one, self.out = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        shift = self.view(self.picture).mean((1, 2))
        return self.out((self.one(x) * self.gate(self.code) + shift).relu())


def test_layers_that_see_no_batch_are_left_alone() -> None:
    torch.manual_seed(0)
    a, merged, x = Conditioned(), Conditioned(), torch.randn(50, 3)
    merged.load_state_dict(a.state_dict())
    with torch.no_grad():
        merged.one.weight *= 0.5
    with pytest.warns(UserWarning, match="corrects 1 hidden layers and leaves 2 .* 'view' first"):
        assert repair(merged, a, a, [x]) == 1
    torch.testing.assert_close(merged(x), a(x))
    with torch.no_grad():
        merged.one.weight *= 0.5
    assert LeastSquares([a], [x])(merged) == 2
    torch.testing.assert_close(merged(x), a(x))


def test_errors_say_what_to_do() -> None:
    merged, a, b = ingredients(0.5)
    with pytest.raises(DataError, match="at least one batch"):
        repair(merged, a, b, [])
    with pytest.raises(ConfigError, match="reset_batchnorm"):
        repair(nn.Sequential(nn.BatchNorm1d(2)), a, b, [])
    with pytest.raises(NonFiniteError, match="layer 'conv1' has an output of NaN"):
        repair(merged, a, b, [torch.full((2, 2, 9, 9), float("nan"))])
    with pytest.raises(ArchitectureMismatchError, match="conv1"):
        repair(merged, a, nn.Linear(2, 2), [torch.randn(2, 2, 9, 9)])
