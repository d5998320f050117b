"""A narrow network among the units of a wide one computes the same."""

from typing import Any

import pytest
import torch
from networks import Flattened, Perceptron, ResNet20, Shuffled
from test_symmetries import PostNorm, output, shaken, timm
from torch import nn

from lightning_merge.align import PermutationSpec, WeightMatching, widened
from lightning_merge.errors import AlignmentError


class Wide(PostNorm):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(8, 20), nn.Linear(20, 8)


class Wider(PostNorm):
    def __init__(self) -> None:
        super().__init__()
        self.into = nn.Linear(5, 10)
        self.norm, self.norm2 = nn.LayerNorm(10), nn.LayerNorm(10)
        self.one, self.two = nn.Linear(10, 12), nn.Linear(12, 10)
        self.head = nn.Linear(10, 3)


def vit(width: int, heads: int, **changes: object) -> nn.Module:
    return timm(
        "vit_tiny_patch16_224",
        img_size=32,
        num_classes=4,
        depth=2,
        embed_dim=width,
        num_heads=heads,
        **changes,
    )


SHORT: dict[str, Any] = {"img_size": 32, "num_classes": 4, "depth": 2}
EVA: dict[str, Any] = {"img_size": 28, "num_classes": 4, "depth": 2}
STAGES: dict[str, Any] = {"layers": (1, 1, 1, 1), "num_classes": 4}


def resnext(groups: int, width: int) -> nn.Module:
    return timm(
        "resnext50_32x4d", **STAGES, channels=(16,) * 4, cardinality=groups, base_width=width
    )


def groupnorm(width: int) -> nn.Module:
    return timm("resnet50_gn", **STAGES, channels=(width,) * 4)


