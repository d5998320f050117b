"""Many networks: planted permutations, an exhaustive search, and closed cycles."""

from itertools import permutations, product

import pytest
import torch
from networks import Attention, Flattened, Grouped, Perceptron, ResNet20, randomised
from torch import Tensor, nn

from lightning_merge.align import (
    ActivationMatching,
    CycleConsistentMatching,
    MergeMany,
    PermutationSpec,
    WeightMatching,
    agreement,
    all_to_one,
)
from lightning_merge.align.matching import cycle_consistent, soft_permutation
from lightning_merge.align.matching.soft_permutation import (
    factors_of,
    is_interlocked,
    mix_tensor,
    plan_of,
)
from lightning_merge.align.matching.weight_similarity import moved_parameters
from lightning_merge.errors import AlignmentError

CASES = {
    "perceptron": (Perceptron, (8, 5)),
    "resnet20": (lambda: ResNet20(width=3), (2, 3, 16, 16)),
    "attention": (Attention, (2, 6, 5)),
    "grouped": (Grouped, (2, 3, 8, 8)),
}
METHODS = {"MergeMany": MergeMany(), "C2M3": CycleConsistentMatching(steps=5)}


def planted(case: str, count: int = 3) -> tuple[PermutationSpec, list[dict[str, Tensor]]]:
    """A network's state and those of its permuted twins."""
    build, shape = CASES[case]
    model = randomised(build())
    spec = PermutationSpec.from_model(model, torch.randn(shape))
    generator = torch.Generator().manual_seed(1)
    first = model.state_dict()
    twins = [spec.apply(first, spec.random(generator)) for _ in range(count - 1)]
    return spec, [first, *twins]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", CASES)
def test_planted_permutations_are_recovered(case: str, method: str) -> None:
    spec, states = planted(case)
    found = METHODS[method].match(spec, states)
    for state, permutation in zip(states, found, strict=True):
        aligned = spec.apply(state, permutation)
        assert all(torch.equal(aligned[name], states[0][name]) for name in aligned)


@pytest.mark.parametrize("method", METHODS)
def test_different_networks_agree_more_and_every_cycle_closes(method: str) -> None:
    build, shape = CASES["resnet20"]
    states = [randomised(build(), seed).state_dict() for seed in range(3)]
    spec = PermutationSpec.from_model(build(), torch.zeros(shape))
    found = METHODS[method].match(spec, states)
    aligned = [spec.apply(s, p) for s, p in zip(states, found, strict=True)]
    star = [spec.apply(s, WeightMatching().match(spec, states[0], s)) for s in states[1:]]
    assert agreement(spec, aligned) > agreement(spec, states)
    if method == "C2M3":
        assert agreement(spec, aligned) >= agreement(spec, [states[0], *star]) - 1e-9
    # From 0 to 1 to 2 and back to 0, each by way of the common order.
    one = [spec.compose(found[i], spec.inverse(found[(i + 1) % 3])) for i in range(3)]
    round_trip = spec.compose(spec.compose(one[0], one[1]), one[2])
    assert all(torch.equal(round_trip[g.name], g.identity()) for g in spec.groups)
    again = METHODS[method].match(spec, states)
    assert all(torch.equal(a[n], b[n]) for a, b in zip(found, again, strict=True) for n in a)


