import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_merge.data import examples_per_class, hold_out, split_indices
from lightning_merge.errors import ConfigError, DataError, MergeError

seeds = st.integers(0, 2**31)
few_parts = st.integers(1, 5)
partitions = st.sampled_from(["random", "80-20", "dirichlet", "classes"])


@st.composite
def labels_and_indices(draw):
    """Odd and tiny classes, labels with gaps, and any subset of the examples in any order."""
    sizes = draw(st.lists(st.integers(0, 23), min_size=1, max_size=7).filter(any))
    labels = np.repeat(np.arange(len(sizes)), sizes)
    labels = np.array(draw(st.permutations(labels.tolist())))
    kept = draw(st.lists(st.integers(0, len(labels) - 1), unique=True, min_size=1))
    return labels, np.array(kept)


def assert_partition(pieces, whole):
    together = np.concatenate(pieces)
    assert len(together) == len(whole)
    assert set(together.tolist()) == set(whole.tolist())


def same(one, other):
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@given(labels_and_indices(), partitions, few_parts, seeds)
@settings(max_examples=150, deadline=None)
def test_parts_are_disjoint_and_cover_exactly(data, scheme, parts, seed):
    labels, indices = data
    parts = 2 if scheme == "80-20" else parts
    pieces = split_indices(labels, indices, scheme, parts, seed)
    assert len(pieces) == parts
    assert_partition(pieces, indices)
    assert all(np.all(np.diff(piece) > 0) for piece in pieces)


@given(labels_and_indices(), partitions, seeds)
@settings(max_examples=50, deadline=None)
def test_same_seed_same_parts_in_whatever_order_the_indices_come(data, scheme, seed):
    labels, indices = data
    first = split_indices(labels, indices, scheme, 2, seed)
    assert same(first, split_indices(labels, indices[::-1], scheme, 2, seed))


@pytest.mark.parametrize("scheme", ["random", "80-20", "dirichlet"])
@given(st.lists(seeds, min_size=2, max_size=2, unique=True))
@settings(max_examples=20, deadline=None)
def test_different_seeds_differ(scheme, pair):
    labels = np.arange(300) % 6
    one, other = (split_indices(labels, np.arange(300), scheme, 2, seed) for seed in pair)
    assert not same(one, other)


@given(labels_and_indices(), few_parts, seeds)
@settings(max_examples=30, deadline=None)
def test_all_gives_everything_to_every_part(data, parts, seed):
    labels, indices = data
    pieces = split_indices(labels, indices, "all", parts, seed)
    assert same(pieces, [np.sort(indices)] * parts)


@given(labels_and_indices(), seeds)
@settings(max_examples=80, deadline=None)
def test_80_20_proportions_in_every_class(data, seed):
    labels, indices = data
    first, second = split_indices(labels, indices, "80-20", 2, seed)
    classes = sorted(set(labels.tolist()))
    for position, label in enumerate(classes):
        in_first_half = position < len(classes) / 2
        larger, smaller = (first, second) if in_first_half else (second, first)
        total = np.sum(labels[indices] == label)
        assert abs(np.sum(labels[larger] == label) - 0.8 * total) <= 0.5
        assert abs(np.sum(labels[smaller] == label) - 0.2 * total) <= 0.5


def test_80_20_on_even_classes_is_the_papers():
    labels = np.repeat(np.arange(10), 50)
    first, second = split_indices(labels, np.arange(500), "80-20", 2, 3)
    assert np.bincount(labels[first]).tolist() == [40] * 5 + [10] * 5
    assert np.bincount(labels[second]).tolist() == [10] * 5 + [40] * 5


def test_dirichlet_shares_have_the_distributions_mean_and_spread():
    # Dirichlet(1/2, 1/2) is the arcsine law: mean 1/2, variance 1/8, half its mass outside
    # [0.146, 0.854]. Each class draws for itself.
    labels = np.repeat(np.arange(400), 200)
    first, _ = split_indices(labels, np.arange(len(labels)), "dirichlet", 2, 0)
    shares = np.bincount(labels[first], minlength=400) / 200
    assert abs(shares.mean() - 0.5) < 0.06
    assert abs(shares.var() - 0.125) < 0.02
    assert 0.4 < np.mean((shares < 0.146) | (shares > 0.854)) < 0.6


def test_parts_by_class_have_classes_of_their_own():
    labels = np.random.default_rng(0).integers(0, 7, 400)
    first, second, third = split_indices(labels, np.arange(400), "classes", 3, 5)
    assert [set(labels[part]) for part in (first, second, third)] == [{0, 1, 2}, {3, 4}, {5, 6}]


def test_dirichlet_over_three_parts_favours_none():
    labels = np.repeat(np.arange(300), 60)
    pieces = split_indices(labels, np.arange(len(labels)), "dirichlet", 3, 1)
    assert all(abs(len(piece) / len(labels) - 1 / 3) < 0.05 for piece in pieces)


