"""Matchings with all symmetries: what was planted is found, and b's function stays."""

import copy
from itertools import pairwise

import pytest
import torch
from test_symmetries import NETWORKS, RootMeanSquare, output, shaken
from torch import Tensor, nn

from lightning_merge.align import (
    ActivationMatching,
    LearnedMaps,
    LearnedMatching,
    Matching,
    PermutationSpec,
    WeightMatching,
)
from lightning_merge.align.matching.learned_maps import distillation
from lightning_merge.align.matching.map_solvers import balance, products
from lightning_merge.align.matching.symmetric_descent import SymmetricDescent
from lightning_merge.align.matching.weight_similarity import moved_parameters
from lightning_merge.errors import AlignmentError

State = dict[str, Tensor]


def case(name: str) -> tuple[PermutationSpec, nn.Module, Tensor]:
    make, shape, _ = NETWORKS[name]
    torch.manual_seed(0)
    model = make()
    spec = PermutationSpec.from_model(model, torch.randn(shape), symmetries="all")
    x = torch.randn((24, *shape[1:]), dtype=torch.float64)
    return spec, shaken(model), x


def holding(model: nn.Module, state: State) -> nn.Module:
    other = copy.deepcopy(model)
    other.load_state_dict(state)
    return other


def distance(one: State, other: State) -> float:
    return max(
        float((one[name] - other[name]).abs().max())
        for name in one
        if one[name].is_floating_point()
    )


MATCHINGS = [WeightMatching(symmetries="all"), ActivationMatching(symmetries="all")]


@pytest.mark.parametrize("matching", MATCHINGS, ids=["weights", "activations"])
@pytest.mark.parametrize("name", ["vit", "eva", "resnet", "rms", "normed", "perceptron"])
def test_planted_maps_of_every_kind_are_undone(name: str, matching: Matching) -> None:
    spec, a, x = case(name)
    planted = spec.random_maps(torch.Generator().manual_seed(3))
    b = holding(a, spec.transform(spec.canonical(a), planted))
    if name != "rms":
        assert distance(a.state_dict(), b.state_dict()) > 0.3
    found = matching.align(spec, a, b, [x])
    merge = {
        n: (t + found[n]) / 2 if t.is_floating_point() else t for n, t in a.state_dict().items()
    }
    # a itself has not changed: b comes into its coordinates, norms' scales and all.
    assert distance(a.state_dict(), merge) < 1e-6


@pytest.mark.parametrize("matching", MATCHINGS, ids=["weights", "activations"])
def test_networks_trained_apart_keep_their_function_and_come_closer(matching: Matching) -> None:
    spec, a, x = case("vit")
    b = shaken(a, 5)
    permuted = WeightMatching().align(spec, a, b, [])
    found = matching.align(spec, a, b, [x])
    torch.testing.assert_close(output(b, found, x), output(b, {}, x), rtol=1e-9, atol=1e-9)

    def alike(state: State) -> float:
        own = spec.canonical(a)
        return sum(float((own[n] * t).sum()) for n, t in spec.canonical(state).items())

    assert alike(found) > alike(permuted) > alike(b.state_dict())


def test_the_maps_are_those_of_the_canonical_forms() -> None:
    spec, a, x = case("vit")
    b = shaken(a, 5)
    for matching in MATCHINGS:
        maps = (
            matching.match(spec, a, b)
            if isinstance(matching, WeightMatching)
            else matching.match(spec, a, b, [x])
        )
        state = spec.transform(spec.canonical(b), maps)
        torch.testing.assert_close(output(b, state, x), output(b, {}, x), rtol=1e-9, atol=1e-9)


