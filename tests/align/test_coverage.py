"""Constructions of the timm families, one by one, and a few of the families themselves."""

import warnings
from typing import Any

import pytest
import timm
import torch
from networks import GroupedQueries, LastStates, Recurrent, Rotary, Stacked, Windows, randomised
from torch import Tensor, nn

from lightning_merge.align import PermutationSpec
from lightning_merge.errors import AlignmentError
from lightning_merge.symmetry.derive import derive
from lightning_merge.trace.rules.einsum import spelled_out

# Of each network: its input, and the size and blocks of its groups, or the size of every one.
PLANTED = {
    "rotary positions": (Rotary, (2, 6, 5), {(12, 1), (3, 1), (12, 3)}),
    "grouped queries": (lambda: GroupedQueries(), (2, 6, 5), None),
    "grouped queries, fused": (lambda: GroupedQueries(fused=True), (2, 6, 5), None),
    "lstm": (Recurrent, (2, 7, 5), {(6, 1), (4, 1)}),
    "gru": (lambda: Recurrent(nn.GRU), (2, 7, 5), {(6, 1), (4, 1)}),
    "last states": (lambda: LastStates(nn.GRU, 2, True), (2, 7, 5), [4, 4, 4, 4, 6]),
    "last states, lstm": (lambda: LastStates(nn.LSTM, 2, True), (2, 7, 5), [4, 4, 4, 4, 6]),
    "last states, flat": (lambda: LastStates(nn.GRU, 1, False), (2, 7, 5), [4, 4, 6]),
    "last states, no gates": (lambda: LastStates(nn.RNN, 1, True), (2, 7, 5), [4, 4, 6]),
    "stacked": (lambda: Stacked(False), (2, 5), [7, 7]),
    "stacked alone": (lambda: Stacked(True), (2, 5), [7, 7]),
    "windows": (Windows, (2, 3, 7, 7), {(6, 1), (5, 1), (7, 1)}),
}


