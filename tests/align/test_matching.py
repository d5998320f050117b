"""Matchings against planted permutations and brute force."""

from itertools import permutations

import pytest
import timm
import torch
from networks import Attention, Grouped, Perceptron, ResNet20, randomised
from torch import Tensor, nn

from lightning_merge.align import ActivationMatching, PermutationSpec, WeightMatching
from lightning_merge.align.activation import observe
from lightning_merge.align.moments import Moments
from lightning_merge.align.weight import objective
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
        objective(spec, a.state_dict(), spec.apply(b.state_dict(), {"one": torch.tensor(p)}))
        for p in permutations(range(5))
    )
    value = objective(spec, a.state_dict(), spec.apply(b.state_dict(), found))
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
    assert objective(spec, a, aligned) > objective(spec, a, b)
    again = WeightMatching(seed=3).match(spec, a, aligned)
    assert objective(spec, a, spec.apply(aligned, again)) >= objective(spec, a, aligned) - 1e-9


def test_correlations_are_those_of_numpy_and_dead_units_have_none() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (100 + torch.randn(500, 4, generator=generator) for _ in range(2))
    a[:, 2] = 7.25
    moments = Moments()
    for part in range(0, 500, 130):
        moments.update(a[part : part + 130].T[None], b[part : part + 130].T[None])
    found = moments.correlation()
    assert torch.isfinite(found).all()
    assert (found[2] == 0).all()
    expected = torch.corrcoef(torch.cat([a, b], 1).T.double())[:4, 4:]
    live = [0, 1, 3]
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
    rows = [t.double().movedim(1, 0).flatten(1) for t in tapped]
    expected = torch.corrcoef(torch.cat(rows)).nan_to_num()[:4, 4:]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_activations_that_are_not_finite_name_their_group() -> None:
    spec, model, twin, batches = planted("perceptron")
    with torch.no_grad():
        twin.two.bias[0] = float("nan")
    with pytest.raises(AlignmentError, match=r"'two'.*not finite"):
        ActivationMatching().match(spec, model, twin, batches)