def swin(width: int) -> nn.Module:
    return timm(
        "swin_tiny_patch4_window7_224",
        img_size=64,
        window_size=2,
        depths=(1, 1),
        num_heads=(width // 4, width // 2),
        embed_dim=width,
        num_classes=4,
    )


PAIRS = {
    "perceptron": (lambda: Perceptron(4), lambda: Perceptron(9), (6, 5)),
    "resnet": (lambda: ResNet20(2), lambda: ResNet20(4), (2, 3, 16, 16)),
    "more heads": (lambda: vit(16, 2), lambda: vit(32, 4), (2, 3, 32, 32)),
    "wider heads": (lambda: vit(16, 2), lambda: vit(24, 2), (2, 3, 32, 32)),
    "registers": (
        lambda: vit(16, 2, reg_tokens=2),
        lambda: vit(32, 4, reg_tokens=2),
        (2, 3, 32, 32),
    ),
    "from one head": (lambda: vit(8, 1), lambda: vit(24, 2), (2, 3, 32, 32)),
    "from one unit": (lambda: Perceptron(1), lambda: Perceptron(4), (6, 5)),
    "shuffled channels": (lambda: Shuffled(8), lambda: Shuffled(12), (2, 3, 9, 9)),
    "wider MLP": (PostNorm, Wide, (4, 5)),
    "fixed places for queries": (
        lambda: vit(16, 2, qk_norm=True, init_values=0.1),
        lambda: vit(32, 4, qk_norm=True, init_values=0.1),
        (2, 3, 32, 32),
    ),
    "rotary positions": (
        lambda: timm("eva02_tiny_patch14_224", **EVA, embed_dim=16, num_heads=2),
        lambda: timm("eva02_tiny_patch14_224", **EVA, embed_dim=24, num_heads=3),
        (2, 3, 28, 28),
    ),
    "norms that keep their bias": (
        lambda: timm("beit_base_patch16_224", **SHORT, embed_dim=16, num_heads=2),
        lambda: timm("beit_base_patch16_224", **SHORT, embed_dim=24, num_heads=2),
        (2, 3, 32, 32),
    ),
    "conv groups, more": (lambda: resnext(4, 16), lambda: resnext(8, 16), (2, 3, 32, 32)),
    "conv groups, wider": (lambda: resnext(4, 16), lambda: resnext(4, 24), (2, 3, 32, 32)),
    # Norms that count the units of a stream which cannot be centred: copies.
    "norm before the blocks": (
        lambda: timm("vit_base_patch32_clip_224", **SHORT, embed_dim=16, num_heads=2),
        lambda: timm("vit_base_patch32_clip_224", **SHORT, embed_dim=32, num_heads=4),
        (2, 3, 32, 32),
    ),
    "depthwise kernels before norms": (
        lambda: timm("convnextv2_atto", depths=(1, 1, 1, 1), dims=(4, 6, 8, 10), num_classes=4),
        lambda: timm("convnextv2_atto", depths=(1, 1, 1, 1), dims=(8, 18, 16, 30), num_classes=4),
        (2, 3, 64, 64),
    ),
    "windows and merged patches": (lambda: swin(8), lambda: swin(16), (2, 3, 64, 64)),
    "norms of groups": (lambda: groupnorm(64), lambda: groupnorm(128), (2, 3, 32, 32)),
}


@pytest.mark.parametrize("name", PAIRS)
def test_a_padded_network_computes_the_same(name: str) -> None:
    small, large, shape = PAIRS[name]
    narrow, wide = shaken(small(), 1), shaken(large(), 2)
    x = torch.randn(shape, dtype=torch.float64)
    # As they come from a checkpoint; specs are derived from what runs on the example.
    state = widened(narrow, wide, x)
    assert {n: t.shape for n, t in state.items()} == {
        n: t.shape for n, t in wide.state_dict().items()
    }
    torch.testing.assert_close(output(wide, state, x), output(narrow, {}, x), rtol=1e-5, atol=1e-6)


def test_a_padded_network_is_aligned_to_the_wide_one() -> None:
    small, large, shape = PAIRS["more heads"]
    narrow, wide = shaken(small(), 1), shaken(large(), 2)
    x = torch.randn(shape, dtype=torch.float64)
    state = widened(narrow, wide, x)
    padded = shaken(large(), 3)
    padded.load_state_dict(state)
    spec = PermutationSpec.from_model(wide, x, symmetries="all")
    found = WeightMatching(symmetries="all").align(spec, wide, padded, [])
    torch.testing.assert_close(output(wide, found, x), output(narrow, {}, x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_only_the_result_is_rounded(dtype: torch.dtype) -> None:
    narrow, wide = shaken(PostNorm(), 1).to(dtype), shaken(Wide(), 2).to(dtype)
    state = widened(narrow, wide, torch.randn(4, 5, dtype=dtype))
    assert {value.dtype for value in state.values()} == {dtype}
    x = torch.randn(4, 5, dtype=torch.float64)
    state = {name: value.double() for name, value in state.items()}
    found, expected = output(wide.double(), state, x), output(narrow.double(), {}, x)
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)
    # What rounding may change is no excuse for a norm over other units.
    with pytest.raises(AlignmentError, match="cannot be padded"):
        widened(narrow.to(dtype), Wider().to(dtype), torch.randn(4, 5, dtype=dtype))


def test_what_cannot_be_padded_is_refused() -> None:
    x = torch.randn(4, 5)
    with pytest.raises(AlignmentError, match=r"a multiple of the units of 'into' \(10 now"):
        widened(PostNorm(), Wider(), x)
    with pytest.raises(AlignmentError, match="has 9 units in the narrow network and 4 units"):
        widened(Perceptron(9), Perceptron(4), x)
    images = torch.randn(2, 3, 9, 9)
    with pytest.raises(AlignmentError, match="the narrow network has no"):
        widened(Flattened(), ResNet20(), images)
    deep = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    with pytest.raises(AlignmentError, match=r"the wide network has no '4\.weight'"):
        widened(deep, deep[:3], x)
    other = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))
    with pytest.raises(AlignmentError, match=r"2 of 2 positions .* the network's output: give"):
        widened(nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2)), other, x)
