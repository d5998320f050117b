"""Derived specs of the papers' networks: groups as the architecture's definition counts them."""

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import timm
import torch
from networks import randomised
from torch import Tensor, nn

import lightning_merge.networks  # noqa: F401 - registers the CIFAR networks with timm
from lightning_merge.align import Group, PermutationSpec

CLASSES = 7
Sizes = Counter[tuple[int, int]]

# What the papers' tables say of each architecture.
RESNETS = {
    "resnet18": (False, (2, 2, 2, 2)),
    "resnet34": (False, (3, 4, 6, 3)),
    "resnet50": (True, (3, 4, 6, 3)),
    "resnet101": (True, (3, 4, 23, 3)),
    "resnet152": (True, (3, 8, 36, 3)),
}
DENSENETS = {
    "densenet121": (32, 64, (6, 12, 24, 16)),
    "densenet161": (48, 96, (6, 12, 36, 24)),
    "densenet169": (32, 64, (6, 12, 32, 32)),
    "densenet201": (32, 64, (6, 12, 48, 32)),
}
VGGS = {
    "vgg11": (1, 1, 2, 2, 2),
    "vgg13": (2, 2, 2, 2, 2),
    "vgg16": (2, 2, 3, 3, 3),
    "vgg19": (2, 2, 4, 4, 4),
}
COUNTS = {
    "resnet18": 12,
    "resnet34": 20,
    "resnet50": 37,
    "resnet101": 71,
    "resnet152": 105,
    "densenet121": 120,
    "densenet161": 160,
    "densenet169": 168,
    "densenet201": 200,
    "vgg11": 10,
    "vgg13": 12,
    "vgg16": 15,
    "vgg19": 18,
}


def plain(*sizes: int) -> Sizes:
    """Groups without blocks."""
    return Counter((size, 1) for size in sizes)


def resnet(
    bottleneck: bool,
    layers: Sequence[int],
    planes: Sequence[int] = (64, 128, 256, 512),
    inside: int = 1,
) -> Sizes:
    """A stream for each stage, the stem's apart if its width differs, and those inside blocks."""
    widths = [width * (4 if bottleneck else 1) for width in planes]
    streams = widths if widths[0] == 64 else [64, *widths]
    hidden = [w for w, n in zip(planes, layers, strict=True) for _ in range(n * (1 + bottleneck))]
    return plain(*streams, *hidden * inside)


def densenet(growth: int, stem: int, blocks: Sequence[int], bottleneck: int = 4) -> Sizes:
    """The stem, a bottleneck and a growth for each layer, and the transitions."""
    layers = sum(blocks)
    sizes, channels = [stem], stem
    for number in blocks[:-1]:
        channels = (channels + number * growth) // 2
        sizes.append(channels)
    return plain(*sizes, *[bottleneck * growth] * layers, *[growth] * layers)


def vgg(stages: Sequence[int], widths: Sequence[int], hidden: Sequence[int]) -> Sizes:
    """Every convolution and the hidden layers of the classifier."""
    return plain(*(w for w, n in zip(widths, stages, strict=True) for _ in range(n)), *hidden)


