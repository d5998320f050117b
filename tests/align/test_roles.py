"""What the tensors of a group do with its units, and what may be done to a group."""

import pytest
import torch
from networks import Grouped, Perceptron, Recurrent, ResNet20, Windows, randomised
from torch import Tensor, nn

from lightning_merge.align import Member, PermutationSpec
from lightning_merge.errors import AlignmentError


def roles(spec: PermutationSpec) -> dict[tuple[str, tuple[int, ...]], str]:
    return {(m.tensor, m.axes): m.role for group in spec.groups for m in group.members}


def test_layers_make_and_read_and_norms_scale() -> None:
    found = roles(PermutationSpec.from_model(ResNet20(), torch.zeros(2, 3, 16, 16)))
    for (tensor, axes), role in found.items():
        if "bn" in tensor or "shortcut.1" in tensor:
            assert role == "scales", tensor
        else:
            assert role == ("makes" if axes == (0,) else "reads"), tensor
    assert found["linear.weight", (1,)] == "reads"


def test_depthwise_kernels_scale_and_grouped_convolutions_do_not() -> None:
    found = roles(PermutationSpec.from_model(Grouped(), torch.zeros(2, 3, 8, 8)))
    assert {found[name, (0,)] for name in ("depthwise.weight", "depthwise.bias")} == {"scales"}
    assert found["grouped.weight", (0, 1)] == "makes"
    assert found["grouped.weight", (0, 2)] == "reads"
    assert found["grouped.bias", (0,)] == "makes"
    assert found["norm.bias", (0,)] == "scales"


def test_transposed_and_recurrent_layers() -> None:
    found = roles(PermutationSpec.from_model(Windows(), torch.zeros(2, 3, 8, 8)))
    assert (found["up.weight", (0,)], found["up.weight", (1,)]) == ("reads", "makes")
    assert found["deep.weight", (0,)] == "scales"
    found = roles(PermutationSpec.from_model(Recurrent(), torch.zeros(2, 7, 5)))
    assert found["rnn.weight_hh_l0", (0,)] == found["rnn.bias_hh_l0", (0,)] == "makes"
    assert found["rnn.weight_hh_l0", (1,)] == "reads"


class Written(nn.Module):
    """Layers written out with matrix products, and parameters that meet units one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(4, 6)
        self.place = nn.Parameter(torch.randn(1, 4, 6))
        self.first, self.second = (nn.Parameter(torch.randn(6, 7)) for _ in range(2))
        self.shift, self.gate = nn.Parameter(torch.randn(7)), nn.Parameter(torch.randn(7))
        self.last = nn.Parameter(torch.randn(3, 7))

    def forward(self, x: Tensor) -> Tensor:
        x = self.place + self.table(torch.arange(4)) * x[..., None]
        h = (x @ self.first + self.shift).relu() * self.gate
        h = h + torch.einsum("bti,io->bto", x, self.second).tanh()
        return torch.einsum("bto,co->bc", h, self.last)


def test_matrix_products_are_seen_through() -> None:
    spec = PermutationSpec.from_model(Written(), torch.randn(2, 4))
    found = roles(spec)
    assert {found[name, (0,)] for name in ("first", "second")} == {"reads"}
    assert {found[name, (1,)] for name in ("first", "second")} == {"makes"}
    assert found["last", (1,)] == "reads"
    assert found["table.weight", (1,)] == "makes"
    # Added or multiplied by hand: nothing says that the one is a bias.
    assert found["gate", (0,)] == found["shift", (0,)] == found["place", (2,)] == "scales"


def test_roles_of_a_users_own_groups_are_those_that_would_have_been_derived() -> None:
    for build, shape in ((Perceptron, (2, 5)), (ResNet20, (2, 3, 16, 16))):
        model, x = randomised(build()), torch.randn(shape)
        derived = PermutationSpec.from_model(model, x)
        description = {
            group.name: [
                (m.tensor, m.axis, m.offset, m.repeat) if m.repeat > 1 else (m.tensor, m.axis)
                for m in group.members
            ]
            for group in derived.groups
        }
        own = PermutationSpec.from_groups(description, model, x)
        assert roles(own) == roles(derived)


def test_roles_that_were_not_given_follow_from_the_axis() -> None:
    index = torch.arange(6)[:, None]
    shapes = {(6, 5): (0, "makes"), (3, 6): (1, "reads"), (6,): (0, "scales")}
    for shape, (axis, role) in shapes.items():
        assert Member("layer.weight", (axis,), index, shape).role == role
    assert Member("layer.weight", (0,), index, (6, 5), "scales").role == "scales"


def test_every_group_may_be_permuted_and_a_transformation_is_just_that() -> None:
    model = randomised(Perceptron()).double()
    x = torch.randn(6, 5, dtype=torch.float64)
    spec = PermutationSpec.from_model(model, x)
    assert {group.symmetry for group in spec.groups} == {"permutation"}
    maps = spec.random_maps(torch.Generator().manual_seed(1))
    drawn = spec.random(torch.Generator().manual_seed(1))
    assert all(torch.equal(maps[name], drawn[name]) for name in drawn)
    state = spec.transform(model.state_dict(), maps)
    expected = spec.apply(model.state_dict(), drawn)
    assert all(torch.equal(state[name], expected[name]) for name in state)
    torch.testing.assert_close(torch.func.functional_call(model, state, x), model(x))
    with pytest.raises(AlignmentError, match="a permutation is a LongTensor"):
        spec.transform(model, {"one": torch.eye(6)})
