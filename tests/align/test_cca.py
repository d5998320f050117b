"""CCA matching against planted maps and what the formulas say of their limits."""

import numpy as np
import pytest
import scipy.linalg
import timm
import torch
from networks import Perceptron, ResNet20, randomised
from torch import Tensor, nn

from lightning_merge.align import ActivationMatching, CCAMatching, PermutationSpec
from lightning_merge.align.matching.cca import choose
from lightning_merge.align.matching.cca_map import Spectra
from lightning_merge.errors import AlignmentError


class Linear(nn.Module):
    """Two hidden layers without a non-linearity, where any map can be undone exactly."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.out = nn.Linear(7, 6), nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.two(self.one(x)))


def mixed(model: nn.Module, kind: str, generator: torch.Generator) -> dict[str, Tensor]:
    """The same function, with the units of both hidden layers mixed."""
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for layer, reader in (("one", "two"), ("two", "out")):
        n = len(state[f"{layer}.bias"])
        M = torch.randn(n, n, generator=generator, dtype=torch.float64)
        if kind == "permutation":
            M = torch.eye(n, dtype=torch.float64)[torch.randperm(n, generator=generator)]
        elif kind == "orthogonal":
            M = torch.linalg.qr(M).Q
        else:
            M = M + 3 * torch.eye(n, dtype=torch.float64)
        state[f"{layer}.weight"] = M @ state[f"{layer}.weight"]
        state[f"{layer}.bias"] = M @ state[f"{layer}.bias"]
        state[f"{reader}.weight"] = state[f"{reader}.weight"] @ torch.linalg.inv(M)
    return state


@pytest.mark.parametrize("kind", ["permutation", "orthogonal", "invertible"])
def test_a_planted_mixing_of_a_linear_network_is_undone(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    model, twin = randomised(Linear()).double(), Linear().double()
    twin.load_state_dict(mixed(model, kind, generator))
    batches = [torch.randn(200, 7, generator=generator, dtype=torch.float64) for _ in range(3)]
    spec = PermutationSpec.from_model(model, batches[0])
    state = CCAMatching(gamma=0).align(spec, model, twin, batches)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(state[name], tensor, rtol=1e-6, atol=1e-6)


def observed(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Two correlated sets of centred units, `(400, 6)` each."""
    shared = torch.randn(400, 6, generator=generator, dtype=torch.float64)
    noise = torch.randn(400, 6, generator=generator, dtype=torch.float64)
    maps = torch.randn(2, 6, 6, generator=generator, dtype=torch.float64)
    a, b = shared @ maps[0], (shared + 0.5 * noise) @ maps[1]
    return a - a.mean(0), b - b.mean(0)


def test_the_map_has_its_inverse_and_gives_b_the_covariance_of_a() -> None:
    a, b = observed(torch.Generator().manual_seed(1))
    T = Spectra(a.T @ a / 400, a.T @ b / 400, b.T @ b / 400).linear_map(0.0)
    torch.testing.assert_close(T.forward @ T.inverse, torch.eye(6, dtype=torch.float64))
    new = b @ T.forward
    torch.testing.assert_close(new.T @ new, a.T @ a)
    # The canonical correlations do not depend on the coordinates either network uses.
    correlations = torch.linalg.svdvals(torch.linalg.qr(a).Q.T @ torch.linalg.qr(b).Q)
    whiten = torch.linalg.inv(torch.linalg.cholesky(a.T @ a).T)
    torch.testing.assert_close(torch.trace((a @ whiten).T @ (new @ whiten)), correlations.sum())


