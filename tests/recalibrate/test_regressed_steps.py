"""Least squares of networks that change tensors in place, and read them in more than one place.

A merge of a network with itself gives what its parents give: there is nothing to fit.
"""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_merge.recalibrate import LeastSquares, reset_batchnorm


class ActivationBeforeNorm(nn.Module):
    """The activation between a layer and its norm keeps the tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(F.relu(self.layer(x), inplace=True))


class PreActivation(nn.Module):
    """He et al. 2016: a norm and the shortcut read what the stem gives."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.in_place = in_place
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(3))
        self.layers = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1, bias=False) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for norm, layer in zip(self.norms, self.layers, strict=False):
            out = layer(F.relu(norm(x)))
            if self.in_place:
                out += x
            x = out if self.in_place else out + x
        return self.norms[2](x)


class CopiedShortcut(nn.Module):
    """The shortcut is a copy; what it is of is changed in place before the layer runs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.layer, self.last = nn.Identity(), nn.Conv2d(3, 3, 3, padding=1), nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x * 2)
        shortcut = x.clone()
        return self.last(shortcut + self.layer(F.relu(x, inplace=True)))


class Vectors(nn.Module):
    """Of one example there is one value of each unit."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(3, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.norm = nn.LayerNorm(6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x[..., 0, 0])
        return self.last(self.norm(x + torch.tanh(self.inner(x))))


@pytest.mark.parametrize("size", [20, 1])
@pytest.mark.parametrize(
    "made",
    [
        Vectors,
        ActivationBeforeNorm,
        lambda: PreActivation(in_place=True),
        lambda: PreActivation(in_place=False),
        CopiedShortcut,
    ],
    ids=["vectors", "activation-before-norm", "in-place-sum", "sum", "copied-shortcut"],
)
def test_a_merge_of_a_network_with_itself_stays_it(made: type[nn.Module], size: int) -> None:
    torch.manual_seed(0)
    network, x = made(), torch.randn(40, 3, 6, 6)
    for parameter in network.parameters():
        nn.init.normal_(parameter, 0, 0.3)
    reset_batchnorm(network, [x])
    network.eval()
    merged = copy.deepcopy(network)
    with torch.no_grad():
        wanted = network(x)
        LeastSquares([network, network], list(x.split(size)))(merged)
        found = merged(x)
    assert (found - wanted).norm() < 1e-4 * wanted.norm()
