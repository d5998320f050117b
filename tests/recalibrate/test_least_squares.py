"""Least squares against networks that it must find again, and against another solver."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_merge.aggregate import interpolate
from lightning_merge.errors import ArchitectureMismatchError, ConfigError, DataError, NonFiniteError
from lightning_merge.linear_layers import input_rows, output_rows
from lightning_merge.recalibrate import LeastSquares, reset_batchnorm
from lightning_merge.recalibrate.ridge import Sums, regressed


class Convolutions(nn.Module):
    """Strides, groups, dilation, residual sums, norms behind layers and in front of them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(8)
        self.wide = nn.Conv2d(8, 8, 3, padding="same", dilation=2, groups=4)
        self.before = nn.BatchNorm2d(8)
        self.down = nn.Conv2d(8, 12, 3, stride=2, padding=1)
        self.down_norm = nn.BatchNorm2d(12)
        self.shortcut = nn.Conv2d(8, 12, 1, stride=2)
        self.act = nn.ReLU(inplace=True)
        self.depthwise = nn.Conv2d(
            12, 12, (3, 1), groups=12, padding_mode="reflect", padding=(1, 0)
        )
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.stem_norm(self.stem(x)))
        x = x + self.wide(x)
        x = torch.relu(self.before(x))
        x = self.act(self.down_norm(self.down(x)) + self.shortcut(x))
        return self.head(self.depthwise(x).mean((2, 3)))


class Tokens(nn.Module):
    """Two pre-norm blocks with scaled residual sums and no bias in one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 10, 2, stride=2)
        self.norms = nn.ModuleList(nn.LayerNorm(10) for _ in range(3))
        self.up = nn.ModuleList(nn.Linear(10, 24) for _ in range(2))
        self.act = nn.GELU()
        self.down = nn.ModuleList(nn.Linear(24, 10, bias=index == 1) for index in range(2))
        self.scales = nn.ParameterList(torch.linspace(0.2, 0.9, 10) for _ in range(2))
        self.head = nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).mT
        for norm, up, down, scale in zip(self.norms, self.up, self.down, self.scales, strict=False):
            x = x + scale * down(self.act(up(norm(x))))
        return self.head(self.norms[2](x).mean(1))


class NormAndAct(nn.BatchNorm2d):
    """As timm has it: a norm that holds its activation."""

    def __init__(self, units: int) -> None:
        super().__init__(units)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(super().forward(x))


class Block(nn.Module):
    """A residual block that changes what it is given in place."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(8, 6, 3, padding=1, bias=False)
        self.norm = NormAndAct(6)
        self.two = nn.Conv2d(6, 8, 3, padding=1)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(x)
        return x + self.two(self.norm(self.one(x)))


