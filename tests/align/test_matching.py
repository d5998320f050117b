"""Matchings against planted permutations and brute force."""

from itertools import permutations

import pytest
import timm
import torch
from networks import Attention, Grouped, GroupedQueries, Perceptron, ResNet20, randomised
from torch import Tensor, nn

from lightning_merge.align import (
    ActivationMatching,
    CCAMatching,
    PermutationSpec,
    WeightMatching,
)
from lightning_merge.align.matching import observe as observing
from lightning_merge.align.matching.agreement import agreement
from lightning_merge.align.matching.moments import Moments
from lightning_merge.align.matching.observe import observe
from lightning_merge.align.matching.weight_descent import Descent
from lightning_merge.errors import AlignmentError

CASES = {
    "perceptron": (Perceptron, (32, 5)),
    "resnet20": (ResNet20, (8, 3, 32, 32)),
    "attention": (Attention, (16, 6, 5)),
    "grouped": (Grouped, (8, 3, 8, 8)),
    "vit": (
        lambda: timm.create_model(
            "vit_tiny_patch16_224", img_size=32, depth=2, num_classes=3, weight_init="skip"
        ),
        (16, 3, 32, 32),
    ),
}


def planted(case: str) -> tuple[PermutationSpec, nn.Module, nn.Module, list[Tensor]]:
    """A network, its permuted twin, and data."""
    build, shape = CASES[case]
    model, twin = randomised(build()), build()
    spec = PermutationSpec.from_model(model, torch.randn(shape))
    generator = torch.Generator().manual_seed(5)
    twin.load_state_dict(spec.apply(model.state_dict(), spec.random(generator)))
    batches = [torch.randn(shape, generator=generator) for _ in range(3)]
    return spec, model, twin, [*batches, batches[0][:3]]


@pytest.mark.parametrize("case", CASES)
def test_activation_matching_recovers_a_planted_permutation(case: str) -> None:
    spec, model, twin, batches = planted(case)
    twin.train()
    state = ActivationMatching().align(spec, model, twin, [(x, 0) for x in batches])
    assert twin.training
    assert all(torch.equal(state[n], t) for n, t in model.state_dict().items())


@pytest.mark.parametrize("case", CASES)
def test_weight_matching_recovers_a_planted_permutation(case: str) -> None:
    spec, model, twin, _ = planted(case)
    state = WeightMatching().align(spec, model, twin, [])
    assert all(torch.equal(state[n], t) for n, t in model.state_dict().items())


def test_weight_matching_finds_the_optimum_of_one_layer() -> None:
    class Tiny(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.out = nn.Linear(3, 5), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.one(x).relu())

    a, b = randomised(Tiny(), 1), randomised(Tiny(), 2)
    spec = PermutationSpec.from_model(a, torch.zeros(2, 3))
    found = WeightMatching().match(spec, a.state_dict(), b.state_dict())
    best = max(
        agreement(spec, [a.state_dict(), spec.apply(b.state_dict(), {"one": torch.tensor(p)})])
        for p in permutations(range(5))
    )
    value = agreement(spec, [a.state_dict(), spec.apply(b.state_dict(), found)])
    assert value == pytest.approx(best, rel=1e-12)


@pytest.mark.parametrize("case", ["resnet20", "attention", "grouped"])
def test_weight_matching_is_deterministic_and_does_not_lower_the_objective(case: str) -> None:
    build, shape = CASES[case]
    a, b = randomised(build(), 1).state_dict(), randomised(build(), 2).state_dict()
    spec = PermutationSpec.from_model(build(), torch.zeros(shape))
    first = WeightMatching(seed=3).match(spec, a, b)
    second = WeightMatching(seed=3).match(spec, a, b)
    assert all(torch.equal(first[name], second[name]) for name in first)
    aligned = spec.apply(b, first)
    assert agreement(spec, [a, aligned]) > agreement(spec, [a, b])
    again = WeightMatching(seed=3).match(spec, a, aligned)
    assert agreement(spec, [a, spec.apply(aligned, again)]) >= agreement(spec, [a, aligned]) - 1e-9


def test_correlations_are_those_of_numpy_and_dead_units_have_none() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (100 + torch.randn(500, 4, generator=generator) for _ in range(2))
    a[:, 2] = 7.25
    # As another order of summation makes of a constant.
    b[:, 1] = 7.25 * (1 + 2.0**-23 * torch.randint(-1, 2, (500,), generator=generator))
    moments = Moments()
    for part in range(0, 500, 130):
        moments.update(a[part : part + 130].T[None], b[part : part + 130].T[None])
    found = moments.correlation()
    assert torch.isfinite(found).all()
    assert (found[2] == 0).all()
    assert (found[:, 1] == 0).all()
    expected = torch.corrcoef(torch.cat([a, b], 1).T.double())[:4, 4:]
    live = torch.tensor([0, 1, 3])[:, None], torch.tensor([0, 2, 3])
    torch.testing.assert_close(found[live], expected[live], atol=1e-5, rtol=0)


