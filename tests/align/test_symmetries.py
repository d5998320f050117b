"""Symmetries beyond permutations: derived, verified, applied, undone."""

import copy
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from networks import Perceptron, ResNet20
from tiny_clip import tiny_clip
from torch import Tensor, nn

from lightning_merge.align import PermutationSpec
from lightning_merge.errors import AlignmentError

VIT = {"embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 4}


def timm(name: str, **changes: object) -> nn.Module:
    from timm import create_model

    return create_model(name, **changes).eval()


def shaken(model: nn.Module, seed: int = 0) -> nn.Module:
    """The network in float64 with nothing at its default, norms' scales above all."""
    generator = torch.Generator().manual_seed(seed)

    def normal(tensor: Tensor) -> Tensor:
        return torch.randn(tensor.shape, generator=generator, dtype=torch.float64)

    model = copy.deepcopy(model).double().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            size = 0.3 if parameter.ndim < 2 else max(parameter[0].numel(), 1) ** -0.5
            start = 1.0 if parameter.ndim == 1 and not name.endswith("bias") else 0.0
            parameter.copy_(start + size * normal(parameter))
        for name, buffer in model.named_buffers():
            if name.endswith("running_var"):
                buffer.copy_(normal(buffer).abs() + 0.5)
            elif name.endswith("running_mean"):
                buffer.copy_(0.3 * normal(buffer))
    return model


class PostNorm(nn.Module):
    """A block whose norm comes after the sum, and so is part of the stream."""

    def __init__(self) -> None:
        super().__init__()
        self.into = nn.Linear(5, 8)
        self.norm, self.norm2 = nn.LayerNorm(8), nn.LayerNorm(8)
        self.one, self.two = nn.Linear(8, 12), nn.Linear(12, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.into(x))
        return self.head(self.norm2(x + self.two(torch.relu(self.one(x)))))


class RootMeanSquare(nn.Module):
    """A pre-norm block with RMSNorms, and layers without biases to fold anything into."""

    def __init__(self) -> None:
        super().__init__()
        self.into = nn.Linear(5, 8)
        self.norm, self.last = nn.RMSNorm(8), nn.RMSNorm(8)
        self.one, self.two = nn.Linear(8, 12, bias=False), nn.Linear(12, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.into(x)
        return self.head(self.last(x + self.two(torch.relu(self.one(self.norm(x))))))


class Normed(nn.Module):
    """Attention whose queries and keys are normed, and whose values go through a bottleneck."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(5, 8) for _ in range(3))
        self.q_norm, self.k_norm = nn.LayerNorm(4), nn.LayerNorm(4)
        self.narrow, self.wide = nn.Linear(8, 3, bias=False), nn.Linear(3, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).reshape(len(x), -1, 2, 4).transpose(1, 2) for f in (self.q, self.k, self.v))
        y = torch.nn.functional.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v)
        y = y.transpose(1, 2).flatten(2)
        return self.head(torch.relu(self.wide(self.narrow(y)))).mean(1)


class Resized(nn.Module):
    """A pre-norm block whose position embedding is brought to the size of the image."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.positions = nn.Conv2d(3, 8, 2, 2), nn.Parameter(torch.randn(1, 8, 2, 2))
        self.norm, self.last = nn.LayerNorm(8), nn.LayerNorm(8)
        self.one, self.two, self.head = nn.Linear(8, 12), nn.Linear(12, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x)
        positions = nn.functional.interpolate(self.positions, x.shape[2:], mode="bicubic")
        x = (x + positions).flatten(2).transpose(1, 2)
        x = x + self.two(torch.relu(self.one(self.norm(x))))
        return self.head(self.last(x).mean(1))


# Network, input, and how many groups have which symmetry: by reading the network.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], dict[str, int]]] = {
    "vit": (
        lambda: timm("vit_tiny_patch16_224", img_size=32, init_values=0.1, **VIT),
        (2, 3, 32, 32),
        {"orthogonal": 1, "invertible": 4, "permutation": 4},
    ),
    "deit": (
        lambda: timm("deit_tiny_distilled_patch16_224", img_size=32, **VIT),
        (2, 3, 32, 32),
        {"orthogonal": 1, "invertible": 4, "permutation": 4},
    ),
    # Two blocks of self-attention, two of class attention, q and k apart in these.
    "cait": (
        lambda: timm("cait_xxs24_224", img_size=32, **VIT),
        (2, 3, 32, 32),
        {"orthogonal": 1, "invertible": 8},
    ),
    # The first stage's stream begins with a norm, which no matrix passes.
    "swin": (
        lambda: timm(
            "swin_tiny_patch4_window7_224",
            img_size=32,
            window_size=4,
            embed_dim=8,
            depths=(1, 1),
            num_heads=(2, 2),
            num_classes=4,
        ),
        (2, 3, 32, 32),
        {"orthogonal": 1, "invertible": 4},
    ),
    "beit": (
        lambda: timm("beit_base_patch16_224", img_size=32, **VIT),
        (2, 3, 32, 32),
        {"orthogonal": 1, "invertible": 4},
    ),
    # Rotary positions stand between q and k.
    "eva": (
        lambda: timm("eva02_tiny_patch14_224", img_size=28, **VIT),
        (2, 3, 28, 28),
        {"orthogonal": 1, "invertible": 2},
    ),
    "convnext": (
        lambda: timm("convnext_atto", depths=(1, 1, 1, 1), dims=(4, 4, 8, 8), num_classes=4),
        (2, 3, 32, 32),
        {"orthogonal": 0, "invertible": 0, "scaled": 0},
    ),
    # The stream begins with a norm.
    "clip": (lambda: tiny_clip().visual, (2, 3, 16, 16), {"orthogonal": 0, "invertible": 4}),
    "resnet": (ResNet20, (2, 3, 16, 16), {"scaled": 12, "permutation": 0}),
    "perceptron": (Perceptron, (4, 5), {"scaled": 2, "permutation": 0}),
    "post-norm": (PostNorm, (4, 5), {"orthogonal": 0, "scaled": 1, "permutation": 1}),
    "rms": (RootMeanSquare, (4, 5), {"orthogonal": 1, "scaled": 1}),
    "resized": (Resized, (2, 3, 6, 6), {"orthogonal": 1, "scaled": 1, "permutation": 0}),
    # Values and the bottleneck; q and k are normed, the units behind it pass a ReLU.
    "normed": (Normed, (2, 6, 5), {"invertible": 2, "scaled": 1}),
}


def output(model: nn.Module, state: dict[str, Tensor], x: Tensor) -> Tensor:
    with torch.no_grad():
        found = torch.func.functional_call(model, state, (x,))
    return found[0] if isinstance(found, tuple) else found


@pytest.mark.parametrize("name", NETWORKS)
def test_random_maps_of_every_kind_keep_the_function_and_can_be_undone(name: str) -> None:
    make, shape, counts = NETWORKS[name]
    torch.manual_seed(0)
    model = make()
    spec = PermutationSpec.from_model(model, torch.randn(shape), symmetries="all")
    found = Counter(group.symmetry for group in spec.groups)
    assert {kind: found[kind] for kind in counts} == counts

    model = shaken(model)
    x = torch.randn(shape, dtype=torch.float64)
    before = output(model, {}, x)

    def error(state: dict[str, Tensor]) -> float:
        return float((output(model, state, x) - before).norm() / before.norm())

    canonical = spec.canonical(model)
    assert {n: t.shape for n, t in canonical.items()} == {
        n: t.shape for n, t in model.state_dict().items()
    }
    one, two = (spec.random_maps(torch.Generator().manual_seed(seed)) for seed in (1, 2))
    moved = spec.transform(canonical, one)
    assert error(canonical) < 1e-9
    assert error(moved) < 1e-9
    for group in spec.groups:
        alone = spec.transform(canonical, {group.name: one[group.name]})
        assert error(alone) < 1e-9
        if group.symmetry != "permutation":
            # One member that does not follow breaks the function: the check can fail.
            member = next(m for m in group.members if m.variance > 0)
            assert error({**alone, member.tensor: canonical[member.tensor]}) > 1e-6
    back = spec.transform(moved, spec.inverse(one))
    both = spec.transform(canonical, spec.compose(one, two))
    again = spec.transform(moved, two)
    for tensor, old in canonical.items():
        torch.testing.assert_close(back[tensor], old, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(both[tensor], again[tensor], rtol=1e-9, atol=1e-9)


def test_the_groups_are_those_of_permutations_which_stay_the_default() -> None:
    model, x = NETWORKS["rms"][0](), torch.randn(4, 5)
    default = PermutationSpec.from_model(model, x)
    every = PermutationSpec.from_model(model, x, symmetries="all")
    assert [(g.name, g.size, g.blocks) for g in default.groups] == [
        (g.name, g.size, g.blocks) for g in every.groups
    ]
    assert {group.symmetry for group in default.groups} == {"permutation"}
    permutation = every.random(torch.Generator().manual_seed(0))
    plain, other = (spec.apply(model, permutation) for spec in (default, every))
    assert all(torch.equal(plain[name], other[name]) for name in plain)


def test_why_a_stream_keeps_its_permutations_is_stated() -> None:
    spec = PermutationSpec.from_model(PostNorm(), torch.randn(4, 5), symmetries="all")
    assert any(
        line.startswith("into: permutations only: the scale of layer_norm") for line in spec.frozen
    )


def test_canonical_norms_are_one_and_zero() -> None:
    model, shape, _ = NETWORKS["vit"]
    spec = PermutationSpec.from_model(model(), torch.randn(shape), symmetries="all")
    state = spec.canonical(shaken(model()))
    for name, tensor in state.items():
        if "norm" in name:
            assert torch.equal(tensor, torch.full_like(tensor, float(name.endswith("weight"))))
        if name.endswith("gamma"):
            assert torch.equal(tensor, torch.ones_like(tensor))
    # What writes into the stream has no mean over its units.
    for name in ("patch_embed.proj.weight", "blocks.0.mlp.fc2.weight", "blocks.1.attn.proj.bias"):
        torch.testing.assert_close(state[name].mean(0), torch.zeros_like(state[name][0]))
    assert float(state["pos_embed"].mean(-1).abs().max()) < 1e-12


def test_a_norm_whose_readers_have_no_bias_keeps_its_own() -> None:
    class Bare(RootMeanSquare):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.last = nn.LayerNorm(8), nn.LayerNorm(8)

    spec = PermutationSpec.from_model(Bare(), torch.randn(4, 5), symmetries="all")
    assert spec.group("into").symmetry == "orthogonal"
    assert spec.group("into").keeps_ones
    model = shaken(Bare())
    state = spec.canonical(model)
    assert torch.equal(state["norm.weight"], torch.ones(8, dtype=torch.float64))
    torch.testing.assert_close(state["norm.bias"], model.norm.bias / model.norm.weight)
    assert torch.equal(state["last.bias"], torch.zeros(8, dtype=torch.float64))


def rms() -> tuple[PermutationSpec, nn.Module]:
    model = shaken(RootMeanSquare())
    spec = PermutationSpec.from_model(RootMeanSquare(), torch.randn(4, 5), symmetries="all")
    return spec, model


def test_what_does_not_fit_is_refused() -> None:
    spec, model = rms()
    maps = spec.random_maps()
    with pytest.raises(AlignmentError, match=r"transform what spec\.canonical gives"):
        spec.transform(model, {"into": maps["into"]})
    state = spec.canonical(model)
    with pytest.raises(AlignmentError, match="not orthogonal"):
        spec.transform(state, {"into": 2 * maps["into"]})
    with pytest.raises(AlignmentError, match=r"takes matrices \(1, 8, 8\)"):
        spec.transform(state, {"into": torch.eye(7)})
    with pytest.raises(AlignmentError, match="have to be positive"):
        spec.transform(state, {"one": -torch.ones(12)})
    with pytest.raises(AlignmentError, match=r"factors have shape \(12,\)"):
        spec.transform(state, {"one": torch.ones(11)})
    plain = PermutationSpec.from_model(RootMeanSquare(), torch.randn(4, 5))
    with pytest.raises(AlignmentError, match="a permutation is a LongTensor"):
        plain.transform(state, {"into": torch.eye(8)})
    with pytest.raises(AlignmentError, match="choose 'permutation' or 'all'"):
        PermutationSpec.from_model(RootMeanSquare(), torch.randn(4, 5), symmetries="both")
    layer_norms = PermutationSpec.from_model(
        NETWORKS["vit"][0](), torch.randn(2, 3, 32, 32), symmetries="all"
    )
    turn = torch.linalg.qr(torch.randn(16, 16, dtype=torch.float64)).Q
    with pytest.raises(AlignmentError, match="keep the all-ones vector"):
        layer_norms.transform(
            layer_norms.canonical(NETWORKS["vit"][0]()), {"patch_embed.proj": turn}
        )


def test_factors_alone_scale_and_permutations_alone_permute() -> None:
    spec, model = rms()
    state = spec.canonical(model)
    factors = torch.linspace(0.5, 2, 12, dtype=torch.float64)
    scaled = spec.transform(state, {"one": factors})
    torch.testing.assert_close(scaled["one.weight"], factors[:, None] * state["one.weight"])
    torch.testing.assert_close(scaled["two.weight"], state["two.weight"] / factors)
    order = torch.randperm(12)
    assert torch.equal(
        spec.transform(state, {"one": order})["one.weight"], state["one.weight"][order]
    )


def test_matrices_are_drawn_by_the_generator() -> None:
    spec, _ = rms()
    one, same, other = (
        spec.random_maps(torch.Generator().manual_seed(seed))["into"] for seed in (1, 1, 2)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    torch.testing.assert_close(one @ one.T, torch.eye(8, dtype=torch.float64))