class Blocks(nn.Module):
    """Residual blocks that can be run alone."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.blocks = nn.Sequential(*(Block() for _ in range(3)))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


NETWORKS = {"convolutions": Convolutions, "tokens": Tokens, "blocks": Blocks}


def images(count: int = 200, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def network(kind: str, seed: int) -> nn.Module:
    """A network whose norms have weights, and statistics of the images."""
    torch.manual_seed(seed)
    made = NETWORKS[kind]()
    for layer in made.modules():
        if isinstance(layer, nn.BatchNorm2d | nn.LayerNorm):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, std=0.3)
    reset_batchnorm(made, [images()])
    return made.eval()


def mean(a: nn.Module, b: nn.Module) -> nn.Module:
    made = copy.deepcopy(a)
    made.load_state_dict(interpolate(a.state_dict(), b.state_dict(), 0.5))
    return made


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("share", [[1.0, 0.0], None])
def test_layers_with_random_weights_are_those_of_the_parents_again(
    kind: str, share: list[float] | None
) -> None:
    parent = network(kind, 0)
    other = network(kind, 1) if share else copy.deepcopy(parent)
    merged = copy.deepcopy(parent)
    torch.manual_seed(2)
    for layer in merged.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.reset_parameters()
    x = images(100, seed=1)
    with torch.no_grad():
        wanted = parent(x)
        assert (merged(x) - wanted).abs().max() > 0.1

    LeastSquares([parent, other], list(images().split(50)))(merged, share)

    with torch.no_grad():
        assert torch.allclose(merged(x), wanted, atol=2e-3 * float(wanted.abs().max()))


@pytest.mark.parametrize("kind", NETWORKS)
def test_some_rows_and_one_layer_at_a_time_are_enough(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightning_merge.recalibrate.regression_goals._ROWS_OF_AN_INPUT", 4)
    monkeypatch.setattr("lightning_merge.recalibrate.regression_goals.MEMORY", 1)
    monkeypatch.setattr("lightning_merge.recalibrate.least_squares._CHUNK", 1 << 14)
    test_layers_with_random_weights_are_those_of_the_parents_again(kind, None)


def test_chosen_rows_are_those_of_all_patches() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(6, 4, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=2)
    x = torch.randn(3, 6, 9, 7)
    patches = F.unfold(x, (3, 2), dilation=(1, 2), padding=(1, 0), stride=(2, 1))
    # (B, groups * d, L) -> (groups, B * L, d)
    every = patches.unflatten(1, (2, -1)).permute(1, 0, 3, 2).flatten(1, 2).double()
    chosen = torch.tensor([0, 7, 30, 31, 74])
    assert output_rows(layer, x) == every.shape[1]
    assert torch.equal(input_rows(layer, x), every)
    assert torch.equal(input_rows(layer, x, chosen), every[:, chosen])


@pytest.mark.parametrize("kind", NETWORKS)
def test_the_fitted_classifier_is_the_solution_of_another_solver(kind: str) -> None:
    a, b = network(kind, 0), network(kind, 1)
    merged, x = mean(a, b), images(1000)
    LeastSquares([a, b], [x])(merged)

    given: list[Tensor] = []
    merged.head.register_forward_pre_hook(lambda _m, args: given.append(args[0]))
    with torch.no_grad():
        found, goal = merged(x), (a(x) + b(x)) / 2
    rows = np.c_[given[0].double().numpy(), np.ones(len(x))]
    best, *_ = np.linalg.lstsq(rows, goal.double().numpy(), rcond=None)
    least = ((rows @ best - goal.double().numpy()) ** 2).sum()

    assert float((found - goal).double().square().sum()) == pytest.approx(least, rel=1e-2)


@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("kind", ["little noise", "much noise", "dead inputs", "one example"])
def test_regression_is_that_of_another_solver(kind: str, constant: bool) -> None:
    x = torch.randn(2, 1 if kind == "one example" else 40, 6, dtype=torch.float64)
    x *= torch.tensor([[[0.0 if kind == "dead inputs" else 1.0]], [[3.0]]])
    if constant:
        x[..., -1] = 1
    start = torch.randn(2, 6, 3, dtype=torch.float64)
    t = x @ (start + 0.3 * torch.randn_like(start)) + torch.randn(3)
    t += {"much noise": 9.0}.get(kind, 0.3) * torch.randn_like(t)
    # Every third example is not fitted, the first among them.
    checked = torch.arange(x.shape[1]) % 3 == 0
    penalised = np.array([1.0] * 5 + [0.0 if constant else 1.0])

    def solved(rows: Tensor, goals: Tensor, ridge: float) -> np.ndarray:
        found = []
        for inputs, wanted, old in zip(rows.numpy(), goals.numpy(), start.numpy(), strict=True):
            square = ((inputs**2).sum(0) * penalised).sum() / penalised.sum()
            stacked = np.concatenate([inputs, np.diag((ridge * square) ** 0.5 * penalised)])
            missing = np.concatenate([wanted - inputs @ old, np.zeros_like(old)])
            found.append(old + np.linalg.lstsq(stacked, missing)[0])
        return np.stack(found)

    errors = []
    for ridge in (ridges := (1e-6, 1e-4, 1e-2, 1.0, 1e2, 1e4)):
        weights = solved(x[:, ~checked], t[:, ~checked], ridge)
        errors.append(((x[:, checked].numpy() @ weights - t[:, checked].numpy()) ** 2).sum())
    # From the weakest on, until a stronger one does worse.
    worse = [k for k in range(5) if errors[k + 1] > errors[k] * (1 + 1e-9)]
    chosen = ridges[worse[0] if worse else 5]
    fit, check = (Sums.of(x[:, part], t[:, part]) for part in (~checked, checked))
    found = regressed(fit, check, start, constant).numpy()
    np.testing.assert_allclose(found, solved(x, t, chosen), rtol=1e-5, atol=1e-6)


def test_a_residual_sum_makes_up_for_what_is_not_fitted() -> None:
    parent = network("tokens", 0)
    merged = copy.deepcopy(parent)
    x = images(100, seed=1)
    with torch.no_grad():
        wanted = parent(x)
        # Fitted to its own output alone, a layer would be added with these shares.
        for scale in merged.scales:
            scale *= torch.linspace(0.3, 2.0, 10)
        assert (merged(x) - wanted).abs().max() > 0.1
        LeastSquares([parent, parent], [images()])(merged)
        assert torch.allclose(merged(x), wanted, atol=2e-3 * float(wanted.abs().max()))


@pytest.mark.parametrize("kind", NETWORKS)
def test_the_mean_of_unlike_networks_comes_nearer_to_their_mean_output(kind: str) -> None:
    a, b = network(kind, 0), network(kind, 1)
    x = images(300, seed=3)
    with torch.no_grad():
        goal = (a(x) + b(x)) / 2
        errors = {}
        for count in (6, 400):
            merged = mean(a, b)
            before = float((merged(x) - goal).square().mean())
            LeastSquares([a, b], [images(count)])(merged)
            errors[count] = float((merged(x) - goal).square().mean()) / before
    assert errors[400] < 0.5
    # From few examples little is learned, and little spoiled.
    assert errors[6] < 1.2


@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_and_the_norm_behind_it_give_together_what_the_parents_do(bias: bool) -> None:
    def made(seed: int) -> nn.Sequential:
        torch.manual_seed(seed)
        layers = [nn.Linear(6, 4, bias=bias), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3)]
        network = nn.Sequential(*layers)
        nn.init.normal_(network[1].weight)
        nn.init.normal_(network[1].bias)
        reset_batchnorm(network, [x])
        return network.eval()

    x = torch.randn(1000, 6, generator=torch.Generator().manual_seed(0)) + 2
    a, b = made(0), made(1)
    merged = mean(a, b)
    LeastSquares([a, b], list(x.split(300)))(merged, [3, 1])
    with torch.no_grad():
        # Of inputs that all have, it is linear.
        goal = 0.75 * a[:2](x) + 0.25 * b[:2](x)
        torch.testing.assert_close(merged[:2](x), goal, rtol=1e-4, atol=1e-4)
        given = merged[0](x).double()
    variance, middle = torch.var_mean(given, 0, correction=0)
    torch.testing.assert_close(merged[1].running_mean.double(), middle, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(merged[1].running_var.double(), variance, rtol=1e-3, atol=1e-4)


def test_the_statistics_of_norms_are_the_networks_own() -> None:
    a, b = network("convolutions", 0), network("convolutions", 1)
    merged = mean(a, b)
    LeastSquares([a, b], [images()])(merged)
    x = images(50, seed=1)
    with torch.no_grad():
        before = merged(x)
        reset_batchnorm(merged, [images()])
        assert torch.allclose(merged(x), before, atol=0.02 * float(before.std()))


@pytest.mark.parametrize("kind", NETWORKS)
def test_the_size_of_batches_does_not_matter(kind: str) -> None:
    a, b = network(kind, 0), network(kind, 1)
    found = []
    for size in (1, 60):
        merged = mean(a, b)
        LeastSquares([a, b], list(images(60).split(size)))(merged)
        with torch.no_grad():
            found.append(merged(images(20, seed=4)))
    assert torch.allclose(found[0], found[1], atol=1e-3 * float(found[1].abs().max()))


def test_blocks_are_run_alone_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = network("blocks", 0), network("blocks", 1)
    alone, whole = mean(a, b), mean(a, b)
    fit = LeastSquares([a, b], list(images().split(50)))
    named = {step.name: step.block for step in fit.steps}
    assert named["blocks.1.one"] == named["blocks.1.two"] == "blocks.1"
    runs = []
    alone.register_forward_pre_hook(lambda *_: runs.append("alone"))
    whole.register_forward_pre_hook(lambda *_: runs.append("whole"))
    fit(alone)
    # A byte less than the inputs of a block, 4 batches of 50 in float32.
    limit = 4 * 50 * 8 * 4 * 4 * 4 - 1
    monkeypatch.setattr("lightning_merge.recalibrate.least_squares.MEMORY", limit)
    fit(whole)
    for name, value in alone.state_dict().items():
        assert torch.equal(value, whole.state_dict()[name]), name
    assert runs.count("alone") < runs.count("whole")


def test_nothing_but_the_merge_is_changed() -> None:
    a, b = network("convolutions", 0), network("convolutions", 1)
    merged = mean(a, b).train()
    parents = [copy.deepcopy(one.state_dict()) for one in (a, b)]
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    count = LeastSquares([a, b], [images(40)])(merged)
    assert torch.equal(torch.rand(3), expected)
    assert count == 6
    assert all(layer.training for layer in merged.modules())
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in merged.modules())
    assert list(merged.state_dict()) == list(parents[0])
    for one, before in zip((a, b), parents, strict=True):
        assert all(torch.equal(value, before[name]) for name, value in one.state_dict().items())


def test_layers_that_run_twice_or_share_weights_stay_as_they_are() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shared = nn.Linear(4, 4)
            self.head = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.tanh(self.shared(torch.tanh(self.shared(x)))))

    torch.manual_seed(0)
    a, b = Twice(), Twice()
    merged = mean(a, b)
    shared, head = merged.shared.weight.clone(), merged.head.weight.clone()
    assert LeastSquares([a, b], [torch.randn(50, 4)])(merged) == 1
    assert torch.equal(merged.shared.weight, shared)
    assert not torch.equal(merged.head.weight, head)


def test_errors_are_one_line_that_says_what_to_do() -> None:
    a, b = network("tokens", 0), network("tokens", 1)
    with pytest.raises(ConfigError, match="the networks that were merged"):
        LeastSquares([], [images(4)])
    with pytest.raises(DataError, match="at least one batch"):
        LeastSquares([a, b], [])
    with pytest.raises(ConfigError, match="Flatten has no linear layer"):
        LeastSquares([nn.Flatten()], [images(4)])
    with pytest.raises(ConfigError, match="one for each"):
        LeastSquares([a, b], [images(4)])(mean(a, b), [1.0])
    with pytest.raises(ArchitectureMismatchError, match="'embed' is not the same layer"):
        LeastSquares([a, b], [images(4)])(network("convolutions", 0))
    broken = images(8)
    broken[5] = float("nan")
    with pytest.raises(NonFiniteError, match="least squares: layer 'embed'"):
        LeastSquares([a, b], [broken])(mean(a, b))


def test_half_precision_networks_are_fitted() -> None:
    a, b = (network("tokens", seed).to(torch.bfloat16) for seed in (0, 1))
    merged = mean(a, b)
    x = images(200).to(torch.bfloat16)
    with torch.no_grad():
        goal = (a(x) + b(x)).float() / 2
        before = F.mse_loss(merged(x).float(), goal)
        LeastSquares([a, b], [x])(merged)
        assert F.mse_loss(merged(x).float(), goal) < 0.7 * before