def test_each_sweep_raises_the_inner_product(monkeypatch: pytest.MonkeyPatch) -> None:
    spec, a, _ = case("vit")
    values: list[float] = []
    step = SymmetricDescent.step

    def watched(self, number, tensors, always=False):  # type: ignore[no-untyped-def]
        gain = step(self, number, tensors, always)
        if not always:
            values.append(self.value())
        return gain

    monkeypatch.setattr(SymmetricDescent, "step", watched)
    WeightMatching(symmetries="all").match(spec, a, shaken(a, 5))
    assert len(values) > 5
    assert all(after >= before - 1e-9 for before, after in pairwise(values))


@pytest.mark.parametrize("name", ["vit", "eva", "rms"])
def test_gains_and_kept_products_are_those_of_the_maps(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, a, _ = case(name)
    one, other = (spec.canonical(network) for network in (a, shaken(a, 5)))
    one, other = (spec.transform(s, balance(spec.groups, s)) for s in (one, other))
    value = 0.0
    step, start = SymmetricDescent.step, SymmetricDescent.start

    def started(self, *arguments):  # type: ignore[no-untyped-def]
        nonlocal value
        start(self, *arguments)
        value = self.value()

    def watched(self, number, tensors, always=False):  # type: ignore[no-untyped-def]
        nonlocal value
        gain = step(self, number, tensors, always)
        value += gain
        return gain

    monkeypatch.setattr(SymmetricDescent, "start", started)
    monkeypatch.setattr(SymmetricDescent, "step", watched)
    descent = SymmetricDescent(spec, one, other)
    maps = descent.run(torch.Generator().manual_seed(0))
    reached = spec.transform(other, maps)
    expected = sum(float((one[n] * reached[n]).sum()) for n in moved_parameters(spec))
    assert value == pytest.approx(expected, rel=1e-9)
    assert descent.kept
    for number, scores in descent.kept.items():
        [stream] = descent.families[number]
        again = products(stream, one, reached, descent.tensors[number])
        torch.testing.assert_close(scores, again, rtol=1e-9, atol=1e-9)


def test_balanced_makers_and_readers_weigh_the_same() -> None:
    spec, a, _ = case("vit")
    state = spec.canonical(a)
    state = spec.transform(state, balance(spec.groups, state))
    width, heads = 8, 2
    qkv = torch.cat(
        [state["blocks.0.attn.qkv.weight"], state["blocks.0.attn.qkv.bias"][:, None]], 1
    )
    q, k, v = qkv.reshape(3, heads, width, -1)
    torch.testing.assert_close(q @ q.mT, k @ k.mT)
    out = state["blocks.0.attn.proj.weight"].reshape(-1, heads, width).permute(1, 2, 0)
    torch.testing.assert_close(v @ v.mT, out @ out.mT)


def test_a_spec_of_permutations_is_refused() -> None:
    a, b = shaken(RootMeanSquare(), 1), shaken(RootMeanSquare(), 2)
    spec = PermutationSpec.from_model(RootMeanSquare(), torch.randn(4, 5))
    x = torch.randn(4, 5, dtype=torch.float64)
    for matching in (*MATCHINGS, LearnedMatching()):
        with pytest.raises(AlignmentError, match="symmetries='all'"):
            matching.align(spec, a, b, [x])


def learned(name: str = "vit") -> tuple[LearnedMaps, nn.Module, nn.Module, Tensor]:
    spec, a, x = case(name)
    b = shaken(a, 5)
    start = WeightMatching(symmetries="all").match(spec, a, b)
    maps = LearnedMaps(spec, a.state_dict(), b.state_dict(), start)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in maps.values:
            value.add_(0.1 * torch.randn(value.shape, generator=generator, dtype=value.dtype))
    return maps, a, b, x[:4]


@pytest.mark.parametrize("name", ["vit", "normed"])
def test_gradients_of_learned_maps_are_those_of_finite_differences(name: str) -> None:
    maps, a, b, x = learned(name)
    teachers = (output(a, {}, x) + output(b, {}, x)) / 2

    def loss() -> Tensor:
        return distillation(torch.func.functional_call(a, maps.merged(0.4), (x,)), teachers)

    values = list(maps.values)
    gradients = torch.autograd.grad(loss(), values)
    generator = torch.Generator().manual_seed(2)
    kinds = set()
    for group, value, gradient in zip(maps.learned, values, gradients, strict=True):
        if group.symmetry in kinds:
            continue
        kinds.add(group.symmetry)
        way = torch.randn(value.shape, generator=generator, dtype=value.dtype)
        ends = []
        with torch.no_grad():
            for step in (1e-5, -2e-5):
                value.add_(step * way)
                ends.append(float(loss()))
            value.add_(1e-5 * way)
        slope = (ends[0] - ends[1]) / 2e-5
        assert float((gradient * way).sum()) == pytest.approx(slope, rel=1e-4, abs=1e-8)
    assert kinds == {g.symmetry for g in maps.learned}


def test_learned_maps_keep_the_function_while_they_are_trained_and_after() -> None:
    maps, a, b, x = learned()
    expected = output(b, {}, x)
    with torch.no_grad():
        torch.testing.assert_close(output(a, maps.mapped(), x), expected, rtol=1e-9, atol=1e-9)
    state = maps.spec.transform(maps.spec.canonical(b), maps.maps())
    torch.testing.assert_close(output(a, state, x), expected, rtol=1e-9, atol=1e-9)
    # The state that was trained is the one that the maps give, in a's gauge.
    gauged = maps.spec.transform(state, maps.gauge)
    assert distance({n: t.detach() for n, t in maps.mapped().items()}, gauged) < 1e-9


@pytest.mark.parametrize("labels", [False, True])
def test_learning_lowers_the_loss_of_the_merge(labels: bool) -> None:
    spec, a, x = case("rms")
    b = shaken(a, 5)
    classes = output(a, {}, x).argmax(-1)
    before = {n: t.clone() for n, t in (a.state_dict() | b.state_dict()).items()}
    teachers = (output(a, {}, x) + output(b, {}, x)) / 2

    def loss(steps: int, share: float | None = 0.5) -> float:
        matching = LearnedMatching("weights", steps, 0.05, share, labels)
        found = matching.align(spec, a, b, [(x, classes)])
        torch.testing.assert_close(output(b, found, x), output(b, {}, x), rtol=1e-8, atol=1e-8)
        middle = {n: (t + found[n]) / 2 for n, t in a.state_dict().items()}
        logits = output(a, middle, x)
        if labels:
            return float(nn.functional.cross_entropy(logits, classes))
        return float(distillation(logits, teachers))

    assert loss(60) < loss(0) - 1e-3
    assert loss(60, None) < loss(0) - 1e-3
    after = a.state_dict() | b.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_networks_with_batchnorm_learn_factors() -> None:
    spec, a, x = case("resnet")
    b = shaken(a, 5)
    found = LearnedMatching("weights", 2).align(spec, a, b, [x[:4]])
    torch.testing.assert_close(output(b, found, x), output(b, {}, x), rtol=1e-9, atol=1e-9)


def test_settings_and_batches_of_learned_matching_are_checked() -> None:
    for wrong in ({"start": "nothing"}, {"lr": 0.0}, {"steps": -1}, {"share": 1.0}):
        with pytest.raises(AlignmentError):
            LearnedMatching(**wrong)
    spec, a, x = case("rms")
    with pytest.raises(AlignmentError, match="at least one batch"):
        LearnedMatching("weights", 1).align(spec, a, shaken(a, 5), [])
    with pytest.raises(AlignmentError, match="have no classes"):
        LearnedMatching("weights", 1, labels=True).align(spec, a, shaken(a, 5), [x])
    make, shape, _ = NETWORKS["convnext"]
    frozen = PermutationSpec.from_model(make(), torch.randn(shape), symmetries="all")
    with pytest.raises(AlignmentError, match="nothing to learn"):
        LearnedMatching("weights", 1).align(frozen, shaken(make(), 1), shaken(make(), 2), [])