@given(labels_and_indices(), few_parts, seeds)
@settings(max_examples=30, deadline=None)
def test_random_parts_are_of_equal_size(data, parts, seed):
    labels, indices = data
    sizes = [len(piece) for piece in split_indices(labels, indices, "random", parts, seed)]
    assert max(sizes) - min(sizes) <= 1


@given(labels_and_indices(), st.floats(0, 0.99), seeds)
@settings(max_examples=80, deadline=None)
def test_hold_out_takes_its_fraction_of_each_class_but_never_all(data, fraction, seed):
    labels, indices = data
    rest, held = hold_out(labels, indices, fraction, seed)
    assert_partition([rest, held], indices)
    assert same([rest, held], hold_out(labels, indices[::-1], fraction, seed))
    for label in np.unique(labels[indices]):
        total = np.sum(labels[indices] == label)
        share = np.sum(labels[held] == label)
        assert share < total
        assert abs(share - fraction * total) <= 0.5 or share == total - 1


@given(labels_and_indices(), partitions, st.floats(0.05, 0.6), seeds)
@settings(max_examples=50, deadline=None)
def test_held_out_examples_are_in_no_part(data, scheme, fraction, seed):
    labels, indices = data
    rest, held = hold_out(labels, indices, fraction, seed)
    assert_partition([*split_indices(labels, rest, scheme, 2, seed), held], indices)


def test_different_seeds_hold_out_different_examples():
    labels = np.arange(200) % 4
    helds = [hold_out(labels, np.arange(200), 0.2, seed)[1] for seed in (0, 1)]
    assert not same(helds[:1], helds[1:])


@given(labels_and_indices(), st.integers(1, 12), st.integers(1, 12), seeds)
@settings(max_examples=80, deadline=None)
def test_examples_per_class_are_so_many_and_nested(data, one, other, seed):
    labels, indices = data
    few, many = (examples_per_class(labels, indices, count, seed) for count in sorted((one, other)))
    assert set(few.tolist()) <= set(many.tolist()) <= set(indices.tolist())
    for label in np.unique(labels[indices]):
        available = np.sum(labels[indices] == label)
        assert np.sum(labels[few] == label) == min(min(one, other), available)
        assert np.sum(labels[many] == label) == min(max(one, other), available)


def test_examples_per_class_are_seeded():
    labels = np.arange(200) % 4
    draws = [examples_per_class(labels, np.arange(200), 5, seed) for seed in (7, 7, 8)]
    assert np.array_equal(draws[0], draws[1])
    assert not np.array_equal(draws[0], draws[2])


def test_a_class_is_split_alike_whatever_the_others_hold():
    labels = np.repeat([0, 1, 2], 40)
    for scheme in ("80-20", "dirichlet"):
        whole = split_indices(labels, np.arange(120), scheme, 2, 5)
        without_last = split_indices(labels, np.arange(80), scheme, 2, 5)
        assert same([part[part < 80] for part in whole], without_last)


@pytest.mark.parametrize("scheme", ["80-20", "dirichlet"])
def test_multilabel_refuses_what_goes_by_class(scheme):
    labels = np.ones((8, 3), dtype=np.int64)
    with pytest.raises(DataError, match=f"{scheme}.*'all' or 'random'"):
        split_indices(labels, np.arange(8), scheme, 2, 0)


def test_multilabel_is_split_and_held_out_at_random():
    labels = np.ones((40, 3), dtype=np.int64)
    rest, held = hold_out(labels, np.arange(40), 0.25, 0)
    assert len(held) == 10
    assert_partition([*split_indices(labels, rest, "random", 3, 0), held], np.arange(40))
    with pytest.raises(DataError, match="examples_per_class"):
        examples_per_class(labels, np.arange(40), 1)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda labels, all_: split_indices(labels, all_, "60-40"), "60-40.*80-20"),
        (lambda labels, all_: split_indices(labels, all_, "80-20", parts=3), "exactly 2 parts"),
        (lambda labels, all_: split_indices(labels, all_, "all", parts=0), "parts is 0"),
        (lambda labels, all_: split_indices(labels, all_, "all", seed=-1), "split_seed is -1"),
        (lambda labels, all_: hold_out(labels, all_, 1.0), "held_out is 1.0"),
        (lambda labels, all_: hold_out(labels, all_, -0.1), "held_out is -0.1"),
        (lambda labels, all_: examples_per_class(labels, all_, 0), "examples_per_class is 0"),
    ],
)
def test_errors_are_one_line_that_names_the_remedy(call, words):
    with pytest.raises(ConfigError, match=words) as error:
        call(np.arange(10) % 2, np.arange(10))
    assert isinstance(error.value, MergeError)
    assert "\n" not in str(error.value)


def test_nothing_splits_into_empty_parts():
    nothing = np.empty(0, dtype=np.int64)
    for scheme in ("all", "random", "80-20", "dirichlet", "classes"):
        assert [len(piece) for piece in split_indices(nothing, nothing, scheme)] == [0, 0]
