import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_merge.aggregate import ties, ties_vector
from lightning_merge.aggregate.weight_magnitude import smallest_kept_magnitude
from lightning_merge.errors import ArchitectureMismatchError, ConfigError


def ties_by_definition(vectors, density):
    """Yadav et al., Algorithm 1, one number at a time; vectors are lists of lists of numbers."""
    trimmed = []
    for vector in vectors:
        kept = max(1, round(density * len(vector)))
        threshold = sorted(map(abs, vector), reverse=True)[kept - 1]
        trimmed.append([x if abs(x) >= threshold else 0.0 for x in vector])
    merged = []
    for entries in zip(*trimmed, strict=True):
        total = sum(entries)
        agree = [x for x in entries if x * total > 0]
        merged.append(sum(agree) / len(agree) if agree else 0.0)
    return merged


def test_by_hand():
    pretrained = {"a": torch.tensor([1.0, 1.0, 1.0]), "b": torch.tensor([[1.0], [1.0]])}
    vectors = [
        {"a": torch.tensor([6.0, -1.0, 2.0]), "b": torch.tensor([[-5.0], [0.5]])},
        {"a": torch.tensor([2.0, 8.0, -0.1]), "b": torch.tensor([[3.0], [-4.0]])},
        {"a": torch.tensor([-7.0, 4.0, 1.0]), "b": torch.tensor([[-6.0], [2.0]])},
    ]
    # 3 of 5 kept: (6 . 2 | -5 .), (. 8 . | 3 -4), (-7 4 . | -6 .)
    # sums: -1, 12, 2 | -8, -4
    direction = ties_vector(vectors, density=0.6)
    assert direction.vector["a"].tolist() == [-7.0, 6.0, 2.0]
    assert direction.vector["b"].tolist() == [[-5.5], [-4.0]]
    merged = ties(pretrained, vectors, scale=0.5, density=0.6)
    assert merged["a"].tolist() == [-2.5, 4.0, 2.0]
    assert merged["b"].tolist() == [[-1.75], [-1.0]]


def test_no_sign_is_elected_where_the_sum_is_exactly_zero():
    vectors = [{"w": torch.tensor([2.0, 3.0, 0.0])}, {"w": torch.tensor([-2.0, 1.0, 0.0])}]
    assert ties_vector(vectors, 1.0).vector["w"].tolist() == [0.0, 2.0, 0.0]
    pretrained = {"w": torch.tensor([5.0, 5.0, 5.0])}
    assert ties(pretrained, vectors, 1.0, 1.0)["w"].tolist() == [5.0, 7.0, 5.0]


def test_zeros_are_not_counted_in_the_mean():
    vectors = [{"w": torch.tensor([x])} for x in (4.0, 0.0, 2.0, -1.0)]
    assert ties_vector(vectors, 1.0).vector["w"].item() == 3.0


@pytest.mark.parametrize("merge", ["mean", "sum"])
def test_weights_are_multiplied_in_before_signs_are_elected_and_zeros_leave_nothing(merge):
    rows = torch.tensor([[4.0, -1, 3, 2], [2, 5, -3, -6], [-8, 1, 0.5, 3]])
    vectors = [{name: row.clone() for name in "abc"} for row in rows]
    weights = {"a": [0.5, 2, 1], "b": [2, 0, 0], "c": [0, 0, 0]}
    merged = ties_vector(vectors, 1.0, merge, weights).vector
    for name, shares in weights.items():
        weighted = rows * torch.tensor(shares)[:, None]
        agrees = weighted * weighted.sum(0) > 0
        expected = (weighted * agrees).sum(0)
        if merge == "mean":
            expected /= (torch.tensor(shares)[:, None] * agrees).sum(0).clamp_min(1e-30)
        torch.testing.assert_close(merged[name], expected)


def test_the_whole_vector_is_trimmed_not_each_tensor():
    vector = {"large": torch.tensor([10.0, 9.0]), "small": torch.tensor([1.0, 2.0])}
    trimmed = ties_vector([vector], 0.5).vector
    assert trimmed["large"].tolist() == [10.0, 9.0]
    assert trimmed["small"].tolist() == [0.0, 0.0]


def test_all_entries_that_equal_the_smallest_one_kept_are_kept():
    vector = {"w": torch.tensor([1.0, -1.0, 1.0, 0.5])}
    assert ties_vector([vector], 0.25).vector["w"].tolist() == [1.0, -1.0, 1.0, 0.0]


