"""The average's promises, on state dicts of every kind."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import prune

from lightning_merge.aggregate import (
    average,
    dare,
    fisher_average,
    greedy_soup,
    interpolate,
    model_stock,
    task_arithmetic,
    task_vector,
    ties,
)
from lightning_merge.errors import (
    ArchitectureMismatchError,
    CheckpointError,
    ConfigError,
    MergeError,
    NonFiniteError,
)

TYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64, torch.complex128),
    *(torch.int64, torch.bool),
]
SHAPES = [(), (0,), (3,), (2, 0, 4), (2, 3)]


def tensors(dtype, shape):
    real = {torch.complex64: torch.float32, torch.complex128: torch.float64}.get(dtype, dtype)
    count = torch.Size(shape).numel() * (1 if real == dtype else 2)
    if real == torch.bool:
        numbers = st.booleans()
    elif real == torch.int64:
        numbers = st.integers(-(2**62), 2**62)
    else:
        limit = torch.finfo(real).max
        width = 64 if real == torch.float64 else 32
        numbers = st.floats(-limit, limit, width=width)

    def make(values):
        flat = torch.tensor(values, dtype=torch.float64 if real.is_floating_point else real)
        flat = flat.to(real)
        if real != dtype:
            flat = torch.view_as_complex(flat.reshape(-1, 2))
        return flat.reshape(shape)

    return st.lists(numbers, min_size=count, max_size=count).map(make)


layouts = st.lists(
    st.tuples(st.sampled_from(TYPES), st.sampled_from(SHAPES)), min_size=1, max_size=4
)


def states(layout):
    return st.fixed_dictionaries({f"t{i}": tensors(*kind) for i, kind in enumerate(layout)})


def same(a, b):
    return a.keys() == b.keys() and all(
        a[k].dtype == b[k].dtype and torch.equal(a[k].cdouble(), b[k].cdouble())
        if a[k].dtype.is_floating_point or a[k].is_complex()
        else torch.equal(a[k], b[k])
        for k in a
    )


@given(layouts.flatmap(states), st.integers(1, 7), st.floats(0.01, 3))
@settings(max_examples=150, deadline=None)
def test_the_average_of_copies_is_the_copy(state, count, weight):
    copies = [{k: v.clone() for k, v in state.items()} for _ in range(count)]
    assert same(average(copies), state)
    weights = [weight] + [1 - weight / 4] * (count - 1)
    assert same(average(copies, weights), state)


@given(
    layouts.flatmap(lambda layout: st.lists(states(layout), min_size=2, max_size=5)), st.randoms()
)
@settings(max_examples=150, deadline=None)
def test_the_order_of_the_inputs_changes_nothing(given_states, random):
    kept = {k for k, v in given_states[0].items() if v.dtype in (torch.int64, torch.bool)}
    pairs = [(state, 1.0 + index) for index, state in enumerate(given_states)]
    shuffled = random.sample(pairs, len(pairs))
    for weighted in (False, True):
        results = [
            average([s for s, _ in order], [w for _, w in order] if weighted else None)
            for order in (pairs, shuffled)
        ]
        a, b = ({k: v for k, v in result.items() if k not in kept} for result in results)
        assert same(a, b)


@given(st.lists(st.floats(-1e300, 1e300), min_size=1, max_size=6))
@settings(max_examples=150, deadline=None)
def test_float64_is_rounded_once(values):
    exact = sum(map(Fraction, values)) / len(values)
    found = average([{"w": torch.tensor([v], dtype=torch.float64)} for v in values])["w"].item()
    largest = max(map(abs, values))
    # Half a unit in the last place, and what a sum of 2^-100 of the largest can hide.
    assert abs(Fraction(found) - exact) <= abs(exact) * 2**-53 + Fraction(largest) * 2**-98 + (
        Fraction(5e-324)
    )


@given(
    st.lists(st.floats(-(2.0**60), 2.0**60, width=32), min_size=1, max_size=6),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
@settings(max_examples=150, deadline=None)
def test_other_types_are_the_rounded_exact_mean(values, dtype):
    tensors = [torch.tensor([v]).clamp(-6e4, 6e4).to(dtype) for v in values]
    exact = sum(Fraction(t.item()) for t in tensors) / len(tensors)
    found = average([{"w": t} for t in tensors])["w"]
    step = torch.finfo(dtype).eps * max(abs(found.item()), torch.finfo(dtype).tiny)
    largest = max(abs(t.item()) for t in tensors)
    assert abs(Fraction(found.item()) - exact) <= Fraction(step) / 2 + Fraction(largest) * 2**-48


def test_mixed_fractions_give_the_widest_and_other_mixtures_are_refused():
    half, single = torch.tensor([1.0]).half(), torch.tensor([2.0**-20])
    for order in ([half, single], [single, half]):
        merged = average([{"w": value} for value in order])["w"]
        assert merged.dtype == torch.float32
        assert merged.item() == 0.5 + 2.0**-21
    for odd in (torch.tensor([1]), torch.tensor([True]), torch.tensor([1j])):
        for order in ([half, odd], [odd, half]):
            with pytest.raises(ArchitectureMismatchError, match=r"float16|complex64"):
                average([{"w": value} for value in order])


def everything(a, b):
    """Every public aggregate of two state dicts, by name."""
    ones = {k: torch.ones(v.shape) for k, v in a.items() if v.dtype.is_floating_point}
    return {
        "average": lambda: average([a, b]),
        "interpolate": lambda: interpolate(a, b, 0.3),
        "greedy soup": lambda: greedy_soup([a, b], lambda state: 0.0, [1.0, 0.5])[0],
        "task vector": lambda: task_vector(b, a),
        "task arithmetic": lambda: task_arithmetic(a, [task_vector(b, a)], 0.5),
        "TIES": lambda: ties(a, [task_vector(b, a)], 1.0, 0.5),
        "DARE": lambda: dare([task_vector(b, a)], 0.5),
        "Model Stock": lambda: model_stock(a, [a, b]),
        "Fisher": lambda: fisher_average([a, b], [ones, ones]),
    }


NAMES = list(everything({}, {}))


@pytest.mark.parametrize("method", NAMES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.complex64])
def test_what_is_not_finite_is_refused_by_every_aggregate(method, bad, dtype):
    a = {"w": torch.ones(4).to(dtype), "v": torch.ones(2)}
    b = {"w": torch.tensor([1.0, bad, 1.0, 2.0]).to(dtype), "v": torch.zeros(2)}
    with pytest.raises(MergeError) as error:
        everything(a, b)[method]()
    assert "'w'" in str(error.value)


@pytest.mark.parametrize("method", NAMES)
def test_a_constant_mask_stays(method):
    mask = torch.full((3, 3), float("-inf")).triu(1)
    a, b = ({"mask": mask.clone(), "w": torch.randn(5)} for _ in range(2))
    merged = everything(a, b)[method]()
    if method == "task vector":
        assert torch.equal(merged["mask"], torch.zeros(3, 3))
    elif method == "DARE":
        assert torch.equal(merged[0]["mask"], torch.zeros(3, 3))
    else:
        assert torch.equal(merged["mask"], mask)


@pytest.mark.parametrize("method", NAMES)
def test_shapes_and_names_are_checked_by_every_aggregate(method):
    a = {"w": torch.ones(4), "v": torch.ones(2)}
    for b in ({"w": torch.ones(2, 2), "v": torch.ones(2)}, {"w": torch.ones(4)}):
        with pytest.raises(MergeError, match=r"'[wv]'"):
            everything(a, b)[method]()


def test_complex_tensors():
    a, b = {"f": torch.tensor([0j, 2])}, {"f": torch.tensor([1 + 1j, 4j])}
    assert average([a, b])["f"].tolist() == [0.5 + 0.5j, 1 + 2j]
    assert interpolate(a, b, 0.25)["f"].tolist() == [0.75 + 0.75j, 0.5 + 3j]
    assert task_arithmetic(a, [task_vector(b, a)], 0.5)["f"].tolist() == [0.5 + 0.5j, 1 + 2j]
    assert greedy_soup([a, b], lambda state: 1.0, [0.5, 0.4])[0]["f"].tolist() == [
        0.5 + 0.5j,
        1 + 2j,
    ]
    torch.testing.assert_close(model_stock(a, [b, b])["f"], b["f"])
    with pytest.raises(ConfigError, match="complex"):
        ties(a, [task_vector(b, a)])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_result_beyond_the_range_is_named(dtype):
    big = torch.finfo(dtype).max
    states = [{"layer.w": torch.tensor([1.0, s * big], dtype=dtype)} for s in (1, -1)]
    with pytest.raises(NonFiniteError, match=r"'layer\.w' is beyond the range"):
        average(states, [5, -4])
    assert average(states)["layer.w"].tolist() == [1.0, 0.0]
    with pytest.raises(NonFiniteError, match=r"'layer\.w'"):
        task_arithmetic(states[0], [{"layer.w": states[0]["layer.w"].float()}], 3.0)


def test_a_variance_below_zero_is_named():
    states = [nn.Sequential(nn.BatchNorm1d(2)).state_dict() for _ in range(2)]
    states[1]["0.running_var"] = torch.tensor([1.0, 9.0])
    for merge in (lambda: average(states, [3, -1]), lambda: interpolate(*states, 1.5)):
        with pytest.raises(NonFiniteError, match=r"'0\.running_var' is a variance") as error:
            merge()
        assert "\n" not in str(error.value)
    near = average(states, [1.05, -0.05])["0.running_var"]
    torch.testing.assert_close(near, torch.tensor([1.0, 0.6]))
    torch.testing.assert_close(average(states, [-3, -1])["0.running_var"], torch.tensor([1.0, 3.0]))


def spectral(seed):
    torch.manual_seed(seed)
    return nn.utils.parametrizations.spectral_norm(nn.Linear(5, 4))


def pruned(seed, mask_seed=None):
    torch.manual_seed(seed)
    layer = nn.Linear(5, 4)
    mask = torch.rand(4, 5, generator=torch.Generator().manual_seed(mask_seed or seed)) > 0.5
    return prune.custom_from_mask(layer, "weight", mask)


@pytest.mark.parametrize(
    ("make", "advice"),
    [
        (spectral, "remove_parametrizations"),
        (lambda s: nn.utils.parametrizations.weight_norm(nn.Linear(5, 4)), "remove_parametr"),
        (lambda s: nn.utils.parametrizations.orthogonal(nn.Linear(4, 4)), "remove_parametr"),
        (lambda s: nn.utils.spectral_norm(nn.Linear(5, 4)), "remove_spectral_norm"),
        (lambda s: nn.utils.weight_norm(nn.Linear(5, 4)), "remove_weight_norm"),
        (pruned, "prune.remove"),
    ],
)
def test_tensors_that_are_no_free_parameters_are_refused(make, advice):
    states = [nn.Sequential(make(seed)).state_dict() for seed in (1, 2)]
    for merge in everything(*states).values():
        with pytest.raises((CheckpointError, ArchitectureMismatchError), match=advice):
            merge()


def test_networks_of_one_pruning_mask_are_averaged_as_they_compute():
    layers = [pruned(seed, mask_seed=9) for seed in (1, 2)]
    merged = average([layer.state_dict() for layer in layers])
    assert torch.equal(merged["weight_mask"], layers[0].weight_mask)
    effective = merged["weight_orig"] * merged["weight_mask"]
    torch.testing.assert_close(effective, (layers[0].weight + layers[1].weight) / 2)


def test_parameters_give_plain_tensors_and_keep_their_memory_format():
    conv = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    merged = average([dict(conv.named_parameters())] * 2)
    assert not any(value.requires_grad for value in merged.values())
    assert merged["weight"].is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(merged["weight"], conv.weight)


def test_weights_by_name():
    a = {"layer1.w": torch.zeros(2), "layer2.w": torch.zeros(2), "head.w": torch.zeros(2)}
    b = {name: torch.ones(2) for name in a}
    weights = {r"^layer1\.": [1, 3], r"layer": [3, 1]}
    merged = average([a, b], weights)
    assert [merged[name][0].item() for name in a] == [0.75, 0.25, 0.5]
    vectors = [task_vector(b, a)] * 2
    moved = task_arithmetic(a, vectors, 1.0, {"head": [2, 0.5]})
    assert [moved[name][0].item() for name in a] == [2.0, 2.0, 2.5]
    scaled = dare(vectors, 0.0, weights=[1.0, 3.0])
    assert [vector["head.w"][0].item() for vector in scaled] == [1.0, 3.0]
    with pytest.raises(ConfigError, match="for no tensor"):
        average([a, b], {"nowhere": [1, 1]})
    with pytest.raises(ConfigError, match="no regular expression"):
        average([a, b], {"(": [1, 1]})
    with pytest.raises(ConfigError, match="sum 0"):
        average([a, b], {"layer": [1, -1]})


def test_ties_by_sum_and_by_weights():
    start = {"w": torch.zeros(3)}
    vectors = [
        {"w": torch.tensor(v)} for v in ([4.0, 1.0, -3.0], [2.0, 5.0, 1.0], [1.0, -9.0, 0.0])
    ]
    assert ties(start, vectors, 1.0, 1.0, merge="sum")["w"].tolist() == [7.0, -9.0, -3.0]
    mean = ties(start, vectors, 1.0, 1.0)["w"]
    torch.testing.assert_close(mean, torch.tensor([7 / 3, -9.0, -3.0]))
    # Weights 1, 2, 0.5: sums 8.5, 6.5, -1; of those that agree (8.5 / 3.5, 11 / 3, -3 / 1).
    merged = ties(start, vectors, 1.0, 1.0, weights=[1, 2, 0.5])["w"]
    torch.testing.assert_close(merged, torch.tensor([8.5 / 3.5, 11 / 3, -3.0]))
    summed = ties(start, vectors, 1.0, 1.0, merge="sum", weights=[1, 2, 0.5])["w"]
    assert summed.tolist() == [8.5, 11.0, -3.0]
    with pytest.raises(ConfigError, match="mean or sum"):
        ties(start, vectors, merge="median")
    with pytest.raises(ConfigError, match="negative"):
        ties(start, vectors, weights=[1, 1, -1])