def test_activation_matching_needs_data() -> None:
    model = Perceptron()
    spec = PermutationSpec.from_model(model, torch.zeros(2, 5))
    with pytest.raises(AlignmentError, match="at least one batch"):
        ActivationMatching().match(spec, model, model, [])


def test_batches_of_every_kind() -> None:
    spec, model, twin, batches = planted("perceptron")
    kinds = [batches[0], (batches[1], 1), [batches[2]], {"image": batches[3], "label": 0}]
    permutation = ActivationMatching().match(spec, model, twin, kinds)
    state = spec.apply(twin.state_dict(), permutation)
    assert all(torch.equal(state[n], t) for n, t in model.state_dict().items())


class Overwriting(Perceptron):
    """Overwrites what a layer has read, once it has."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.one(x).relu()
        y = self.two(h)
        h.zero_()
        return self.out(y.relu())


def test_activations_that_are_overwritten_are_seen_as_they_were_read() -> None:
    spec, model, twin, batches = planted("perceptron")
    a, b = Overwriting(), Overwriting()
    a.load_state_dict(model.state_dict())
    b.load_state_dict(twin.state_dict())
    with torch.inference_mode():
        found = ActivationMatching().match(spec, a, b, batches)
    expected = ActivationMatching().match(spec, model, twin, batches)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_tensor_that_two_layers_read_is_observed_once() -> None:
    a, b = randomised(ResNet20(), 1), randomised(ResNet20(), 2)
    x = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    spec = PermutationSpec.from_model(a, x)
    moments = observe(spec, a, b, [x])
    # Two further blocks read the first stream, and the first convolution of the next stage
    # reads the same tensor as its shortcut; the first block reads the stem.
    assert len(moments["conv1"]) == 4
    assert {len(found) for found in moments.values()} == {1, 3, 4}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_correlations_do_not_depend_on_the_memory_format(layout: torch.memory_format) -> None:
    a, b = randomised(ResNet20(), 1), randomised(ResNet20(), 2)
    x = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    spec = PermutationSpec.from_model(a, x)
    tapped: list[Tensor] = []
    b.blocks[1].conv1.register_forward_pre_hook(lambda _m, i: tapped.append(i[0].detach()))
    a.blocks[1].conv1.register_forward_pre_hook(lambda _m, i: tapped.append(i[0].detach()))
    batch = x.to(memory_format=layout)
    found = observe(spec, a, b, [batch])["conv1"][1].correlation()
    # Earlier, a few of the inputs have told how much memory a's values take.
    rows = [t.double().movedim(1, 0).flatten(1) for t in tapped[-2:]]
    expected = torch.corrcoef(torch.cat(rows)).nan_to_num()[:4, 4:]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_activations_that_are_not_finite_name_their_group() -> None:
    spec, model, twin, batches = planted("perceptron")
    with torch.no_grad():
        twin.two.bias[0] = float("nan")
    with pytest.raises(AlignmentError, match=r"'two'.*not finite"):
        ActivationMatching().match(spec, model, twin, batches)


@pytest.mark.parametrize("case", ["resnet20", "vit"])
def test_weight_matching_leaves_no_exchange_of_two_units_that_would_help(case: str) -> None:
    build, shape = CASES[case]
    spec = PermutationSpec.from_model(build(), torch.zeros(shape))
    a, b = (randomised(build(), seed).state_dict() for seed in (1, 2))
    aligned = spec.apply(b, WeightMatching().match(spec, a, b))
    best = agreement(spec, [a, aligned])
    generator = torch.Generator().manual_seed(0)
    for group in spec.groups:
        width = group.size // group.blocks
        for _ in range(3):
            block = int(torch.randint(group.blocks, (), generator=generator)) * width
            one, other = (block + torch.randperm(width, generator=generator)[:2]).tolist()
            p = group.identity()
            p[[one, other]] = p[[other, one]]
            assert agreement(spec, [a, spec.apply(aligned, {group.name: p})]) <= best + 1e-3


def test_scores_that_follow_their_neighbours_are_those_of_the_weights() -> None:
    spec = PermutationSpec.from_model(ResNet20(), torch.zeros(2, 3, 16, 16))
    a, b = (randomised(ResNet20(), seed).state_dict() for seed in (1, 2))
    descent = Descent(spec, a, b)
    descent.run(torch.Generator().manual_seed(0), progress=False)
    assert len(descent.kept) == len(spec.groups)
    for number, kept in descent.kept.items():
        group = descent.families[number][0]
        fresh = descent.scores(group, set(descent.a))
        torch.testing.assert_close(kept, fresh, rtol=1e-9, atol=1e-9)
    assert all(tensor.dtype == torch.float32 for tensor in descent.b.values())


def test_batches_that_take_too_much_memory_are_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = randomised(ResNet20(), 1), randomised(ResNet20(), 2)
    x = torch.randn(50, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    spec = PermutationSpec.from_model(a, x)
    whole = observing.correlations(spec, a, b, [x])
    monkeypatch.setattr(observing, "_ROOM", (0, 0))
    sizes: list[int] = []
    b.register_forward_pre_hook(lambda _m, inputs: sizes.append(len(inputs[0])))
    parts = observing.correlations(spec, a, b, [x])
    assert len(sizes) > 1
    assert sum(sizes) == len(x)
    for name, expected in whole.items():
        torch.testing.assert_close(parts[name], expected, atol=2e-5, rtol=0)


def test_only_positions_whose_products_are_worth_it_count() -> None:
    # 64 tokens of 16 channels, 64 hidden units: all pairs of them cost four times the layer.
    class Mixer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.fc1 = nn.Linear(5, 16), nn.Linear(16, 64)
            self.fc2, self.out = nn.Linear(64, 16), nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.fc2(self.fc1(self.embed(x)).relu()).mean(1))

    a, b = randomised(Mixer(), 1), randomised(Mixer(), 2)
    batches = [torch.randn(20, 64, 5, generator=torch.Generator().manual_seed(i)) for i in (0, 1)]
    spec = PermutationSpec.from_model(a, batches[0])
    every = observe(spec, a, b, batches)["fc1"][0]
    assert every.count == 2 * 20 * 64
    assert observe(spec, a, b, batches, cost=4.0)["fc1"][0].count == every.count
    found = observe(spec, a, b, batches, cost=2.0)["fc1"][0]
    assert found.count == every.count // 2
    # The even positions of the first batch, the odd ones of the second.
    hidden = []
    for model in (a, b):
        maps = [model.fc1(model.embed(x)).relu().detach().double() for x in batches]
        hidden.append(torch.cat([m[:, i::2].reshape(-1, 64) for i, m in enumerate(maps)], 0))
    expected = torch.corrcoef(torch.cat(hidden, 1).T).nan_to_num()[:64, 64:]
    torch.testing.assert_close(found.correlation(), expected, atol=1e-5, rtol=0)
    # The layers that cost no more than they are worth see everything.
    assert observe(spec, a, b, batches, cost=0.5)["embed"][0].count == every.count
    for cost in (0, -1.0, float("nan")):
        with pytest.raises(AlignmentError, match=f"cost is {cost}: give"):
            ActivationMatching(cost=cost)


def test_queries_and_keys_are_correlated_each_with_their_like() -> None:
    build, shape = CASES["vit"]
    a, b = randomised(build(), 1), randomised(build(), 2)
    # Keys far larger than queries: as observations of one unit they would drown them.
    with torch.no_grad():
        for model in (a, b):
            model.blocks[0].attn.qkv.weight[192:384] *= 30
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    spec = PermutationSpec.from_model(a, x)
    tapped: list[Tensor] = []
    for model in (a, b):
        model.blocks[0].attn.qkv.register_forward_hook(lambda _m, _i, o: tapped.append(o.detach()))
    found = observing.correlations(spec, a, b, [x])
    values = [t.double().reshape(-1, t.shape[-1]) for t in tapped[-2:]]
    expected = sum(
        torch.corrcoef(torch.cat([v[:, first : first + 192] for v in values], 1).T)[:192, 192:]
        for first in (0, 192)
    )
    torch.testing.assert_close(found["blocks.0.attn.qkv.qk"], expected, atol=1e-5, rtol=0)
    # Whole heads have no values of their own to be observed.
    assert not [name for name in found if name.endswith("heads")]


def test_a_tensor_that_changes_between_two_readers_is_observed_twice() -> None:
    class Changing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(5, 8), nn.Linear(8, 4)
            self.three, self.out = nn.Linear(8, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = self.one(x)
            y = self.two(h)
            return self.out(y + self.three(h.relu_()))

    a, b = randomised(Changing(), 1), randomised(Changing(), 2)
    x = torch.randn(64, 5, generator=torch.Generator().manual_seed(0))
    spec = PermutationSpec.from_model(a, x)
    before, after = observe(spec, a, b, [x])["one"]
    values = [model.one(x).detach().double() for model in (a, b)]
    for found, units in ((before, values), (after, [v.relu() for v in values])):
        expected = torch.corrcoef(torch.cat(units, 1).T).nan_to_num()[:8, 8:]
        torch.testing.assert_close(found.correlation(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("units_last", [True, False])
@pytest.mark.parametrize("mean", [3, 50])
def test_moments_of_large_batches_are_those_of_float64(units_last: bool, mean: float) -> None:
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(6, 6, generator=generator)
    a = mean + torch.randn(4, 1500, 6, generator=generator) @ mixing
    b = a + torch.randn(4, 1500, 6, generator=generator)
    moments = Moments(own=True)
    for left, right in ((a[:2], b[:2]), (a[2:], b[2:])):
        if units_last:
            moments.update(left.reshape(-1, 6).T[None], right.reshape(-1, 6).T[None])
        else:
            moments.update(left.mT.contiguous(), right.mT.contiguous())
    both = torch.cat([a.reshape(-1, 6), b.reshape(-1, 6)], 1).double().T
    expected = torch.corrcoef(both)[:6, 6:]
    torch.testing.assert_close(moments.correlation(), expected, atol=1e-5, rtol=0)
    expected = torch.cov(both, correction=0)
    parts = (expected[:6, :6], expected[:6, 6:], expected[6:, 6:])
    for found, wanted in zip(moments.covariances(), parts, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)
    expected = (both @ both.T / both.shape[1])[:6, 6:]
    torch.testing.assert_close(moments.products(), expected, atol=1e-4, rtol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_queries_that_share_keys_are_found_again(seed: int) -> None:
    a, b = (randomised(GroupedQueries(fused=True), seed) for _ in range(2))
    generator = torch.Generator().manual_seed(seed)
    batches = [torch.randn(4, 3, 5, generator=generator) for _ in range(20)]
    spec = PermutationSpec.from_model(a, batches[0])
    b.load_state_dict(spec.apply(a.state_dict(), spec.random(generator)))
    found = ActivationMatching().match(spec, a, b, batches)
    torch.testing.assert_close(spec.apply(b.state_dict(), found), dict(a.state_dict()))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["CCA", "all symmetries"])
def test_queries_that_share_keys_are_found_by_all_that_compare_activations(
    kind: str, seed: int
) -> None:
    a, b = (GroupedQueries(fused=True) for _ in range(2))
    for one in (a, b):
        one.embed = nn.Sequential(one.embed, nn.Tanh())  # no linear map passes
        randomised(one, seed).double()
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(32, 3, 5, generator=generator, dtype=torch.float64)
    spec = PermutationSpec.from_model(a, x, symmetries="permutation" if kind == "CCA" else "all")
    b.load_state_dict(spec.apply(a.state_dict(), spec.random(generator)))
    matching = CCAMatching(0.1) if kind == "CCA" else ActivationMatching(symmetries="all")
    found = matching.align(spec, a, b, [x])
    torch.testing.assert_close(found, dict(a.state_dict()))


class AttentionPooling(nn.Module):
    """Several weighted means over time of the same units, side by side."""

    def __init__(self, heads: int, heads_first: bool) -> None:
        super().__init__()
        if heads_first:
            self.weigh = nn.Linear(6, heads)
        self.embed = nn.Linear(5, 6)
        self.weigh = nn.Linear(6, heads)
        self.out = nn.Linear(6 * heads, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).relu()
        return self.out((self.weigh(x).softmax(1).mT @ x).flatten(1))


@pytest.mark.parametrize("heads_first", [True, False])
@pytest.mark.parametrize("heads", [4, 6])
@pytest.mark.parametrize("matching", [ActivationMatching(), CCAMatching(0.1)])
def test_units_of_which_several_means_are_taken_are_found(matching, heads, heads_first) -> None:
    a, b = (randomised(AttentionPooling(heads, heads_first)).double() for _ in range(2))
    generator = torch.Generator().manual_seed(heads)
    x = torch.randn(32, 7, 5, generator=generator, dtype=torch.float64)
    spec = PermutationSpec.from_model(AttentionPooling(heads, heads_first), x.float())
    assert [group.size for group in spec.groups] == ([heads, 6] if heads_first else [6, heads])
    b.load_state_dict(spec.apply(a.state_dict(), spec.random(generator)))
    found = matching.align(spec, a, b, [x])
    torch.testing.assert_close(found, dict(a.state_dict()))
