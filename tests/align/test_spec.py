"""Derived specs against what is known of networks: counts, sizes and the function itself."""

import random
import warnings
from collections import Counter

import pytest
import torch
import torchvision
from networks import (
    Attention,
    Branching,
    Flattened,
    Grouped,
    Perceptron,
    ResNet20,
    Sorting,
    randomised,
)
from torch import Tensor, nn

from lightning_merge.align import PermutationSpec
from lightning_merge.errors import AlignmentError

IMAGE = (2, 3, 32, 32)
CASES = {
    "perceptron": (Perceptron, (2, 5)),
    "flattened": (Flattened, (2, 3, 9, 9)),
    "resnet20": (ResNet20, IMAGE),
    "resnet20 pads": (lambda: ResNet20(pads=True), IMAGE),
    "attention": (Attention, (2, 6, 5)),
    "attention with q-k norm": (lambda: Attention(norm=True), (2, 6, 5)),
    "grouped": (Grouped, (2, 3, 8, 8)),
    "sorting": (Sorting, (2, 5)),
    "transformer": (
        lambda: nn.Sequential(
            nn.TransformerEncoderLayer(8, 2, 12, batch_first=True), nn.Linear(8, 3)
        ),
        (2, 6, 8),
    ),
}


def change(model: nn.Module, state: dict[str, Tensor], x: Tensor) -> float:
    """How much another state dict changes the output, relatively, in float64."""
    model = model.double().eval()
    with torch.no_grad():
        before = model(x.double())
        model.load_state_dict(state)
        return float((model(x.double()) - before).norm() / before.norm())


@pytest.mark.parametrize("case", CASES)
def test_permuting_preserves_the_function(case: str) -> None:
    build, shape = CASES[case]
    model = randomised(build()).double()
    spec = PermutationSpec.from_model(model, torch.randn(shape, dtype=torch.float64))
    assert spec.groups
    generator = torch.Generator().manual_seed(1)
    original = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    first, second = spec.random(generator), spec.random(generator)
    permuted = spec.apply(original, first)
    assert any(not torch.equal(permuted[name], original[name]) for name in original)
    x = torch.randn(shape, generator=generator)
    assert change(model, permuted, x) < 1e-12
    back = spec.apply(permuted, spec.inverse(first))
    assert all(torch.equal(back[name], original[name]) for name in original)
    twice = spec.apply(permuted, second)
    once = spec.apply(original, spec.compose(first, second))
    assert all(torch.equal(twice[name], once[name]) for name in original)


@pytest.mark.parametrize("case", ["resnet20", "attention", "grouped"])
def test_one_member_alone_changes_the_function(case: str) -> None:
    build, shape = CASES[case]
    model = randomised(build()).double()
    x = torch.randn(shape, dtype=torch.float64)
    spec = PermutationSpec.from_model(model, x)
    for group in spec.groups:
        names = [m.tensor for m in group.members if m.tensor.endswith("weight")]
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        permuted = spec.apply(state, {group.name: group.random()})
        partly = {**permuted, names[0]: state[names[0]]}
        if torch.equal(permuted[names[0]], state[names[0]]):
            continue
        assert change(build_like(model, build), partly, x) > 1e-6


def build_like(model: nn.Module, build: type) -> nn.Module:
    """A second network with the same tensors."""
    twin = build().double()
    twin.load_state_dict(model.state_dict())
    return twin


def test_resnet20_sizes() -> None:
    spec = PermutationSpec.from_model(ResNet20(width=4), torch.randn(IMAGE))
    assert Counter(group.size for group in spec.groups) == {4: 4, 8: 4, 16: 4}
    assert spec.frozen
    assert all("linear" in line or "conv1.weight axis 1" in line for line in spec.frozen)


def test_padded_shortcut_ties_a_stage_to_a_block_of_the_next() -> None:
    spec = PermutationSpec.from_model(ResNet20(width=4, pads=True), torch.randn(IMAGE))
    stream = next(group for group in spec.groups if group.name == "conv1")
    assert stream.size == 4
    reached = {m.tensor: m.offset for m in stream.members if m.axis == 0}
    assert reached["blocks.3.conv2.weight"] == 2
    assert reached["blocks.6.conv2.weight"] == 6


def test_torchvision_vgg_repeats_flattened_pixels() -> None:
    model = torchvision.models.vgg11(num_classes=4)
    model.classifier = nn.Sequential(nn.Linear(512 * 49, 8), nn.ReLU(), nn.Linear(8, 4))
    spec = PermutationSpec.from_model(model, torch.randn(1, 3, 32, 32))
    assert len(spec.groups) == 9
    last = next(group for group in spec.groups if group.name == "features.18")
    assert {m.tensor: m.repeat for m in last.members}["classifier.0.weight"] == 49


def test_attention_has_heads_and_units_inside_them() -> None:
    spec = PermutationSpec.from_model(Attention(), torch.randn(2, 6, 5))
    by_name = {group.name: group for group in spec.groups}
    assert set(by_name) == {"embed", "q.heads", "q.qk", "v.v"}
    heads = by_name["q.heads"]
    assert heads.size == 3
    assert "table" in {m.tensor for m in heads.members}
    for name in ("q.qk", "v.v"):
        assert (by_name[name].size, by_name[name].blocks) == (12, 3)
        assert by_name[name].parent == "q.heads"