def block(width: int, heads: int, mlp: int, shared: bool = False) -> Sizes:
    """Heads as wholes, q-k units and v units inside heads, units of the MLP."""
    qk = (width // heads, 1) if shared else (width, heads)
    return Counter([(heads, 1), qk, (width, heads), (mlp, 1)])


def transformer(
    width: int = 24, heads: int = 3, depth: int = 2, mlp: int = 0, shared: bool = False
) -> Sizes:
    """One residual stream, and the groups of each block."""
    return plain(width) + times(depth, block(width, heads, mlp or 4 * width, shared))


def times(number: int, sizes: Sizes) -> Sizes:
    return Counter({size: count * number for size, count in sizes.items()})


def create(name: str, **options: Any) -> Callable[[], nn.Module]:
    return lambda: timm.create_model(name, num_classes=CLASSES, **options)


SHORT = {"layers": (1, 2, 1, 1)}
TINY = {"img_size": 32, "embed_dim": 24, "depth": 2, "num_heads": 3}
EVA = {**TINY, "img_size": 28, "use_rot_pos_emb": False}

# Short members of each class: what is counted, and how.
SMALL: dict[str, tuple[Callable[[], nn.Module], int, Sizes]] = {
    "resnet18": (create("resnet18", **SHORT), 32, resnet(False, (1, 2, 1, 1))),
    "resnet50": (
        create("resnet50", channels=(4, 6, 8, 10), **SHORT),
        32,
        resnet(True, (1, 2, 1, 1), (4, 6, 8, 10)),
    ),
    "densenet": (
        create("densenet121", block_config=(2, 3), growth_rate=6, bn_size=2),
        32,
        densenet(6, 12, (2, 3), 2),
    ),
    "vgg": (
        lambda: timm.models.VGG(
            [8, "M", 10, "M", 12, 12, "M", 14, 14, "M", 16, 18], CLASSES, mlp_ratio=0.004
        ),
        32,
        plain(8, 10, 12, 12, 14, 14, 16, 18, 16, 4096),
    ),
    "vit": (create("vit_tiny_patch16_224", **TINY), 32, transformer()),
    "deit": (create("deit_tiny_patch16_224", **TINY), 32, transformer()),
    "distillation token": (create("deit_tiny_distilled_patch16_224", **TINY), 32, transformer()),
    "clip": (create("vit_base_patch32_clip_224", **TINY), 32, transformer()),
    "clip, quick gelu": (create("vit_base_patch32_clip_quickgelu_224", **TINY), 32, transformer()),
    "layer scale, register tokens, q-k norm": (
        create("vit_tiny_patch16_224", qk_norm=True, init_values=0.1, reg_tokens=2, **TINY),
        32,
        # The two register tokens may change places, with their position embeddings.
        transformer(shared=True) + Counter({(2, 1): 1}),
    ),
    "no class token": (
        create("vit_tiny_patch16_224", class_token=False, global_pool="avg", **TINY),
        32,
        transformer(),
    ),
    # Pooling is attention with an MLP, whose query and whose result are streams of their own.
    "attention pooling": (
        create("vit_base_patch16_siglip_224", **TINY),
        32,
        transformer() + block(24, 3, 96) + plain(24, 24),
    ),
    "separate q, k and v": (
        create("eva02_tiny_patch14_224", qkv_fused=False, **EVA),
        28,
        transformer(mlp=64),
    ),
    "fused qkv, constant k bias": (
        create("eva02_tiny_patch14_224", qkv_fused=True, **EVA),
        28,
        transformer(mlp=64),
    ),
    "relative positions": (
        create("beit_base_patch16_224", **TINY),
        32,
        transformer(),
    ),
    "shifted windows, relative positions": (
        create(
            "swin_tiny_patch4_window7_224",
            img_size=32,
            window_size=4,
            embed_dim=12,
            depths=(2, 2),
            num_heads=(2, 3),
        ),
        32,
        transformer(12, 2) + transformer(24, 3),
    ),
    # Talking heads: the heads of q and k, those between the two mixings, and those of v.
    "class attention, talking heads": (
        create("cait_xxs24_224", **TINY),
        32,
        transformer() + times(2, block(24, 3, 96) + plain(3, 3)),
    ),
    # Groups as wholes, and what goes in and out inside each.
    "grouped convolutions": (
        create("resnext50_32x4d", layers=(1,) * 4, channels=(8,) * 4, cardinality=4, base_width=32),
        32,
        plain(64, 32, 32, 32, 32) + times(4, Counter([(4, 1), (16, 4), (16, 4)])),
    ),
    "depthwise convolutions, layer norm, layer scale": (
        create("convnext_atto", depths=(1, 2, 1, 1), dims=(8, 12, 16, 20)),
        32,
        plain(8, 12, 16, 20, 32, 48, 48, 64, 80),
    ),
    "squeeze and excitation": (
        create("seresnet18", layers=(1,) * 4, channels=(16,) * 4),
        32,
        plain(64, *[16] * 8, *[8] * 4),
    ),
    # A norm's groups as wholes, and the units inside each.
    "group norm": (
        create("resnet50_gn", layers=(1,) * 4, channels=(64,) * 4),
        32,
        plain(*[32] * 13) + Counter({(64, 32): 9, (256, 32): 4}),
    ),
    "resnet20, convolutions": (
        lambda: timm.create_model("resnet20_cifar", num_classes=CLASSES),
        32,
        plain(*[16] * 4, *[32] * 4, *[64] * 4),
    ),
    # The first stage is part of the second, and both of the third: the channels that a
    # stage appends are a group of their own.
    "resnet20, pads": (
        lambda: timm.create_model("resnet20_cifar", shortcut="pad", num_classes=CLASSES),
        32,
        plain(*[16] * 5, *[32] * 4, *[64] * 3),
    ),
}


def torchvision_small() -> dict[str, tuple[Callable[[], nn.Module], int, Sizes]]:
    """Torchvision's own classes."""
    from torchvision.models import densenet as dense
    from torchvision.models import resnet as residual
    from torchvision.models import vgg as plainly

    def vgg11(norm: bool) -> nn.Module:
        features = plainly.make_layers([8, "M", 10, "M", 12, 12, "M", 14, 14, "M", 16, 18], norm)
        with torch.device("meta"):
            network = plainly.VGG(nn.Identity(), CLASSES)
        network.features = features
        # Its own hidden layers have 4096 units each.
        network.classifier[0] = nn.Linear(18 * 49, 9)
        network.classifier[3] = nn.Linear(9, 11)
        network.classifier[6] = nn.Linear(11, CLASSES)
        return network

    convolutions = plain(8, 10, 12, 12, 14, 14, 16, 18, 9, 11)
    return {
        "torchvision resnet18": (
            lambda: residual.ResNet(residual.BasicBlock, [1, 2, 1, 1], CLASSES),
            32,
            resnet(False, (1, 2, 1, 1)),
        ),
        "torchvision densenet": (
            lambda: dense.DenseNet(6, (2, 3), 12, num_classes=CLASSES),
            32,
            densenet(6, 12, (2, 3)),
        ),
        "torchvision vgg": (lambda: vgg11(False), 32, convolutions),
        "torchvision vgg, batch norm": (lambda: vgg11(True), 32, convolutions),
    }


SMALL |= torchvision_small()


def full() -> dict[str, tuple[Callable[[], nn.Module], int, Sizes]]:
    """The 20 architectures of the Rethinking paper, and their like elsewhere, in full."""
    residual = {name: resnet(*given) for name, given in RESNETS.items()}
    dense = {name: densenet(*given) for name, given in DENSENETS.items()}
    plainly = {
        name + norm: vgg(stages, (64, 128, 256, 512, 512), (4096, 4096))
        for name, stages in VGGS.items()
        for norm in ("", "_bn")
    }
    convolutions = residual | dense | plainly
    transformers = {
        "deit_tiny_patch16_224": transformer(192, 3, 12),
        "vit_tiny_patch16_224": transformer(192, 3, 12),
        "deit_tiny_distilled_patch16_224": transformer(192, 3, 12),
        "vit_base_patch16_224": transformer(768, 12, 12),
        "vit_base_patch32_clip_224": transformer(768, 12, 12),
    }
    elsewhere = ("resnet18", "resnet50", "vgg11", "vgg11_bn", "densenet121")
    return (
        {name: (create(name), 32, sizes) for name, sizes in convolutions.items()}
        | {name: (create(name, img_size=32), 32, sizes) for name, sizes in transformers.items()}
        | {f"torchvision {n}": (torchvision_model(n), 32, convolutions[n]) for n in elsewhere}
    )


def torchvision_model(name: str) -> Callable[[], nn.Module]:
    import torchvision

    return lambda: torchvision.models.get_model(name, num_classes=CLASSES)


FULL = full()


def derived(model: nn.Module, x: Tensor) -> PermutationSpec:
    """The spec; no group may have failed its verification."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*frozen")
        return PermutationSpec.from_model(model, x)


def outputs(model: nn.Module, state: dict[str, Tensor], x: Tensor) -> Tensor:
    model.load_state_dict(state)
    with torch.no_grad():
        return model(x)


def prove(model: nn.Module, size: int, expected: Sizes) -> tuple[PermutationSpec, Tensor]:
    """What must hold of every spec, on the network itself and not on its exported graph."""
    model = randomised(model).double().eval()
    x = torch.randn(2, 3, size, size, dtype=torch.float64)
    spec = derived(model, torch.zeros(1, 3, size, size, dtype=torch.float64))
    assert Counter((group.size, group.blocks) for group in spec.groups) == expected

    # Neither the classes nor the colours have an order that may be changed.
    classes = [n for n, m in model.named_modules() if getattr(m, "out_features", 0) == CLASSES]
    first = next(n for n, m in model.named_modules() if isinstance(m, nn.Conv2d))
    fixed = {(f"{name}.{leaf}", 0) for name in classes for leaf in ("weight", "bias")}
    fixed.add((f"{first}.weight", 1))
    assert classes
    assert not fixed & {(m.tensor, m.axis) for group in spec.groups for m in group.members}

    original = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    permutation = spec.random(torch.Generator().manual_seed(1))
    permuted = spec.apply(original, permutation)
    before = outputs(model, original, x)
    assert float(before.std(0).min()) > 0
    error = (outputs(model, permuted, x) - before).norm() / before.norm()
    assert float(error) < 1e-12
    for group in spec.groups:
        name = group.members[0].tensor
        assert group.size < 4 or not torch.equal(permuted[name], original[name])
    back = spec.apply(permuted, spec.inverse(permutation))
    assert all(torch.equal(back[name], original[name]) for name in original)
    model.load_state_dict(original)
    return spec, x


def backwards(group: Group) -> Tensor:
    """A permutation that moves as many units as it can."""
    return torch.arange(group.size).reshape(group.blocks, -1).flip(1).reshape(-1)


@pytest.mark.parametrize("case", SMALL)
def test_short_member_of_each_class(case: str) -> None:
    build, size, expected = SMALL[case]
    model = build()
    spec, x = prove(model, size, expected)
    original = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    before = outputs(model, original, x)
    for group in spec.groups:
        # Part of what a group moves is not enough: here one position of each unit in one
        # weight, for a fused projection holds the rows of q beside those of k.
        member = next(m for m in group.members if len(m.shape) > 1)
        part = replace(group, members=(replace(member, index=member.index[:, :1]),))
        moved = PermutationSpec([part]).apply(original, {group.name: backwards(group)})
        assert float((outputs(model, moved, x) - before).norm() / before.norm()) > 1e-9, group.name


@pytest.mark.slow
@pytest.mark.parametrize("case", FULL)
def test_architecture_in_full(case: str) -> None:
    build, size, expected = FULL[case]
    known = COUNTS.get(case.removeprefix("torchvision ").removesuffix("_bn"), 49)
    assert expected.total() == known
    prove(build(), size, expected)