@pytest.mark.parametrize("method", METHODS)
def test_noisy_twins_reach_the_optimum_of_an_exhaustive_search(method: str) -> None:
    class Tiny(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.out = nn.Linear(6, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.one(x).relu())

    model = randomised(Tiny())
    spec = PermutationSpec.from_model(model, torch.zeros(2, 6))
    generator = torch.Generator().manual_seed(2)
    states = []
    for _ in range(3):
        state = spec.apply(model.state_dict(), spec.random(generator))
        states.append(
            {n: t + 0.4 * torch.randn(t.shape, generator=generator) for n, t in state.items()}
        )
    found = METHODS[method].match(spec, states)
    value = agreement(spec, [spec.apply(s, p) for s, p in zip(states, found, strict=True)])
    orders = [{"one": torch.tensor(p)} for p in permutations(range(4))]
    best = max(
        agreement(spec, [states[0], spec.apply(states[1], p), spec.apply(states[2], q)])
        for p, q in product(orders, orders)
    )
    assert value == pytest.approx(best, rel=1e-9)


def mix(groups, weights, matrices):
    """The parameters with each group's units mixed by a matrix."""
    plan, factors = plan_of(groups), factors_of(matrices)
    return {name: mix_tensor(plan.get(name, []), w, factors) for name, w in weights.items()}


@pytest.mark.parametrize(
    ("build", "shape"),
    [(Attention, (2, 6, 5)), (Grouped, (2, 3, 8, 8)), (Flattened, (2, 3, 9, 9))],
)
def test_mixing_by_a_permutation_matrix_is_permuting(build: type, shape: tuple[int, ...]) -> None:
    model = randomised(build())
    spec = PermutationSpec.from_model(model, torch.zeros(shape))
    groups = [group for group in spec.groups if not is_interlocked(group)]
    assert len(groups) == len(spec.groups)
    permutation = spec.random(torch.Generator().manual_seed(3))
    permutation = {group.name: permutation[group.name] for group in groups}
    expected = spec.apply(model.state_dict(), permutation)
    weights = {name: model.state_dict()[name].double() for name in moved_parameters(spec)}
    matrices = {n: torch.eye(len(p), dtype=torch.float64)[p] for n, p in permutation.items()}
    found = mix(groups, weights, matrices)
    assert all(torch.equal(found[name], expected[name].double()) for name in weights)


def test_all_to_one_leaves_the_reference_alone() -> None:
    spec, states = planted("perceptron")
    models = []
    for state in states:
        models.append(Perceptron())
        models[-1].load_state_dict(state)
    batches = [torch.randn(64, 5, generator=torch.Generator().manual_seed(0))]
    for matching in (ActivationMatching(), WeightMatching()):
        aligned = all_to_one(matching, spec, models, batches, reference=1)
        for state in aligned:
            assert all(torch.equal(state[name], states[1][name]) for name in state)
    with pytest.raises(AlignmentError, match="list or a loader"):
        all_to_one(ActivationMatching(), spec, models, iter(batches))
    with pytest.raises(AlignmentError, match="no network 3"):
        all_to_one(WeightMatching(), spec, models, [], reference=3)


def test_one_network_has_nothing_to_be_aligned_to() -> None:
    spec, states = planted("perceptron")
    for method in METHODS.values():
        with pytest.raises(AlignmentError, match="two networks"):
            method.match(spec, states[:1])


def between(
    case: str,
) -> tuple[
    PermutationSpec, list[dict[str, Tensor]], list[dict[str, Tensor]], list[dict[str, Tensor]]
]:
    """Different networks' parameters, and for each the means of three permutations and one."""
    build, shape = CASES[case]
    spec = PermutationSpec.from_model(build(), torch.zeros(shape))
    names = moved_parameters(spec)
    states = [randomised(build(), seed).state_dict() for seed in range(3)]
    weights = [{name: state[name].double() for name in names} for state in states]
    generator = torch.Generator().manual_seed(4)

    def matrices(count: int) -> dict[str, Tensor]:
        return {
            g.name: torch.stack(
                [torch.eye(g.size, dtype=torch.float64)[g.random(generator)] for _ in range(count)]
            ).mean(0)
            for g in spec.groups
        }

    return spec, weights, [matrices(3) for _ in states], [matrices(1) for _ in states]


def value(
    spec: PermutationSpec, weights: list[dict[str, Tensor]], soft: list[dict[str, Tensor]]
) -> float:
    """The agreement of mixed networks, by the definition."""
    mixed = [mix(spec.groups, w, m) for w, m in zip(weights, soft, strict=True)]
    return agreement(spec, mixed)


@pytest.mark.parametrize("case", CASES)
def test_slopes_are_those_of_finite_differences(case: str) -> None:
    spec, weights, soft, _ = between(case)
    found, slopes = cycle_consistent._slopes(spec.groups, weights, soft)
    assert found == pytest.approx(value(spec, weights, soft), rel=1e-9)
    generator = torch.Generator().manual_seed(5)
    for group in spec.groups:
        direction = torch.randn(group.size, group.size, generator=generator).double()
        ends = []
        for sign in (1, -1):
            moved = [dict(m) for m in soft]
            moved[1][group.name] = soft[1][group.name] + sign * 1e-3 * direction
            ends.append(value(spec, weights, moved))
        expected = float((slopes[1][group.name] * direction).sum())
        assert (ends[0] - ends[1]) / 2e-3 == pytest.approx(expected, rel=1e-4, abs=1e-6)
        assert slopes[1][group.name].abs().max() > 0


@pytest.mark.parametrize("case", CASES)
def test_the_step_is_the_best_of_all(case: str) -> None:
    spec, weights, soft, corners = between(case)
    step, rise = cycle_consistent._best_step(spec.groups, weights, soft, corners)
    assert cycle_consistent._best_step(spec.groups, weights, corners, soft)[1] >= 0

    def at(t: float) -> float:
        between = cycle_consistent._between
        pairs = zip(soft, corners, strict=True)
        return value(spec, weights, [between(a, b, t) for a, b in pairs])

    scan = [at(t / 20) for t in range(21)]
    assert at(step) == pytest.approx(at(0.0) + rise, rel=1e-9)
    assert at(step) >= max(scan) - 1e-9 * abs(max(scan))


def test_sparse_products_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    spec, weights, soft, _ = between("resnet20")
    results = []
    for limit in (0, 10**9):  # always sparse, never
        monkeypatch.setattr(soft_permutation, "_SPARSE", limit)
        results.append(cycle_consistent._slopes(spec.groups, weights, soft)[1][2])
    for name, slope in results[0].items():
        torch.testing.assert_close(slope, results[1][name], rtol=1e-12, atol=1e-12)