def derived(model: nn.Module, x: Tensor) -> PermutationSpec:
    """The spec; a group that does not pass the engine's own verification is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        return PermutationSpec.from_model(model, x)


def changes(model: nn.Module, spec: PermutationSpec, x: Tensor) -> tuple[float, float]:
    """How much permuting everything changes the output, and permuting every other tensor."""
    generator = torch.Generator().manual_seed(2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    permutation = spec.random(generator)
    after = spec.apply(before, permutation)
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    half = {**after, **{name: before[name] for name in moved[::2]}}
    back = spec.apply(after, spec.inverse(permutation))
    assert all(torch.equal(back[name], before[name]) for name in before)
    outputs = []
    for state in (before, after, half):
        model.load_state_dict(state)
        model.train().eval()  # some networks keep tables computed from weights until then
        with torch.no_grad():
            outputs.append(model(x))
    scale = outputs[0].norm()
    return tuple(float((one - outputs[0]).norm() / scale) for one in outputs[1:])  # type: ignore[return-value]


@pytest.mark.parametrize("case", PLANTED)
def test_constructions(case: str) -> None:
    if case == "last states, lstm" and torch.__version__ < "2.15":
        pytest.skip("torch 2.11 does not export it")
    build, shape, sizes = PLANTED[case]
    model = randomised(build()).double().eval()
    x = torch.randn(shape, dtype=torch.float64)
    spec = derived(model, x)
    whole, half = changes(model, spec, x)
    assert whole < 1e-12
    assert half > 1e-3
    if isinstance(sizes, list):
        assert sorted(group.size for group in spec.groups) == sizes
    elif sizes is not None:
        assert {(group.size, group.blocks) for group in spec.groups} == sizes


def test_rotated_units_move_with_their_heads_only() -> None:
    spec = derived(Rotary(), torch.randn(2, 6, 5))
    (line,) = (line for line in spec.frozen if "qkv.weight" in line)
    assert line.startswith("qkv.weight axis 0: 24 of 36: moves as a whole only: the constant b_")
    (heads,) = (group for group in spec.groups if group.size == 3)
    assert "qkv.weight" in {member.tensor for member in heads.members}


@pytest.mark.parametrize("fused", [False, True])
def test_grouped_queries_move_with_the_head_that_they_read(fused: bool) -> None:
    spec = derived(GroupedQueries(fused=fused), torch.randn(2, 6, 5))
    pairs = [g for g in spec.groups if g.size == 2 and g.blocks == 1]
    assert {m.tensor for g in pairs for m in g.members} >= {"q.weight", "kv.weight"}
    units = [g for g in spec.groups if (g.size, g.blocks) == (6, 2)]
    assert len(units) == 2  # of q and k together, and of v


def test_both_directions_of_a_recurrent_layer_have_units_of_their_own() -> None:
    spec = derived(Recurrent(), torch.randn(2, 7, 5))
    assert sorted(group.size for group in spec.groups) == [4, 4, 4, 4, 6]
    one = next(g for g in spec.groups if any(m.tensor == "rnn.weight_hh_l0" for m in g.members))
    places = {(m.tensor, m.axis): m.repeat for m in one.members}
    assert places["rnn.weight_hh_l0", 0] == 4  # the gates
    assert places["rnn.weight_hh_l0", 1] == 1


def test_constants_that_differ_from_unit_to_unit_hold_them_in_place() -> None:
    class Weighted(nn.Module):
        def __init__(self, weights: Tensor) -> None:
            super().__init__()
            self.one, self.out = nn.Linear(5, 4), nn.Linear(4, 2)
            self.register_buffer("weights", weights, persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.one(x).relu() * self.weights)

    x = torch.randn(2, 5)
    assert [group.size for group in derived(Weighted(torch.full((4,), 0.5)), x).groups] == [4]
    uneven = derived(Weighted(torch.arange(4.0)), x)  # of the same structure but for its values
    assert not uneven.groups
    assert any("b_weights differs along it" in line for line in uneven.frozen)


def test_einsum_is_spelled_out() -> None:
    for equation, shapes in [
        ("...ij,jk", [(2, 3, 4, 5), (5, 6)]),
        ("b...d,...d->b...", [(2, 3, 4), (3, 4)]),
        ("ba,cb", [(2, 3), (4, 2)]),
    ]:
        tensors = [torch.randn(shape) for shape in shapes]
        inputs, output = spelled_out(equation, [len(shape) for shape in shapes])
        full = torch.einsum(f"{','.join(inputs)}->{output}", *tensors)
        assert torch.equal(full, torch.einsum(equation, *tensors))


def test_derivation_runs_once_for_networks_of_one_structure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def network(width: int) -> nn.Module:
        layers = nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 2, 3)
        return randomised(nn.Sequential(*layers), seed=width)

    runs = []

    def counted(*arguments: Any) -> Any:
        runs.append(1)
        return derive(*arguments)

    monkeypatch.setattr("lightning_merge.symmetry.spec.derive", counted)
    x = torch.randn(1, 3, 9, 9)
    first = derived(network(11), x)
    again = derived(randomised(network(11), seed=5), torch.randn(1, 3, 9, 9))
    assert len(runs) == 1
    assert [group.name for group in again.groups] == [group.name for group in first.groups]
    derived(network(12), x)
    derived(network(12), torch.randn(1, 3, 10, 10))
    assert len(runs) == 3


def test_time_limit() -> None:
    with pytest.raises(AlignmentError, match="time_limit of 0 s"):
        PermutationSpec.from_model(nn.Linear(9, 9), torch.randn(2, 9), time_limit=0)


FAMILIES = {
    "lcnet_035": 64,
    "efficientvit_m0": None,
}
SLOW = {
    "levit_128s": None,
    "cait_xxs24_224": None,
    "focalnet_tiny_srf": 96,
    "eva02_tiny_patch14_224": None,
    "sequencer2d_s": None,
    "nf_regnet_b0": 96,
}


@pytest.mark.parametrize(
    ("name", "size"),
    [*FAMILIES.items(), *(pytest.param(*item, marks=pytest.mark.slow) for item in SLOW.items())],
)
def test_families(name: str, size: int | None) -> None:
    model = timm.create_model(name, num_classes=5)
    size = size or model.default_cfg["input_size"][-1]
    spec = derived(model, torch.randn(1, 3, size, size))
    model = randomised(model).double().eval()
    whole, half = changes(model, spec, torch.randn(2, 3, size, size, dtype=torch.float64))
    assert whole < 1e-9
    assert half > 1e-3