@pytest.mark.parametrize("gamma", [1e-3, 0.1, 2.0])
def test_the_map_is_that_of_its_formula(gamma: float) -> None:
    a, b = (x.numpy() for x in observed(torch.Generator().manual_seed(1)))
    found = Spectra(*(torch.from_numpy(x) for x in (a.T @ a, a.T @ b, b.T @ b))).linear_map(gamma)
    ridged = (s + gamma * np.trace(s) / 6 * np.eye(6) for s in (a.T @ a, b.T @ b))
    root_a, root_b = (scipy.linalg.sqrtm(s).real for s in ridged)
    u, _, vt = np.linalg.svd(np.linalg.inv(root_a) @ a.T @ b @ np.linalg.inv(root_b))
    expected = np.linalg.inv(root_b) @ vt.T @ u.T @ root_a
    np.testing.assert_allclose(found.forward.numpy(), expected, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(found.inverse.numpy(), np.linalg.inv(expected), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("gamma", [0.0, 0.1])
@pytest.mark.parametrize("seed", range(4))
def test_silent_units_become_silent_ones_wherever_they_are(gamma: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(300, 7, generator=generator, dtype=torch.float64) @ torch.randn(
        7, 7, generator=generator, dtype=torch.float64
    )
    a[:, :3] = 0
    order = torch.randperm(7, generator=generator)
    # What is turned round has correlations below those of silent units.
    b = -a[:, order]
    forward = Spectra(a.T @ a, a.T @ b, b.T @ b).linear_map(gamma).forward
    torch.testing.assert_close(b @ forward, a, rtol=1e-6, atol=1e-6)
    # Some order of all units, the silent ones too.
    torch.testing.assert_close(forward.abs().amax(0), torch.ones(7, dtype=torch.float64))
    torch.testing.assert_close(forward.abs().sum(0), torch.ones(7, dtype=torch.float64))


@pytest.mark.parametrize("silent", [(0,), (1,), (0, 1)])
def test_networks_of_which_one_never_varies_are_left_as_they_are(silent: tuple[int, ...]) -> None:
    both = list(observed(torch.Generator().manual_seed(1)))
    for index in silent:
        both[index] *= 0
    a, b = both
    found = Spectra(a.T @ a, a.T @ b, b.T @ b).linear_map(0.1)
    one = torch.eye(6, dtype=torch.float64)
    assert torch.equal(found.forward, one)
    assert torch.equal(found.inverse, one)


def test_units_that_others_make_up_leave_a_map_with_an_inverse() -> None:
    generator = torch.Generator().manual_seed(5)
    a, b = (
        torch.randn(50, 3, generator=generator, dtype=torch.float64)
        @ torch.randn(3, 6, generator=generator, dtype=torch.float64)
        for _ in range(2)
    )
    found = Spectra(a.T @ a, a.T @ b, b.T @ b).linear_map(0.0)
    one = torch.eye(6, dtype=torch.float64)
    torch.testing.assert_close(found.forward @ found.inverse, one, rtol=0, atol=1e-6)


def test_a_large_gamma_leaves_the_procrustes_rotation() -> None:
    from scipy.linalg import orthogonal_procrustes

    a, b = observed(torch.Generator().manual_seed(2))
    T = Spectra(a.T @ a / 400, a.T @ b / 400, b.T @ b / 400).linear_map(1e7)
    rotation, _ = orthogonal_procrustes(b.numpy(), a.numpy())
    scale = (a.square().sum() / b.square().sum()).sqrt()
    torch.testing.assert_close(
        T.forward, torch.from_numpy(rotation) * scale, rtol=1e-4, atol=1e-4 * float(scale)
    )
    torch.testing.assert_close(T.forward @ T.inverse, torch.eye(6, dtype=torch.float64))


def test_a_permuted_residual_network_is_recovered_with_its_statistics() -> None:
    generator = torch.Generator().manual_seed(3)
    model, twin = randomised(ResNet20(width=3)), ResNet20(width=3)
    batches = [torch.randn(24, 3, 16, 16, generator=generator) for _ in range(2)]
    spec = PermutationSpec.from_model(model, batches[0])
    twin.load_state_dict(spec.apply(model.state_dict(), spec.random(generator)))
    before = {name: tensor.clone() for name, tensor in twin.state_dict().items()}
    state = CCAMatching(gamma=1e-3).align(spec, model, twin, batches)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(state[name], tensor, rtol=1e-2, atol=1e-2)
        assert torch.equal(twin.state_dict()[name], before[name])


def normed() -> nn.Module:
    """Convolutions with BatchNorm behind them and no ReLU."""
    return nn.Sequential(
        nn.Conv2d(2, 6, 3),
        nn.BatchNorm2d(6),
        nn.Conv2d(6, 5, 2, bias=False),
        nn.BatchNorm2d(5, affine=False),
        nn.Flatten(),
        nn.Linear(5 * 9, 3),
    )


def test_without_a_non_linearity_the_function_is_kept_through_norms() -> None:
    generator = torch.Generator().manual_seed(7)
    a, b = (randomised(normed(), seed).double().eval() for seed in (1, 2))
    with torch.no_grad():
        a[1].weight[0], b[1].weight[1] = 1e-9, -0.7
    x = torch.randn(40, 2, 6, 6, generator=generator, dtype=torch.float64)
    spec = PermutationSpec.from_model(a, x)
    state = CCAMatching(gamma=0.1).align(spec, a, b, [x[:20], x[20:]])
    assert not torch.allclose(state["0.weight"], b[0].weight)
    before = b(x)
    b.load_state_dict(state)
    torch.testing.assert_close(b(x), before, rtol=1e-8, atol=1e-8)
    # What averaging puts into one norm has one scale; a's, but where it is switched off.
    torch.testing.assert_close(state["1.running_var"], a[1].running_var)
    torch.testing.assert_close(state["1.weight"][1:], a[1].weight[1:])


class PreActivation(nn.Module):
    """A BatchNorm that does not stand right behind a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(5, 6), nn.Linear(5, 6)
        self.norm, self.out = nn.BatchNorm1d(6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(self.one(x) + self.two(x)).relu())


def test_a_norm_behind_a_sum_has_its_units_permuted() -> None:
    a, b = randomised(PreActivation(), 1), randomised(PreActivation(), 2)
    x = torch.randn(40, 5, generator=torch.Generator().manual_seed(8))
    spec = PermutationSpec.from_model(a, x)
    state = CCAMatching(gamma=0.1).align(spec, a, b, [x])
    expected = ActivationMatching().align(spec, a, b, [x])
    assert all(torch.equal(state[name], expected[name]) for name in expected)


def test_running_variances_never_become_negative() -> None:
    generator = torch.Generator().manual_seed(4)
    a, b = randomised(ResNet20(width=3), 1), randomised(ResNet20(width=3), 2)
    x = torch.randn(16, 3, 16, 16, generator=generator)
    spec = PermutationSpec.from_model(a, x)
    state = CCAMatching(gamma=0.1).align(spec, a, b, [x])
    assert {n: t.shape for n, t in state.items()} == {n: t.shape for n, t in b.state_dict().items()}
    assert all(torch.isfinite(tensor).all() for tensor in state.values())
    assert all((t >= 0).all() for n, t in state.items() if n.endswith("running_var"))


def test_what_no_linear_map_passes_is_permuted() -> None:
    options = {"img_size": 32, "depth": 1, "num_classes": 3, "weight_init": "skip"}
    a, b = (timm.create_model("vit_tiny_patch16_224", **options) for _ in range(2))
    a, b = randomised(a, 1).eval(), randomised(b, 2).eval()
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(5))
    spec = PermutationSpec.from_model(a, x)
    spec.groups = [group for group in spec.groups if "mlp" not in group.name]
    state = CCAMatching(gamma=0.1).align(spec, a, b, [x])
    expected = ActivationMatching().align(spec, a, b, [x])
    assert all(torch.equal(state[name], expected[name]) for name in expected)


def test_units_that_never_vary_are_left_alone() -> None:
    a, b = randomised(Perceptron(), 1), randomised(Perceptron(), 2)
    with torch.no_grad():
        b.one.bias.fill_(-100.0)
    x = torch.randn(32, 5, generator=torch.Generator().manual_seed(6))
    spec = PermutationSpec.from_model(a, x)
    state = CCAMatching(gamma=0.1).align(spec, a, b, [x])
    assert torch.equal(state["one.weight"], b.one.weight)
    assert all(torch.isfinite(tensor).all() for tensor in state.values())


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("gamma", [1e-4, 0.1, 10.0])
def test_units_that_a_relu_silences_stay_silent(seed: int, gamma: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(64, 5, generator=generator, dtype=torch.float64)
    a, b = randomised(Perceptron(8)).double(), Perceptron(8).double()
    with torch.no_grad():
        a.one.bias[[2, 5]] = -20.0
    spec = PermutationSpec.from_model(Perceptron(8), torch.randn(2, 5))
    b.load_state_dict(spec.apply(a.state_dict(), spec.random(generator)))
    aligned = Perceptron(8).double()
    aligned.load_state_dict(CCAMatching(gamma=gamma).align(spec, a, b, [x]))
    torch.testing.assert_close(aligned(x), a(x))
    # The silent ones may be exchanged with each other, and with no others.
    loud = [0, 1, 3, 4, 6, 7]
    torch.testing.assert_close(aligned.one.weight[loud], a.one.weight[loud])


@pytest.mark.parametrize("gamma", [0, 0.1])
def test_rounding_in_directions_that_hardly_vary_is_no_correlation(gamma: float) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 3, generator=generator)
    # Of so many units of three numbers most are combinations of others, but for rounding.
    a = randomised(nn.Sequential(nn.Linear(3, 60), nn.SiLU(), nn.Linear(60, 2))).eval()
    b = randomised(nn.Sequential(nn.Linear(3, 60), nn.SiLU(), nn.Linear(60, 2))).eval()
    spec = PermutationSpec.from_model(a, x[:4])
    b.load_state_dict(spec.apply(a.state_dict(), spec.random(generator)))
    b.load_state_dict(CCAMatching(gamma=gamma).align(spec, a, b, [x]))
    expected = a(x).detach()
    torch.testing.assert_close(b(x), expected, rtol=0, atol=0.01 * float(expected.std()))


class Standardised(nn.Conv2d):
    """Its weight is standardised before it is used, as timm's `StdConv2d` has it."""

    def forward(self, x: Tensor) -> Tensor:
        std, mean = torch.std_mean(self.weight, (1, 2, 3), keepdim=True)
        return self._conv_forward(x, (self.weight - mean) / std, self.bias)


def test_units_of_layers_that_compute_their_weights_are_permuted() -> None:
    def network(seed: int) -> nn.Module:
        layers = [Standardised(3, 6, 3), Standardised(6, 7, 3), nn.Flatten(), nn.Linear(7, 2)]
        return randomised(nn.Sequential(*layers), seed).eval()

    a, b = network(0), network(1)
    x = torch.randn(40, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    state = CCAMatching(0.1).align(PermutationSpec.from_model(a, x[:4]), a, b, [x])
    before = b(x)
    b.load_state_dict(state)
    # No matrix goes through a standardisation, even where the network is linear besides.
    torch.testing.assert_close(b(x), before, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("gamma", [-1.0, float("nan"), float("inf")])
def test_gamma_must_be_a_ridge(gamma: float) -> None:
    with pytest.raises(AlignmentError, match="gamma"):
        CCAMatching(gamma=gamma)


def observed_pair(seed: int = 9):
    """Two networks with BatchNorm, their spec and batches that can be counted."""
    generator = torch.Generator().manual_seed(seed)
    a, b = randomised(ResNet20(width=3), 1), randomised(ResNet20(width=3), 2)
    batches = [torch.randn(12, 3, 16, 16, generator=generator) for _ in range(2)]
    return PermutationSpec.from_model(a, batches[0]), a, b, batches


def test_one_observation_serves_every_gamma() -> None:
    spec, a, b, batches = observed_pair()
    read = []

    def once():
        for batch in batches:
            read.append(batch)
            yield batch

    observed = CCAMatching().observe(spec, a, b, once())
    for gamma in (1e-3, 10.0, 1e-3):
        state = observed.state_for(gamma)
        expected = CCAMatching(gamma=gamma).align(spec, a, b, batches)
        assert all(torch.equal(state[name], expected[name]) for name in expected)
    assert len(read) == len(batches)


def test_gamma_is_the_candidate_that_scores_best() -> None:
    spec, a, b, batches = observed_pair()
    planted = CCAMatching(gamma=0.5).align(spec, a, b, batches)["conv1.weight"]
    read = []

    def closeness(state):
        return -float((state["conv1.weight"] - planted).norm())

    def once():
        for batch in batches:
            read.append(batch)
            yield batch

    matching = CCAMatching(candidates=[0.01, 0.5, 0.05])
    state = matching.align(spec, a, b, once(), score=closeness)
    assert torch.equal(state["conv1.weight"], planted)
    assert len(read) == len(batches)
    # Choosing leaves the matching as it was: it is used for other pairs too.
    assert matching.gamma is None


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ({0.1: 0.5, 0.2: 0.7, 0.3: 0.6}, 0.2),
        ({0.1: 0.7, 0.2: 0.7, 0.3: 0.6}, 0.2),
        ({0.1: float("nan"), 0.2: -5.0, 0.3: -7.0}, 0.2),
        ({0.1: 0.9, 0.2: float("nan"), 0.3: 0.1}, 0.1),
    ],
)
def test_ties_go_to_the_larger_ridge_and_nan_never_wins(scores, best) -> None:
    class Fixed:
        def state_for(self, gamma):
            return gamma

    chosen, found = choose(Fixed(), list(scores), scores.__getitem__)
    assert chosen == best
    assert list(found) == list(scores)


def test_candidates_must_be_ridges() -> None:
    with pytest.raises(AlignmentError, match="no candidates"):
        CCAMatching(candidates=[])
    with pytest.raises(AlignmentError, match="gamma is -1"):
        CCAMatching(candidates=[0.1, -1.0])
