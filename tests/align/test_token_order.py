"""Register tokens in another order are found, and with them what activations say of the rest."""

from typing import Literal

import pytest
import torch
from test_symmetries import output, shaken, timm

from lightning_merge.align import ActivationMatching, CCAMatching, PermutationSpec, zip_it

X = torch.randn(4, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def network() -> torch.nn.Module:
    return timm(
        "vit_tiny_patch16_224",
        img_size=32,
        num_classes=4,
        depth=2,
        embed_dim=24,
        num_heads=3,
        reg_tokens=4,
    )


@pytest.mark.parametrize(
    ("symmetries", "seed"), [("permutation", 2), ("permutation", 3), ("all", 2), ("all", 3)]
)
def test_the_mean_is_the_first_network(
    symmetries: Literal["permutation", "all"], seed: int
) -> None:
    a, b = shaken(network(), seed), shaken(network(), seed)
    spec = PermutationSpec.from_model(a, X, symmetries=symmetries)
    maps = spec.random(torch.Generator().manual_seed(seed + 1))
    assert not torch.equal(maps["reg_token"], torch.arange(4))
    b.load_state_dict(spec.apply(spec.canonical(a), maps))
    found = ActivationMatching(symmetries=symmetries).align(spec, a, b, [X])
    mean = {name: (value + found[name]) / 2 for name, value in a.state_dict().items()}
    torch.testing.assert_close(output(a, mean, X), output(a, {}, X), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("seed", [2, 3])
def test_maps_and_zips_are_the_first_network_too(seed: int) -> None:
    a, b = shaken(network(), seed), shaken(network(), seed)
    spec = PermutationSpec.from_model(a, X)
    order = spec.random(torch.Generator().manual_seed(seed + 1))
    assert not torch.equal(order["reg_token"], torch.arange(4))
    b.load_state_dict(spec.apply(a.state_dict(), order))
    mapped = CCAMatching(0.1).align(spec, a, b, [X])
    for name, tensor in a.state_dict().items():
        torch.testing.assert_close(mapped[name], tensor, rtol=1e-6, atol=1e-6)
    zipped = zip_it(spec, a, b, [X])
    torch.testing.assert_close(zipped(X), a(X), rtol=1e-6, atol=1e-8)
