"""Planted permutations under noise, and what coordinate descent over weights promises."""

from collections.abc import Callable
from functools import partial
from itertools import pairwise, permutations, product

import pytest
import timm
import torch
from networks import Perceptron, randomised
from torch import Tensor, nn

import lightning_merge.networks  # noqa: F401 - registers the CIFAR networks with timm
from lightning_merge.align import ActivationMatching, PermutationSpec, WeightMatching
from lightning_merge.align.matching import weight_descent
from lightning_merge.align.matching.agreement import agreement
from lightning_merge.align.matching.assignment import assign_wholes
from lightning_merge.symmetry.index_maps import Permutation
from lightning_merge.symmetry.unit_group import Group

State = dict[str, Tensor]
create = partial(timm.create_model, num_classes=5)
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet20, convolutions": partial(create, "resnet20_cifar"),
    "resnet20, pads": partial(create, "resnet20_cifar", shortcut="pad"),
    "vgg11": partial(create, "vgg11_cifar"),
    "densenet": partial(create, "densenet121", block_config=(2, 3), growth_rate=6, bn_size=2),
    "vit": partial(
        create, "vit_tiny_patch16_224", img_size=32, embed_dim=24, depth=2, num_heads=3
    ),
    "grouped convolutions": partial(
        create, "resnext50_32x4d", layers=(1, 1, 1, 1), channels=(8,) * 4, cardinality=4,
        base_width=32,
    ),
    "q-k norm": partial(
        create, "vit_tiny_patch16_224", img_size=32, embed_dim=24, depth=2, num_heads=3,
        qk_norm=True,
    ),
}  # fmt: skip


def enlivened(model: nn.Module, x: Tensor) -> nn.Module:
    """The network with no dead units: each has mean 0 and variance 1 before its activation."""

    def normalise(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        norm = isinstance(module, nn.BatchNorm2d)
        var, mean = torch.var_mean(inputs[0] if norm else output, (0, 2, 3))
        if norm:
            module.running_mean.copy_(mean)
            module.running_var.copy_(var)
        elif module.bias is not None:
            module.weight /= var.sqrt()[:, None, None, None]
            module.bias.copy_((module.bias - mean) / var.sqrt())
        return module.forward(inputs[0])

    layers = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d | nn.Conv2d)]
    hooks = [layer.register_forward_hook(normalise) for layer in layers]
    with torch.no_grad():
        model.eval()(x)
    for hook in hooks:
        hook.remove()
    return model


def planted(
    name: str, noise: float = 1e-3
) -> tuple[PermutationSpec, nn.Module, nn.Module, Permutation, Tensor]:
    """A network, a permuted and slightly disturbed twin, the permutation, and images."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(24, 3, 32, 32, generator=generator)
    model, twin = enlivened(randomised(NETWORKS[name]()), x), NETWORKS[name]()
    spec = PermutationSpec.from_model(model, x)
    permutation = spec.random(generator)
    state = spec.apply(model.state_dict(), permutation)
    for tensor in state.values():
        if tensor.is_floating_point() and tensor.numel() > 1:
            tensor += noise * tensor.std() * torch.randn(tensor.shape, generator=generator)
    twin.load_state_dict(state)
    return spec, model, twin, permutation, x


def assert_undone(spec: PermutationSpec, planted: Permutation, found: Permutation) -> None:
    """The planted permutation was none of few, and every group is in its old order."""
    inverse = spec.inverse(planted)
    assert sum(not torch.equal(p, torch.arange(len(p))) for p in inverse.values()) > 3
    wrong = [name for name in inverse if not torch.equal(found[name], inverse[name])]
    assert not wrong


@pytest.mark.parametrize("name", NETWORKS)
def test_activations_undo_a_planted_permutation_under_noise(name: str) -> None:
    spec, model, twin, permutation, x = planted(name)
    found = ActivationMatching().match(spec, model, twin, [x[:16], x[16:]])
    assert_undone(spec, permutation, found)


@pytest.mark.parametrize("name", NETWORKS)
def test_weights_undo_a_planted_permutation_under_noise(name: str) -> None:
    spec, model, twin, permutation, _ = planted(name)
    found = WeightMatching().match(spec, model.state_dict(), twin.state_dict())
    assert_undone(spec, permutation, found)


class Chain(nn.Module):
    """Hidden layers of so many units each, with norms."""

    def __init__(self, layers: int, width: int = 4) -> None:
        super().__init__()
        pairs = pairwise([3, *[width] * layers])
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in pairs)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(layers))
        self.out = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        for layer, norm in zip(self.hidden, self.norms, strict=True):
            x = norm(layer(x)).relu()
        return self.out(x)


class Heads(nn.Module):
    """One attention with two heads of two units, between fixed tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(3, 12), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).reshape(len(x), -1, 3, 2, 2).permute(2, 0, 3, 1, 4)
        x = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).flatten(2))