def test_q_k_norm_shares_one_permutation_between_heads() -> None:
    spec = PermutationSpec.from_model(Attention(norm=True), torch.randn(2, 6, 5))
    shared = next(g for g in spec.groups if "norm.weight" in {m.tensor for m in g.members})
    assert (shared.size, shared.blocks) == (4, 1)
    assert {m.tensor: m.repeat for m in shared.members}["q.weight"] == 3


def test_grouped_convolution_moves_groups_and_units_inside_them() -> None:
    spec = PermutationSpec.from_model(Grouped(), torch.randn(2, 3, 8, 8))
    sizes = sorted((g.size, g.blocks) for g in spec.groups)
    assert sizes == [(3, 1), (4, 1), (5, 1), (12, 3), (16, 4), (18, 3)]


def test_unknown_operator_freezes_what_it_touches() -> None:
    spec = PermutationSpec.from_model(Sorting(), torch.randn(2, 5))
    assert [group.name for group in spec.groups] == ["two"]
    assert any("one.weight" in line and "cumsum" in line for line in spec.frozen)


def test_units_on_different_paths_are_not_exchanged() -> None:
    class Halves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.out = nn.Linear(5, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.one(x)
            return self.out(torch.cat([x[:, :3].relu(), x[:, 3:7].sigmoid(), x[:, 7:].tanh()], 1))

    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        spec = PermutationSpec.from_model(Halves(), torch.zeros(2, 5))
    assert [group.size for group in spec.groups] == [3, 4]


def test_network_that_cannot_be_exported_names_the_line() -> None:
    with pytest.raises(AlignmentError, match=r"Branching.*networks\.py"):
        PermutationSpec.from_model(Branching(), torch.randn(2, 5))


def test_the_model_is_left_as_it_was() -> None:
    model = randomised(ResNet20()).train()
    model.bn1.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.manual_seed(3)
    random.seed(3)
    state = torch.random.get_rng_state()
    PermutationSpec.from_model(model, torch.zeros(IMAGE))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert model.training
    assert not model.bn1.training
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_apply_keeps_what_it_does_not_move() -> None:
    model = randomised(ResNet20())
    spec = PermutationSpec.from_model(model, torch.zeros(IMAGE))
    state = {**model.half().state_dict(), "more": torch.tensor([1, 2])}
    before = {name: tensor.clone() for name, tensor in state.items()}
    new = spec.apply(state, spec.random())
    assert list(new) == list(state)
    assert all(new[name].dtype == state[name].dtype for name in state)
    assert all(torch.equal(state[name], before[name]) for name in state)
    assert all(new[name].data_ptr() != state[name].data_ptr() for name in state)


def test_running_statistics_move_with_their_units() -> None:
    model = randomised(ResNet20())
    spec = PermutationSpec.from_model(model, torch.zeros(IMAGE))
    permutation = spec.random()
    new = spec.apply(model.state_dict(), permutation)
    p = permutation["conv1"]
    assert torch.equal(new["bn1.running_var"], model.bn1.running_var[p])


@pytest.mark.parametrize(
    "wrong",
    [
        {"one": torch.tensor([0, 1, 2])},
        {"one": torch.tensor([0, 0, 2, 3, 4, 5])},
        {"one": torch.tensor([0.0, 1, 2, 3, 4, 5])},
        {"nobody": torch.arange(6)},
    ],
)
def test_permutations_that_do_not_fit(wrong: dict[str, Tensor]) -> None:
    model = Perceptron()
    spec = PermutationSpec.from_model(model, torch.zeros(2, 5))
    with pytest.raises(AlignmentError):
        spec.apply(model.state_dict(), wrong)


def test_state_dicts_that_do_not_fit() -> None:
    spec = PermutationSpec.from_model(Perceptron(), torch.zeros(2, 5))
    with pytest.raises(AlignmentError, match=r"one\.weight"):
        spec.apply(Perceptron(width=7).state_dict(), spec.random())
    with pytest.raises(AlignmentError, match="has no"):
        spec.apply({}, spec.random())


def test_users_freeze_and_merge_groups() -> None:
    class Twins(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(5, 6), nn.Linear(6, 6)
            self.out = nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.two(self.one(x).relu()).relu())

    x = torch.zeros(2, 5)
    spec = PermutationSpec.from_model(Twins(), x, freeze=["one"])
    assert [g.name for g in spec.groups] == ["two"]
    spec = PermutationSpec.from_model(Twins(), x, merge=[("one", "two")])
    assert [(g.name, len(g.members)) for g in spec.groups] == [("one", 6)]
    state = randomised(Twins()).double().state_dict()
    model = Twins().double()
    model.load_state_dict(state)
    assert change(model, spec.apply(state, spec.random()), torch.randn(2, 5)) < 1e-12


def test_shared_weights_move_under_all_their_names() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(6, 6)
            self.again = self.one
            self.inside, self.out = nn.Linear(5, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.again(self.one(self.inside(x)).relu()).relu())

    model = randomised(Tied()).double()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        spec = PermutationSpec.from_model(model, torch.zeros(2, 5, dtype=torch.float64))
    assert [group.size for group in spec.groups] == [6]
    assert {"one.weight", "again.weight"} <= {m.tensor for m in spec.groups[0].members}
    state = spec.apply(model.state_dict(), spec.random())
    assert torch.equal(state["one.weight"], state["again.weight"])
    assert change(model, state, torch.randn(2, 5)) < 1e-12
