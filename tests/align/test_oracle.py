"""Which positions are tied: derived specs against another package's dependency graph.

torch-pruning removes channels, and must know for that what else goes with each of them.
It hooks modules and reads autograd's graph, so it shares nothing with an exported graph.
"""

from collections.abc import Callable, Iterator
from functools import partial

import pytest
import timm
import torch
import torch_pruning as tp
from networks import Flattened, randomised
from torch import Tensor, nn

import lightning_merge.networks  # noqa: F401 - registers the CIFAR networks with timm
from lightning_merge.align import PermutationSpec

CLASSES = 7
Tied = frozenset[tuple[str, int, int]]  # tensor, axis, position

create = partial(timm.create_model, num_classes=CLASSES)
NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "resnet18": (partial(create, "resnet18", channels=(8, 10, 12, 14)), 32),
    "resnet50": (partial(create, "resnet50", channels=(2, 3, 4, 5)), 32),
    "vgg11_bn": (partial(create, "vgg11_bn_cifar"), 32),
    "densenet": (partial(create, "densenet121", block_config=(2, 3), growth_rate=6, bn_size=2), 32),
    "resnet20, convolutions": (partial(create, "resnet20_cifar"), 32),
    "depthwise": (partial(create, "mobilenetv2_035"), 32),
    "flattened": (Flattened, 9),
    "squeeze and excitation": (
        partial(create, "seresnet18", channels=(8, 8, 8, 8)),
        32,
    ),
}


def positions(module: nn.Module, name: str, out: bool) -> Iterator[tuple[str, int]]:
    """The axes of a layer's tensors along which its output or input channels lie."""
    norm = isinstance(module, nn.BatchNorm2d)
    depthwise = isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1
    for leaf, tensor in (*module.named_parameters(recurse=False), *module.named_buffers()):
        if tensor.ndim and (norm or depthwise or out or leaf == "weight"):
            yield f"{name}.{leaf}", 0 if out or norm or depthwise else 1


def oracle(model: nn.Module, x: Tensor) -> tuple[set[Tied], set[Tied]]:
    """What torch-pruning removes together with each single channel, and with a layer's all."""
    names = {module: name for name, module in model.named_modules()}
    graph = tp.DependencyGraph().build_dependency(model, x)

    def tied(group: tp.Group) -> Tied:
        found = set()
        for dependency, channels in group:
            target = dependency.target.module
            if target in names:
                out = graph.is_out_channel_pruning_fn(dependency.handler)
                for tensor, axis in positions(target, names[target], out):
                    found |= {(tensor, axis, channel) for channel in channels}
        return frozenset(found)

    single, whole = set(), set()
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    for module in layers[:-1]:  # the last one's channels are the classes
        remove = graph.get_pruner_of_module(module).prune_out_channels
        channels = range(graph.get_out_channels(module))
        single |= {tied(graph.get_pruning_group(module, remove, [c])) for c in channels}
        whole.add(tied(graph.get_pruning_group(module, remove, [*channels])))
    return single, whole


def ours(spec: PermutationSpec) -> tuple[set[Tied], set[Tied]]:
    """What moves with each unit, and with all units of a group."""
    assert all(group.blocks == 1 for group in spec.groups)
    single = {
        frozenset((m.tensor, m.axis, p) for m in group.members for p in m.index[unit].tolist())
        for group in spec.groups
        for unit in range(group.size)
    }
    whole = {
        frozenset((m.tensor, m.axis, p) for m in group.members for p in m.index.ravel().tolist())
        for group in spec.groups
    }
    return single, whole


@pytest.mark.parametrize("name", NETWORKS)
def test_ties_are_those_of_the_oracle(name: str) -> None:
    build, size = NETWORKS[name]
    model = build().eval()
    x = torch.randn(1, 3, size, size)
    assert ours(PermutationSpec.from_model(model, x)) == oracle(model, x)


def exchange(state: dict[str, Tensor], one: Tied, two: Tied) -> dict[str, Tensor]:
    """A state dict with all positions of two units exchanged, in their order."""
    state = {name: tensor.clone() for name, tensor in state.items()}
    assert [place[:2] for place in sorted(one)] == [place[:2] for place in sorted(two)]
    for (tensor, axis, p), (_, _, q) in zip(sorted(one), sorted(two), strict=True):
        rows = state[tensor].movedim(axis, 0)
        rows[[p, q]] = rows[[q, p]]
    return state


def change(model: nn.Module, state: dict[str, Tensor], x: Tensor) -> float:
    """How much another state dict changes the output, relatively; the network keeps its own."""
    with torch.no_grad():
        before = model(x)
        after = torch.func.functional_call(model, state, x)
    return float((after - before).norm() / before.norm())


def with_position(units: set[Tied], *place: str | int) -> Tied:
    """The unit that lies at a tensor's axis and position."""
    return next(unit for unit in units if place in unit)


def test_the_oracle_takes_appended_channels_for_a_flatten() -> None:
    """It ties each channel of the first stage to four inputs of the classifier."""
    model = randomised(create("resnet20_cifar", shortcut="pad")).double().eval()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    single, _ = ours(PermutationSpec.from_model(model, x))
    theirs, _ = oracle(model, x)
    state = model.state_dict()
    errors = [
        change(model, exchange(state, *(with_position(u, "conv1.weight", 0, c) for c in (0, 1))), x)
        for u in (theirs, single)
    ]
    assert errors[0] > 1e-3
    assert errors[1] < 1e-12


@pytest.mark.filterwarnings("ignore:Unwrapped parameters")
def test_the_oracle_takes_heads_for_units() -> None:
    """It ties each row of v to one of q and k, and thinks that units may change heads."""
    model = create("vit_tiny_patch16_224", img_size=32, embed_dim=24, depth=1, num_heads=3)
    model = randomised(model).double().eval()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    spec = PermutationSpec.from_model(model, x)
    theirs, _ = oracle(model, x)
    state, weight = model.state_dict(), "blocks.0.attn.qkv.weight"
    first, of_another_head = (with_position(theirs, weight, 0, row) for row in (0, 8))
    assert change(model, exchange(state, first, of_another_head), x) > 1e-4
    assert {place[:2] for place in first} > {(weight, 0), ("blocks.0.attn.proj.weight", 1)}
    for group, rows in (("qk", [0, 1, 24, 25]), ("v", [48, 49])):
        swapped = torch.arange(24)
        swapped[:2] = torch.tensor([1, 0])
        permuted = spec.apply(state, {f"blocks.0.attn.qkv.{group}": swapped})
        expected = state[weight].clone()
        expected[rows] = expected[rows][[i ^ 1 for i in range(len(rows))]]
        assert torch.equal(permuted[weight], expected)
        assert change(model, permuted, x) < 1e-12