def everything(spec: PermutationSpec) -> list[Permutation]:
    """All permutations of all groups, each inside its blocks."""
    choices = []
    for group in spec.groups:
        width = group.size // group.blocks
        rows = [list(permutations(range(b * width, (b + 1) * width))) for b in range(group.blocks)]
        choices.append([torch.tensor(sum(one, ())) for one in product(*rows)])
    names = [group.name for group in spec.groups]
    return [dict(zip(names, one, strict=True)) for one in product(*choices)]


def two(
    build: Callable[[], nn.Module], x: Tensor, seed: int
) -> tuple[PermutationSpec, State, State]:
    """A spec and two random states."""
    a, b = (randomised(build(), 10 * seed + i).state_dict() for i in (1, 2))
    return PermutationSpec.from_model(build(), x), a, b


def best(spec: PermutationSpec, a: State, b: State) -> float:
    """The largest inner product of all parameters over all permutations."""
    return max(inner(a, spec.apply(b, p)) for p in everything(spec))


def inner(a: State, b: State) -> float:
    return sum(float((a[name].double() * b[name].double()).sum()) for name in a)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("build", "shape"), [(partial(Chain, 1), (2, 3)), (Heads, (2, 5, 3))], ids=["norm", "heads"]
)
def test_what_one_solve_covers_is_solved_to_the_optimum(
    build: Callable[[], nn.Module], shape: tuple[int, ...], seed: int
) -> None:
    """One layer with a norm; heads as wholes together with q-k and v units inside them."""
    spec, a, b = two(build, torch.zeros(shape), seed)
    found = spec.apply(b, WeightMatching().match(spec, a, b))
    assert inner(a, found) == pytest.approx(best(spec, a, b), rel=1e-12)


def test_several_layers_reach_no_more_than_the_optimum() -> None:
    reached = []
    for seed in range(6):
        spec, a, b = two(partial(Chain, 2, 3), torch.zeros(2, 3), seed)
        assert len(everything(spec)) == 6**2
        optimum = best(spec, a, b)
        value = inner(a, spec.apply(b, WeightMatching().match(spec, a, b)))
        assert value <= optimum + 1e-9 * abs(optimum)
        reached.append(value >= optimum - 1e-9 * abs(optimum))
    assert any(reached)


def test_no_single_group_can_be_improved_where_the_descent_stops() -> None:
    for seed in range(3):
        spec, a, b = two(partial(Chain, 3), torch.zeros(2, 3), seed)
        found = WeightMatching(seed=seed).match(spec, a, b)
        value = inner(a, spec.apply(b, found))
        for group in spec.groups:
            others = [
                inner(a, spec.apply(b, {**found, group.name: torch.tensor(p)}))
                for p in permutations(range(4))
            ]
            assert max(others) <= value + 1e-9 * abs(value)


def test_every_step_raises_the_objective(monkeypatch: pytest.MonkeyPatch) -> None:
    values: list[float] = []
    step = weight_descent.Descent.step

    def watched(self, *arguments):  # type: ignore[no-untyped-def]
        moved = step(self, *arguments)
        if moved:
            values.append(self.value())
        return moved

    monkeypatch.setattr(weight_descent.Descent, "step", watched)
    spec, a, b = two(partial(create, "resnet20_cifar"), torch.zeros(2, 3, 32, 32), 0)
    found = WeightMatching().match(spec, a, b)
    assert len(values) > 5
    assert values == sorted(values)
    assert values[-1] == pytest.approx(agreement(spec, [a, spec.apply(b, found)]), rel=1e-9)


def test_the_descent_stops_where_units_are_equal() -> None:
    """Equal units and zero weights tie every choice; a step that gains nothing is none."""
    model = Perceptron()
    for tensor in model.parameters():
        nn.init.constant_(tensor, 0.5)
    spec = PermutationSpec.from_model(model, torch.zeros(2, 5))
    state = model.state_dict()
    zero = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    for a, b in ((state, state), (state, zero), (zero, zero)):
        found = WeightMatching().match(spec, a, b)
        assert all(torch.equal(p, torch.arange(len(p))) for p in found.values())


@pytest.mark.parametrize("seed", range(5))
def test_heads_and_units_inside_them_are_the_best_of_all_orders(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores, own = (torch.randn(n, n, generator=generator).double() for n in (6, 3))
    group = Group("inside", 6, (), blocks=3)
    found = assign_wholes([(group, scores)], own)
    best = max(
        sum(
            float(own[a, b] + scores[2 * a, 2 * b + turn] + scores[2 * a + 1, 2 * b + 1 - turn])
            for a, (b, turn) in enumerate(zip(heads, turns, strict=True))
        )
        for heads in permutations(range(3))
        for turns in product((0, 1), repeat=3)
    )
    heads = found[""]
    assert (found["inside"] // 2).tolist() == [0, 0, 1, 1, 2, 2]
    moved = found["inside"] + 2 * (heads - torch.arange(3)).repeat_interleave(2)
    total = own[torch.arange(3), heads].sum() + scores[torch.arange(6), moved].sum()
    assert float(total) == pytest.approx(best)
