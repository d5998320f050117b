"""Matchings on networks whose units cannot be hooked, correspond in part only, or are too many."""

import copy

import pytest
import timm
import torch
from networks import Shuffled
from test_symmetries import output, shaken
from torch import Tensor, nn

from lightning_merge.align import (
    ActivationMatching,
    CCAMatching,
    CycleConsistentMatching,
    Matching,
    MergeMany,
    PermutationSpec,
    TransportMatching,
    WeightMatching,
)
from lightning_merge.errors import AlignmentError
from lightning_merge.symmetry.spec import Symmetries

State = dict[str, Tensor]
VIT = {"img_size": 32, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 4}


class WithoutLayers(nn.Module):
    """A block of PyTorch's own attention, which calls none of its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.norm, self.last = nn.Linear(5, 12), nn.LayerNorm(12), nn.LayerNorm(12)
        self.attention = nn.MultiheadAttention(12, 3, batch_first=True)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.into(x)
        y = self.norm(x)
        return self.head(self.last(x + self.attention(y, y, y)[0]).mean(1))


class TokenMixing(nn.Module):
    """Hidden units of a layer over tokens: at each of its positions lies another channel."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.norm = nn.Linear(5, 12), nn.LayerNorm(12)
        self.one, self.two, self.head = nn.Linear(6, 10), nn.Linear(10, 6), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.into(x)
        y = self.two(self.one(self.norm(x).mT).relu()).mT
        return self.head((x + y).relu().mean(1))


class Bottleneck(nn.Module):
    """Units between two linear layers, more of them than the first layer has inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.out = nn.Linear(3, 9), nn.Linear(9, 7), nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.two(self.one(x)).relu())


def twins(model: nn.Module, x: Tensor, kind: str) -> tuple[PermutationSpec, nn.Module, nn.Module]:
    spec = PermutationSpec.from_model(model, x, symmetries=kind)  # type: ignore[arg-type]
    a, b = shaken(model), shaken(model)
    b.load_state_dict(spec.transform(spec.canonical(a), spec.random_maps(seeded(3))))
    return spec, a, b


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def error_at_the_middle(a: nn.Module, found: State, x: Tensor) -> float:
    state = a.state_dict()
    merge = {n: (t + found[n]) / 2 if t.is_floating_point() else t for n, t in state.items()}
    before = output(a, {}, x)
    return float((output(a, merge, x) - before).norm() / before.norm())


@pytest.mark.parametrize("kind", ["permutation", "all"])
@pytest.mark.parametrize("build", [WithoutLayers, TokenMixing])
def test_units_that_no_hook_can_compare_go_by_their_weights(build, kind) -> None:
    torch.manual_seed(0)
    x = torch.randn(16, 6, 5)
    spec, a, b = twins(build(), x, kind)
    assert error_at_the_middle(a, b.state_dict(), x.double()) > 1e-2
    found = ActivationMatching(symmetries=kind).align(spec, a, b, [x.double()])
    assert error_at_the_middle(a, found, x.double()) < 1e-9


@pytest.mark.parametrize(
    "matching", [WeightMatching(symmetries="all"), MergeMany(symmetries="all")]
)
def test_units_that_nothing_tells_apart_stretch_nothing(matching: Matching) -> None:
    torch.manual_seed(0)
    x = torch.randn(16, 3)
    spec, a, b = twins(Bottleneck(), x, "all")
    assert [group.symmetry for group in spec.groups] == ["invertible", "scaled"]
    assert error_at_the_middle(a, matching.align(spec, a, b, []), x.double()) < 1e-9


def test_exact_plans_keep_the_function_where_all_heads_share_a_norm() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 32, 32)
    model = timm.create_model("vit_tiny_patch16_224", qk_norm=True, **VIT)
    spec, a, b = twins(model, x, "permutation")
    fused = TransportMatching(epsilon=0.0).align(spec, a, b, [])
    assert not torch.equal(fused["blocks.0.mlp.fc1.weight"], b.blocks[0].mlp.fc1.weight)
    torch.testing.assert_close(output(b, fused, x.double()), output(b, {}, x.double()))


def test_heads_are_one_group_by_whatever_way_they_were_found() -> None:
    torch.manual_seed(0)
    # Biases of queries and values that are parameters of their own: two ways to the same heads.
    model = timm.create_model("eva02_tiny_patch14_224", patch_size=8, **VIT)
    spec = PermutationSpec.from_model(model, torch.randn(2, 3, 32, 32))
    moves = [
        (group.blocks, {(m.tensor, row) for m in group.members for row in rows(m.index)})
        for group in spec.groups
    ]
    assert [moves.count(one) for one in moves] == [1] * len(moves)
    assert sum(group.level > 0 for group in spec.groups) == VIT["depth"]


def rows(index: Tensor) -> list[frozenset[int]]:
    return [frozenset(row) for row in index.tolist()]


def test_equal_networks_are_not_turned_where_the_data_say_nothing() -> None:
    torch.manual_seed(0)
    model = shaken(Bottleneck())
    x = torch.randn(4, 3, dtype=torch.float64)  # four examples for nine units
    spec = PermutationSpec.from_model(Bottleneck(), x.float())
    aligned = CCAMatching(gamma=0.1).align(spec, model, copy.deepcopy(model), [x])
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(aligned[name], tensor)


@pytest.mark.parametrize("kind", ["permutation", "all"])
def test_weights_that_are_not_finite_are_refused_by_name(kind) -> None:
    torch.manual_seed(0)
    x = torch.randn(16, 3)
    spec, a, b = twins(Bottleneck(), x, kind)
    b.two.weight.data[1, 2] = float("nan")
    matchings = [WeightMatching, MergeMany, ActivationMatching]
    every: list[Matching] = [matching(symmetries=kind) for matching in matchings]
    if kind == "permutation":
        every += [CycleConsistentMatching(), TransportMatching()]
    for matching in every:
        with pytest.raises(AlignmentError, match=r"not finite|'two\.weight' of a network is NaN"):
            matching.align(spec, a, b, [x.double()])
    spec, a, b = twins(WithoutLayers(), torch.randn(4, 6, 5), "all")
    b.head.weight.data[0, 0] = float("inf")
    b.into.weight.data[0, 0] = float("nan")
    with pytest.raises(AlignmentError, match="'into': the activations are not finite"):
        ActivationMatching(symmetries="all").align(spec, a, b, [torch.randn(4, 6, 5).double()])


@pytest.mark.parametrize("symmetries", ["permutation", "all"])
def test_units_whose_blocks_two_layers_carry_are_found(symmetries: Symmetries) -> None:
    x = torch.randn(6, 3, 9, 9, generator=torch.Generator().manual_seed(0)).double()
    a = shaken(Shuffled(12), 1)
    spec = PermutationSpec.from_model(a, x, symmetries=symmetries)
    b = copy.deepcopy(a)
    moved = spec.random_maps(torch.Generator().manual_seed(1))
    b.load_state_dict(spec.transform(spec.canonical(a), moved))
    found = ActivationMatching(symmetries=symmetries).align(spec, a, b, [x])
    mean = {name: (value + found[name]) / 2 for name, value in a.state_dict().items()}
    torch.testing.assert_close(output(a, mean, x), output(a, {}, x))
