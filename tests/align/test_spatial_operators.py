"""Operators that treat each channel on its own, over one to three dimensions of space."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_merge.align import PermutationSpec

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
MEANS = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
OPERATORS = {
    "mean3d": (nn.AdaptiveAvgPool3d(2), 3),
    "maximum1d": (nn.AdaptiveMaxPool1d(2), 1),
    "maximum3d": (nn.AdaptiveMaxPool3d(2), 3),
    "norm1d": (nn.LPPool1d(2, 2), 1),
    "nearest3d": (nn.Upsample(scale_factor=2), 3),
    "exact1d": (nn.Upsample(scale_factor=2, mode="nearest-exact"), 1),
    "exact2d": (nn.Upsample(scale_factor=2, mode="nearest-exact"), 2),
    "trilinear": (nn.Upsample(scale_factor=2, mode="trilinear"), 3),
    "reflection1d": (nn.ReflectionPad1d(1), 1),
    "reflection3d": (nn.ReflectionPad3d(1), 3),
    "replication1d": (nn.ReplicationPad1d(1), 1),
    "replication3d": (nn.ReplicationPad3d(1), 3),
    "rrelu": (nn.RReLU(), 2),
}


@pytest.mark.parametrize(("operator", "count"), OPERATORS.values(), ids=OPERATORS)
def test_channels_move_through_it(operator: nn.Module, count: int) -> None:
    convolution, mean = CONVOLUTIONS[count - 1], MEANS[count - 1]
    layers = [convolution(1, 6, 3, padding=1), operator, mean(1), nn.Flatten(), nn.Linear(6, 3)]
    model = nn.Sequential(*layers).double().eval()
    images = torch.randn(2, 1, *[4] * count, dtype=torch.float64)
    expected = model(images)
    spec = PermutationSpec.from_model(model, images)
    (group,) = spec.groups
    assert {(m.tensor, m.axis) for m in group.members} == {
        ("0.weight", 0),
        ("0.bias", 0),
        ("4.weight", 1),
    }
    model.load_state_dict(spec.apply(model, {group.name: torch.arange(6).flip(0)}))
    torch.testing.assert_close(model(images), expected)


class Gated(nn.Module):
    """A gated layer, by PyTorch's operator or written out."""

    def __init__(self, written_out: bool, dim: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(5, 16), nn.Linear(8, 3)
        self.written_out, self.dim = written_out, dim

    def forward(self, given: Tensor) -> Tensor:
        hidden = self.up(given).movedim(-1, self.dim)
        if self.written_out:
            values, gates = hidden.chunk(2, self.dim)
            passed = values * gates.sigmoid()
        else:
            passed = F.glu(hidden, self.dim)
        return self.down(passed.movedim(self.dim, -1))


@pytest.mark.parametrize("dim", [1, -1])
def test_a_gated_linear_unit_is_a_product_of_halves(dim: int) -> None:
    given = torch.randn(4, 2, 5)
    found = [PermutationSpec.from_model(Gated(out, dim), given) for out in (True, False)]
    for written_out, operator in zip(*(spec.groups for spec in found), strict=True):
        assert operator.size == written_out.size == 8
        for one, other in zip(operator.members, written_out.members, strict=True):
            assert one.place == other.place
            assert torch.equal(one.index, other.index)
