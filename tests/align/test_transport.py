"""OT Fusion: plans against a linear programme, planted orders, joined copies, other widths."""

import copy
import warnings

import numpy as np
import pytest
import torch
from networks import (
    Attention,
    Flattened,
    Grouped,
    GroupedQueries,
    Perceptron,
    ResNet20,
    Rotary,
    randomised,
)
from scipy.optimize import linprog, minimize
from timm import create_model
from torch import Tensor, nn

from lightning_merge.align import PermutationSpec, TransportMatching
from lightning_merge.align.matching.transport_plan import transport_plan
from lightning_merge.errors import AlignmentError

State = dict[str, Tensor]


def costs(n: int, m: int) -> Tensor:
    return torch.rand(n, m, generator=torch.Generator().manual_seed(n + m), dtype=torch.float64)


@pytest.mark.parametrize(("n", "m"), [(5, 5), (4, 6), (6, 3), (3, 7)])
def test_exact_plans_cost_what_a_linear_programme_finds(n: int, m: int) -> None:
    cost = costs(n, m)
    rows = np.kron(np.eye(n), np.ones(m))
    columns = np.kron(np.ones(n), np.eye(m))
    sums = np.concatenate([np.full(n, 1 / n), np.full(m, 1 / m)])
    best = linprog(cost.ravel().numpy(), A_eq=np.concatenate([rows, columns]), b_eq=sums).fun
    plan = transport_plan(cost, 0.0)
    assert float((plan * cost).sum()) == pytest.approx(best, rel=1e-9)
    torch.testing.assert_close(plan.sum(1), torch.full((n,), 1 / n, dtype=torch.float64))
    torch.testing.assert_close(plan.sum(0), torch.full((m,), 1 / m, dtype=torch.float64))
    # Softer ones cost more, and come to it.
    soft = [float((transport_plan(cost, e) * cost).sum()) for e in (1.0, 0.1, 0.01)]
    assert soft[0] > soft[1] > soft[2] >= best
    assert soft[2] == pytest.approx(best, rel=0.02)


def test_an_exact_plan_of_too_many_shares_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_merge.align.matching.transport_plan._COPIES", 4)
    with pytest.raises(AlignmentError, match="takes 21 shares: choose epsilon > 0"):
        transport_plan(costs(3, 7), 0.0)
    # Of equal sizes it is an assignment, which takes none.
    assert transport_plan(costs(5, 5), 0.0).count_nonzero() == 5


@pytest.mark.parametrize("epsilon", [1.0, 0.1])
@pytest.mark.parametrize(("n", "m"), [(5, 5), (4, 6), (7, 2)])
def test_soft_plans_are_optimal_by_their_dual_problem(n: int, m: int, epsilon: float) -> None:
    cost = costs(n, m)
    width = epsilon * float(cost.mean())
    array = cost.numpy()

    def dual(potentials: np.ndarray) -> float:
        rows, columns = potentials[:n, None], potentials[None, n:]
        mass = np.exp((rows + columns - array) / width).sum()
        return float(-(rows.mean() + columns.mean() - width * mass))

    plan = transport_plan(cost, epsilon)
    value = float((plan * cost).sum() + width * (plan * (plan.log() - 1)).sum())
    best = -minimize(dual, np.zeros(n + m), method="BFGS", options={"gtol": 1e-7}).fun
    assert value == pytest.approx(best, rel=1e-6)


@pytest.mark.parametrize("epsilon", [1.0, 0.1, 0.001])
@pytest.mark.parametrize(("n", "m"), [(5, 5), (4, 6), (7, 2)])
def test_soft_plans_have_uniform_marginals(n: int, m: int, epsilon: float) -> None:
    plan = transport_plan(costs(n, m), epsilon)
    assert bool((plan >= 0).all())
    assert float((plan.sum(1) - 1 / n).abs().max()) < 1e-15
    assert float((plan.sum(0) - 1 / m).abs().max()) < 1e-15


def test_units_that_are_all_alike_are_mixed_evenly() -> None:
    torch.testing.assert_close(
        transport_plan(torch.zeros(3, 2), 0.1), torch.full((3, 2), 1 / 6, dtype=torch.float64)
    )


def vit(width: int = 24, depth: int = 1) -> nn.Module:
    return create_model(
        "vit_tiny_patch16_224",
        img_size=8,
        patch_size=4,
        embed_dim=width,
        depth=depth,
        num_heads=width // 8,
        num_classes=3,
    )


CASES = {
    "perceptron": (Perceptron, (8, 5)),
    "resnet20": (lambda: ResNet20(width=3), (2, 3, 16, 16)),
    "flattened": (Flattened, (2, 3, 9, 9)),
    "attention": (Attention, (2, 6, 5)),
    "rotary": (Rotary, (2, 6, 5)),
    "vit": (vit, (2, 3, 8, 8)),
}


@pytest.mark.parametrize("epsilon", [0.0, 0.02])
@pytest.mark.parametrize("case", CASES)
def test_planted_permutations_are_undone(case: str, epsilon: float) -> None:
    build, shape = CASES[case]
    model = randomised(build())
    spec = PermutationSpec.from_model(model, torch.randn(shape))
    b = copy.deepcopy(model)
    b.load_state_dict(spec.apply(model, spec.random(torch.Generator().manual_seed(1))))
    found = TransportMatching(epsilon).align(spec, model, b, [])
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-4)
        assert found[name].dtype == tensor.dtype


