"""SLERP, Karcher means, Breadcrumbs, DELLA and SCE against their definitions."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_merge.aggregate import (
    average,
    breadcrumbs,
    della,
    karcher_mean,
    sce_vector,
    slerp,
    task_vector,
)
from lightning_merge.errors import ArchitectureMismatchError, ConfigError, NonFiniteError


def state(*numbers):
    return {"w": torch.tensor(numbers, dtype=torch.float64)}


@settings(max_examples=20, deadline=None)
@given(st.floats(0.01, 3.1), st.floats(0, 1), st.floats(0.1, 5), st.floats(0.1, 5))
def test_slerp_turns_by_a_share_of_the_angle(angle, t, first, second):
    a = state(first, 0)
    b = state(second * math.cos(angle), second * math.sin(angle))
    weight_a, weight_b = math.sin((1 - t) * angle), math.sin(t * angle)
    expected = (weight_a * a["w"] + weight_b * b["w"]) / math.sin(angle)
    torch.testing.assert_close(slerp(a, b, t)["w"], expected, rtol=1e-7, atol=1e-9)
    unit = slerp(state(1, 0), state(math.cos(angle), math.sin(angle)), t)["w"]
    torch.testing.assert_close(
        unit, torch.tensor([math.cos(t * angle), math.sin(t * angle)]).double(), rtol=0, atol=1e-7
    )


@pytest.mark.parametrize(
    ("a", "b"), [((1.0, 2.0), (2.0, 4.0)), ((1.0, 0.0), (-3.0, 0.0)), ((0.0, 0.0), (1.0, 2.0))]
)
def test_without_an_angle_slerp_is_the_line(a, b):
    expected = 0.75 * state(*a)["w"] + 0.25 * state(*b)["w"]
    torch.testing.assert_close(slerp(state(*a), state(*b), 0.25)["w"], expected)


def squared_angles(point, units, weights):
    cosines = (units @ point / point.norm()).clamp(-1, 1)
    return float((weights * cosines.arccos().square()).sum())


def test_the_karcher_mean_is_where_squared_angles_are_least():
    units = torch.randn(4, 5, dtype=torch.float64) + 1
    lengths = units.norm(dim=1)
    weights = torch.tensor([0.1, 0.4, 0.3, 0.2], dtype=torch.float64)
    mean = karcher_mean([{"w": one} for one in units], weights.tolist())["w"]
    torch.testing.assert_close(mean.norm(), weights @ lengths)
    units = units / lengths[:, None]
    least = squared_angles(mean, units, weights)
    for _ in range(50):
        nearby = mean + 1e-3 * torch.randn(5, dtype=torch.float64)
        assert squared_angles(nearby, units, weights) > least
    turned = karcher_mean([{"w": one} for one in (units * lengths[:, None]).flip(0)])["w"]
    torch.testing.assert_close(
        turned, karcher_mean([{"w": one} for one in units * lengths[:, None]])["w"]
    )


def test_the_karcher_mean_of_two_is_slerp_and_of_one_is_itself():
    a, b = state(3, 0, 4), state(0, 5, 0)
    torch.testing.assert_close(karcher_mean([a, b], [3, 1]), slerp(a, b, 0.25))
    torch.testing.assert_close(karcher_mean([a]), a)


def test_zeros_have_no_direction_but_count_for_the_length():
    a, b, zeros = state(1, 2, -3), state(4, 0, 1), state(0, 0, 0)
    two = karcher_mean([a, b])["w"]
    torch.testing.assert_close(karcher_mean([a, zeros, b])["w"], two * 2 / 3)
    torch.testing.assert_close(karcher_mean([zeros, b], [3, 1])["w"], b["w"] / 4)


def test_opposite_directions_have_the_plain_mean():
    assert karcher_mean([state(1, 1), state(-3, -3)])["w"].tolist() == [-1, -1]


def made(seed):
    torch.manual_seed(seed)
    shared = torch.randn(3, 2)
    return {
        "one.weight": shared,
        "other.weight": shared,
        "norm.weight": torch.randn(3, dtype=torch.bfloat16),
        "norm.running_var": torch.rand(3),
        "norm.num_batches_tracked": torch.tensor(seed + 7),
        "mask": torch.full((2, 2), -torch.inf).triu(1),
        "scale": torch.randn(()),
    }


@pytest.mark.parametrize("merge", [lambda s: slerp(s[0], s[1], 0.5), karcher_mean])
def test_batchnorm_counters_tied_weights_and_masks_between_networks(merge):
    states = [made(0), made(1)]
    merged, mean = merge(states), average(states)
    assert {k: v.dtype for k, v in merged.items()} == {k: v.dtype for k, v in mean.items()}
    assert torch.equal(merged["one.weight"], merged["other.weight"])
    for name in ("norm.running_var", "norm.num_batches_tracked", "mask", "scale"):
        assert torch.equal(merged[name], mean[name])
    assert not torch.allclose(merged["one.weight"], mean["one.weight"])


def breadcrumbs_by_definition(values, density, outliers):
    order = sorted(range(len(values)), key=lambda i: -abs(values[i]))
    first = round(outliers * len(values))
    kept = order[first : first + max(1, round(density * len(values)))]
    return [value if i in kept else 0.0 for i, value in enumerate(values)]


def test_breadcrumbs_cut_both_tails_of_each_tensor():
    values = torch.randn(5, 8)
    vector = {"w": values, "b": torch.tensor([1.0, -2.0]), "n.running_mean": torch.randn(9)}
    (found,) = breadcrumbs([vector], 0.3, 0.1)
    expected = breadcrumbs_by_definition(values.flatten().tolist(), 0.3, 0.1)
    assert found["w"].flatten().tolist() == expected
    assert int(found["w"].count_nonzero()) == 12
    assert not found["w"][found["w"] == 0].signbit().any()
    assert torch.equal(found["n.running_mean"], vector["n.running_mean"])
    assert torch.equal(breadcrumbs([vector], 1.0, 0.0)[0]["w"], values)


def test_della_drops_by_rank_and_keeps_every_expectation():
    row = torch.tensor([8.0, -1.0, 4.0, 2.0], dtype=torch.float64)
    vector = {"w": row.repeat(20_000, 1), "n.running_var": torch.rand(3)}
    (found,) = della([vector], 0.6, 0.4, torch.Generator().manual_seed(1))
    # Ranks 0, 3, 1, 2 of n = 4: 0.6 - 0.2 + 0.4 r / 4
    chance = torch.tensor([0.4, 0.7, 0.5, 0.6], dtype=torch.float64)
    dropped = (found["w"] == 0).double().mean(dim=0)
    torch.testing.assert_close(dropped, chance, rtol=0, atol=0.015)
    for column in range(4):
        kept = found["w"][:, column]
        expected = row[column] / (1 - chance[column])
        torch.testing.assert_close(kept[kept != 0], expected.expand(int((kept != 0).sum())))
    assert torch.equal(found["n.running_var"], vector["n.running_var"])
    again = della([vector], 0.6, 0.4, torch.Generator().manual_seed(1))
    assert torch.equal(again[0]["w"], found["w"])
    assert torch.equal(della([vector], 0.0, 0.0)[0]["w"], vector["w"])


def sce_by_definition(vectors, density):
    """One number at a time; vectors are lists of numbers."""
    columns = list(zip(*vectors, strict=True))
    if density < 1:
        means = [sum(column) / len(column) for column in columns]
        variance = [
            sum((x - mean) ** 2 for x in column)
            for column, mean in zip(columns, means, strict=True)
        ]
        count = int(density * sum(one > 0 for one in variance))
        chosen = sorted(range(len(columns)), key=lambda i: -variance[i])[:count]
        columns = [c if i in chosen else (0,) * len(c) for i, c in enumerate(columns)]
    energy = [sum(column[k] ** 2 for column in columns) for k in range(len(vectors))]
    merged = []
    for column in columns:
        agree = [(x, e) for x, e in zip(column, energy, strict=True) if x * sum(column) > 0]
        whole = sum(e for _, e in agree)
        merged.append(sum(x * e for x, e in agree) / whole if agree else 0.0)
    return merged


@pytest.mark.parametrize("density", [1.0, 0.5, 0.1])
def test_sce_is_its_definition_in_any_order(density):
    values = torch.randn(3, 12, dtype=torch.float64)
    expected = torch.tensor(sce_by_definition(values.tolist(), density), dtype=torch.float64)
    for order in (values, values.flip(0)):
        found = sce_vector([{"w": one} for one in order], density).vector["w"]
        torch.testing.assert_close(found, expected)


def test_sparse_vectors_leave_batchnorm_counters_and_ties_alone():
    states = [made(seed) for seed in range(3)]
    vectors = [task_vector(one, states[0]) for one in states[1:]]
    thinned = [breadcrumbs(vectors, 0.5)[0], sce_vector(vectors).at(states[0], 1.0)]
    for one in thinned:
        assert torch.equal(one["one.weight"], one["other.weight"])
    merged = thinned[1]
    assert {k: v.dtype for k, v in merged.items()} == {k: v.dtype for k, v in states[0].items()}
    assert torch.equal(merged["norm.num_batches_tracked"], states[0]["norm.num_batches_tracked"])
    mean = average(states[1:])
    torch.testing.assert_close(merged["norm.running_var"], mean["norm.running_var"])


def test_what_is_no_share_is_refused():
    vectors = [state(1, 2)]
    for wrong in (
        lambda: slerp(state(1), state(2), 1.5),
        lambda: karcher_mean([]),
        lambda: karcher_mean([state(1, 2)], [1, 2]),
        lambda: karcher_mean([state(1, 2), state(2, 1)], [-1, 2]),
        lambda: breadcrumbs(vectors, 0.9, 0.2),
        lambda: della(vectors, 0.99, 0.1),
        lambda: sce_vector(vectors, 0),
    ):
        with pytest.raises(ConfigError, match=r"choose|give"):
            wrong()
    with pytest.raises(ArchitectureMismatchError, match="'w'"):
        slerp(state(1, 2), state(1, 2, 3), 0.5)
    with pytest.raises(NonFiniteError):
        karcher_mean([state(1, 2), state(1, math.nan)])