def test_statistics_neither_count_for_the_density_nor_are_trimmed():
    vectors = [
        {"w": torch.tensor([1.0, 2.0]), "bn.running_var": torch.tensor([50.0, 70.0, 0.01])},
        {"w": torch.tensor([1.0, 3.0]), "bn.running_var": torch.tensor([-10.0, 0.0, 0.01])},
    ]
    direction = ties_vector(vectors, 0.5).vector
    assert direction["w"].tolist() == [0.0, 2.5]
    torch.testing.assert_close(direction["bn.running_var"], torch.tensor([20.0, 35.0, 0.01]))


def test_counters_and_booleans_are_the_pretrained_ones():
    pretrained = {"w": torch.zeros(1), "n": torch.tensor(3), "m": torch.tensor([True])}
    vectors = [{"w": torch.ones(1), "n": torch.tensor(5), "m": torch.tensor([False])}]
    merged = ties(pretrained, vectors, 1.0, 1.0)
    assert (merged["w"].item(), merged["n"].item(), merged["m"].item()) == (1.0, 3, True)


@given(
    st.integers(1, 5).flatmap(
        lambda size: st.lists(
            st.lists(st.integers(-4, 4).map(float), min_size=size, max_size=size),
            min_size=1,
            max_size=5,
        )
    ),
    st.sampled_from([0.01, 0.2, 0.25, 0.5, 0.75, 1.0]),
)
@settings(max_examples=120, deadline=None)
def test_against_the_definition(vectors, density):
    states = [{"w": torch.tensor(vector)} for vector in vectors]
    found = ties_vector(states, density).vector["w"]
    torch.testing.assert_close(found, torch.tensor(ties_by_definition(vectors, density)))


def test_against_the_definition_over_several_pieces_and_layouts():
    generator = torch.Generator().manual_seed(0)
    shapes = {"a": (3, 50_000), "b": (7,), "c": (4, 3, 5, 5), "d": (), "e": (0, 2)}
    states = [
        {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
        for _ in range(3)
    ]
    for state in states:
        state["c"] = state["c"].contiguous(memory_format=torch.channels_last)
        state["a"] = state["a"].T.contiguous().T
    direction = ties_vector(states, 0.2).vector
    flat = [torch.cat([value.flatten() for value in state.values()]).double() for state in states]
    trimmed = []
    for vector in flat:
        kept = vector.abs().topk(round(0.2 * len(vector))).indices
        trimmed.append(torch.zeros_like(vector).index_copy(0, kept, vector[kept]))
    stacked = torch.stack(trimmed)
    sign = stacked.sum(0).sign()
    agrees = (stacked.sign() == sign) & (sign != 0)
    expected = (stacked * agrees).sum(0) / agrees.sum(0).clamp(min=1)
    found = torch.cat([value.flatten() for value in direction.values()])
    torch.testing.assert_close(found, expected.float())
    assert {name: value.shape for name, value in direction.items()} == {
        name: value.shape for name, value in states[0].items()
    }


numbers = st.floats(-(2.0**100), 2.0**100, width=32) | st.sampled_from(
    [0.0, -0.0, 1e-40, -1e-40, 1.0]
)


@given(
    st.lists(st.lists(numbers, max_size=6), min_size=1, max_size=4),
    st.floats(0.001, 1),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
@settings(max_examples=150, deadline=None)
def test_selection_against_sorting(lists, density, dtype):
    tensors = [torch.tensor(values, dtype=dtype) for values in lists]
    found = smallest_kept_magnitude(lambda: tensors, density)
    everything = torch.cat(tensors).abs().double().sort(descending=True).values
    if len(everything) == 0:
        assert found == 0
    else:
        assert found == everything[max(1, round(density * len(everything))) - 1].item()


def test_selection_with_mixed_types():
    tensors = [torch.tensor([3.0, 1.0]), torch.tensor([2.0 + 1e-12, -2.0], dtype=torch.float64)]
    assert smallest_kept_magnitude(lambda: iter(tensors), 0.5) == 2.0 + 1e-12
    assert smallest_kept_magnitude(lambda: iter(tensors), 0.75) == 2.0


def test_what_is_refused():
    for density in (0.0, -0.1, 1.1):
        with pytest.raises(ConfigError, match="density"):
            ties_vector([{"w": torch.ones(1)}], density)
    with pytest.raises(ConfigError, match="at least one"):
        ties_vector([], 0.5)
    with pytest.raises(ArchitectureMismatchError, match="'b'"):
        ties_vector([{"a": torch.ones(1)}, {"b": torch.ones(1), "a": torch.ones(1)}], 0.5)