def output(model: nn.Module, state: State, x: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.func.functional_call(model.double().eval(), state, (x.double(),))


@pytest.mark.parametrize(
    ("build", "shape"),
    [(Grouped, (2, 3, 8, 8)), (GroupedQueries, (2, 6, 5)), (vit, (2, 3, 8, 8))],
)
def test_an_exact_plan_of_equal_widths_keeps_the_function_and_a_soft_one_does_not(
    build: type, shape: tuple[int, ...]
) -> None:
    a, b = (randomised(build(), seed).double() for seed in (1, 2))
    x = torch.randn(shape, dtype=torch.float64)
    spec = PermutationSpec.from_model(a, x)
    state = {n: t.double() if t.is_floating_point() else t for n, t in b.state_dict().items()}
    own = output(b, state, x)
    exact = TransportMatching(0.0).fuse(spec, a, b)
    assert any(not torch.equal(exact[name], state[name]) for name in state)
    torch.testing.assert_close(output(b, exact, x), own, rtol=1e-9, atol=1e-9)
    soft = output(b, TransportMatching(0.5).fuse(spec, a, b), x)
    assert float((soft - own).norm() / own.norm()) > 1e-3


@pytest.mark.parametrize("epsilon", [0.0, 0.01])
def test_copies_of_units_are_joined_and_the_function_stays(epsilon: float) -> None:
    torch.manual_seed(0)
    narrow = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
    wide = nn.Sequential(
        nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 3)
    )
    with torch.no_grad():
        first, second = torch.randperm(12) % 6, torch.randperm(12) % 4
        wide[0].weight.copy_(narrow[0].weight[first])
        wide[0].bias.copy_(narrow[0].bias[first])
        wide[2].weight.copy_(narrow[2].weight[second][:, first] / 2)
        wide[2].bias.copy_(narrow[2].bias[second])
        wide[4].weight.copy_(narrow[4].weight[:, second] / 3)
        wide[4].bias.copy_(narrow[4].bias)
    x = torch.randn(16, 5)
    torch.testing.assert_close(wide(x), narrow(x))
    specs = [PermutationSpec.from_model(network, x) for network in (narrow, wide)]
    matching = TransportMatching(epsilon)
    found = matching.fuse(specs[0], narrow, wide, specs[1])
    for name, tensor in narrow.state_dict().items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-4)
    # The other way: units are divided among those that are their copies.
    back = matching.fuse(specs[1], wide, narrow, specs[0])
    for name, tensor in wide.state_dict().items():
        torch.testing.assert_close(back[name], tensor, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("narrow", "wide", "shape"),
    [
        (vit, lambda: vit(48), (2, 3, 8, 8)),
        (lambda: ResNet20(3), lambda: ResNet20(4), (2, 3, 16, 16)),
    ],
)
def test_other_widths_are_carried_by_plans_of_uniform_marginals(narrow, wide, shape) -> None:
    a, b = randomised(narrow(), 1), randomised(wide(), 2)
    specs = [PermutationSpec.from_model(network, torch.randn(shape)) for network in (a, b)]
    matching = TransportMatching(0.1, sweeps=1)
    found = matching.fuse(specs[0], a, b, specs[1])
    for name, tensor in a.state_dict().items():
        assert found[name].shape == tensor.shape
        assert not tensor.is_floating_point() or bool(found[name].isfinite().all())
    plans = matching.plans(specs[0], a, b, specs[1])
    assert plans.keys() == {group.name for group in specs[0].groups}
    for group in specs[0].groups:
        n, m = plans[group.name].shape
        assert (n, m) == (group.size, specs[1].group(group.name).size)
        for axis, size in ((1, n), (0, m)):
            sums = plans[group.name].sum(axis)
            torch.testing.assert_close(sums, torch.full_like(sums, 1 / size))


def test_what_cannot_be_carried_is_refused() -> None:
    for options in ({"epsilon": -0.1}, {"epsilon": float("nan")}, {"sweeps": 0}):
        with pytest.raises(AlignmentError, match="epsilon is 0 or more"):
            TransportMatching(**options)
    with pytest.raises(AlignmentError, match="choose epsilon > 0"):
        transport_plan(torch.rand(101, 103), 0.0)
    networks = [nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, n)) for n in (2, 3)]
    specs = [PermutationSpec.from_model(network, torch.zeros(2, 5)) for network in networks]
    with pytest.raises(AlignmentError, match=r"2\.(weight|bias)"):
        TransportMatching().fuse(specs[0], networks[0], networks[1], specs[1])
    pair = [
        create_model(
            "vit_tiny_patch16_224", img_size=32, embed_dim=width, depth=1, num_heads=2, qk_norm=True
        )
        for width in (16, 24)
    ]
    normed = [PermutationSpec.from_model(model, torch.zeros(1, 3, 32, 32)) for model in pair]
    with pytest.raises(AlignmentError, match="other widths in the two networks where units stay"):
        TransportMatching().fuse(normed[0], pair[0], pair[1], normed[1])
    other = Perceptron()
    spec = PermutationSpec.from_model(other, torch.zeros(2, 5))
    with pytest.raises(AlignmentError, match="one family"):
        TransportMatching().fuse(specs[0], networks[0], other, spec)


def test_groups_that_are_left_in_their_order_are_named() -> None:
    x = torch.randn(2, 5, 5)
    spec = PermutationSpec.from_model(GroupedQueries(), x)
    a, b = (randomised(GroupedQueries(), seed) for seed in (0, 1))
    with pytest.warns(UserWarning, match=r"leaves 4 of 5 groups of units in their order \(q"):
        TransportMatching().fuse(spec, a, b)
    spec = PermutationSpec.from_model(Perceptron(), torch.randn(2, 5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TransportMatching().fuse(spec, *(randomised(Perceptron(), seed) for seed in (0, 1)))
