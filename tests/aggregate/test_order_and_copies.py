"""What every symmetric merge must do: no order of the networks, and copies give the copy."""

import itertools
import math

import pytest
import torch

from lightning_merge.aggregate import (
    average,
    cart,
    fisher_average,
    karcher_mean,
    model_stock,
    sce_vector,
    slerp,
    task_arithmetic,
    task_vector,
    ties,
)

F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64


def vectors(states, start):
    return [task_vector(state, start) for state in states]


def equal_information(states):
    names = ("conv.weight", "fc.weight")
    return [{name: torch.ones(states[0][name].shape) for name in names} for _ in states]


MERGES = {
    "average": lambda states, start: average(states),
    "Karcher": lambda states, start: karcher_mean(states),
    "Model Stock": lambda states, start: model_stock(start, states),
    "task arithmetic": lambda states, start: task_arithmetic(
        start, vectors(states, start), 1 / len(states)
    ),
    "TIES": lambda states, start: ties(start, vectors(states, start), 1.0, 1.0),
    "SCE": lambda states, start: sce_vector(vectors(states, start)).at(start, 1.0),
    "CART": lambda states, start: cart(states),
    "Fisher": lambda states, start: fisher_average(states, equal_information(states)),
    "SLERP": lambda states, start: slerp(states[0], states[-1], 0.5),
}


def network(seed, dtype):
    """Near a common start, with everything that a state dict may hold."""
    state = {}
    for scale, own in ((1.0, 0), (0.1, seed)):
        draw = torch.Generator().manual_seed(own)
        shapes = {
            "conv.weight": (6, 4, 3, 3),
            "norm.running_mean": (6,),
            "norm.running_var": (6,),
            "fc.weight": (5, 6),
            "temperature": (),
            "empty": (0, 3),
        }
        for name, shape in shapes.items():
            step = scale * torch.randn(shape, generator=draw, dtype=F64)
            state[name] = state.get(name, 0) + step
    state["norm.running_var"] = state["norm.running_var"].abs() + 0.1
    state["mask"] = torch.full((3, 3), -math.inf).triu(1)
    state = {name: value.to(dtype) for name, value in state.items()}
    return {**state, "norm.num_batches_tracked": torch.tensor(7), "index": torch.arange(4)}


def distance(found, wanted):
    """The largest one in units of the last place of the largest number."""
    kept = torch.isfinite(wanted)
    assert torch.equal(found[~kept], wanted[~kept])
    if torch.equal(found, wanted):
        return 0.0
    found, exact = found[kept].double(), wanted[kept].double()
    return float((found - exact).abs().max() / exact.abs().max() / torch.finfo(wanted.dtype).eps)


@pytest.mark.parametrize("name", [name for name in MERGES if name != "SLERP"])
@pytest.mark.parametrize("types", [(F32, F32, F32), (F32, F16, BF16), (F16, BF16, F64)])
@pytest.mark.parametrize("start", [F16, F32])
def test_the_order_changes_no_more_than_roundings(name, types, start):
    states = [network(seed, dtype) for seed, dtype in enumerate(types, start=1)]
    orders = itertools.permutations(states)
    first, *others = (MERGES[name](order, network(0, start)) for order in orders)
    for other in others:
        for key, value in first.items():
            assert other[key].dtype == value.dtype
            assert distance(other[key], value) < 20, key


@pytest.mark.parametrize("density", [0.5, 1.0])
@pytest.mark.parametrize("dtype", [F16, F32, F64])
def test_the_order_decides_no_tie_of_sce(dtype, density):
    draw = torch.Generator().manual_seed(0)
    steps = [
        {"w": torch.randint(-3, 4, (40, 40), generator=draw).to(dtype) * 0.1} for _ in range(3)
    ]
    first, *others = (sce_vector(order, density).vector for order in itertools.permutations(steps))
    assert all(torch.allclose(other["w"], first["w"], atol=1e-5) for other in others)


@pytest.mark.parametrize("name", MERGES)
@pytest.mark.parametrize("dtype", [F16, BF16, F32, F64])
@pytest.mark.parametrize("count", [2, 3, 7])
def test_copies_give_the_copy(name, dtype, count):
    state = network(1, dtype)
    merged = MERGES[name]([state] * count, network(0, dtype))
    assert list(merged) == list(state)
    for key, value in state.items():
        assert merged[key].dtype == value.dtype
        # Float64 itself, and sums of steps in float32, are rounded once or twice.
        assert distance(merged[key], value) <= (0 if dtype in (F16, BF16) else 8), key
