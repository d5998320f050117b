"""Spectral merges against their formulas, written out in float64 with full decompositions."""

from functools import partial

import pytest
import torch
from known_values import rotation, svd, with_values
from torch import nn

from lightning_merge.aggregate import (
    StateOnDisk,
    average,
    cart,
    iso_c,
    iso_cts,
    svc,
    task_arithmetic,
    task_vector,
    tsv_merge,
)
from lightning_merge.errors import ArchitectureMismatchError, ConfigError, NonFiniteError

SHAPES = [(12, 9), (9, 14), (10, 10), (11, 13)]
TASKS = 3


def tasks(shape, count=TASKS):
    return [torch.randn(shape, dtype=torch.float64) for _ in range(count)]


def tsv_by_formula(matrices):
    k = min(matrices[0].shape) // len(matrices)
    parts = [svd(matrix) for matrix in matrices]
    u = torch.cat([u[:, :k] for u, _, _ in parts], 1)
    s = torch.cat([s[:k] for _, s, _ in parts])
    v = torch.cat([vh[:k].T for _, _, vh in parts], 1)
    (pu, _, qu), (pv, _, qv) = svd(u), svd(v)
    return (pu @ qu) @ torch.diag(s) @ (pv @ qv).T


def iso_c_by_formula(matrices):
    u, s, vh = svd(sum(matrices))
    return s.mean() * u @ vh


def iso_cts_by_formula(matrices, common):
    rank, count = min(matrices[0].shape), len(matrices)
    # The nearest number of common directions that leaves each task as many.
    c = min(range(rank % count, rank + 1, count), key=lambda c: abs(c - int(rank * common)))
    own = (rank - c) // count
    u, s, vh = svd(sum(matrices))
    us, ss, vs = [u[:, :c]], [s[:c]], [vh[:c].T]
    for matrix in matrices:
        ut, st, vht = svd(matrix - u[:, :c] @ u[:, :c].T @ matrix)
        us.append(ut[:, :own])
        ss.append(st[:own])
        vs.append(vht[:own].T)
    (pu, _, qu), (pv, _, qv) = svd(torch.cat(us, 1)), svd(torch.cat(vs, 1))
    return torch.cat(ss).mean() * (pu @ qu) @ (pv @ qv).T


def cart_by_formula(weights, scale, rank):
    mean = sum(weights) / len(weights)
    k = max(1, round(rank * min(mean.shape)))
    total = mean.clone()
    for weight in weights:
        u, s, vh = svd(weight - mean)
        total += scale * u[:, :k] @ torch.diag(s[:k]) @ vh[:k]
    return total


def svc_by_formula(matrices, merged, alpha):
    u, s, vh = svd(merged)
    for r in range(len(s)):
        a = u[:, r] @ merged
        etas = []
        for matrix in matrices:
            a_t = u[:, r] @ matrix
            etas.append(max(float(a @ a_t / (a_t @ a_t)), alpha))
        s[r] /= sum(etas) / len(etas)
    return u @ torch.diag(s) @ vh


def merged_matrix(merge, matrices, **options):
    start = torch.randn_like(matrices[0])
    state = merge({"w": start}, [{"w": matrix} for matrix in matrices], **options)
    return state["w"] - start


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("merge", "formula"),
    [
        (tsv_merge, tsv_by_formula),
        (iso_c, iso_c_by_formula),
        (iso_cts, partial(iso_cts_by_formula, common=0.8)),
        *(
            (partial(iso_cts, common=common), partial(iso_cts_by_formula, common=common))
            for common in (0.3, 0.0)
        ),
    ],
)
def test_each_is_its_formula_in_any_order_of_the_tasks(shape, merge, formula):
    matrices = tasks(shape)
    expected = formula(matrices)
    torch.testing.assert_close(merged_matrix(merge, matrices), expected, rtol=1e-8, atol=1e-8)
    turned = merged_matrix(merge, matrices[::-1])
    torch.testing.assert_close(turned, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [0.08, 0.4, 1.0])
@pytest.mark.parametrize("single", [0, 1])
def test_cart_is_its_formula_in_any_order(shape, rank, single):
    weights = tasks(shape)
    # One network in float32 leaves the others their digits.
    rounded = [weight.float() for weight in weights[:single]] + weights[single:]
    expected = cart_by_formula([weight.double() for weight in rounded], 1.7, rank)
    states = [{"w": weight} for weight in rounded]
    for order in (states, states[::-1]):
        torch.testing.assert_close(cart(order, 1.7, rank)["w"], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("alpha", [0.1, 1.0])
def test_svc_is_its_formula_in_any_order(shape, alpha):
    matrices = tasks(shape)
    merged = sum(matrices) * 0.7
    expected = svc_by_formula(matrices, merged, alpha)
    zero = {"w": torch.zeros(shape, dtype=torch.float64)}
    for order in (matrices, matrices[::-1]):
        found = svc(zero, [{"w": one} for one in order], {"w": merged}, alpha)["w"]
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


def orthogonal_tasks(shape=(12, 9), values=(5.0, 3.0, 2.0)):
    """As many tasks as there fit, with the same singular values and no direction in common."""
    count = min(shape) // len(values)
    left, right = rotation(shape[0], min(shape)), rotation(shape[1], min(shape))
    size = len(values)
    return [
        with_values(shape, values, left[:, k : k + size], right[:, k : k + size])
        for k in range(0, count * size, size)
    ]


def test_orthogonal_tasks_are_each_kept():
    matrices = orthogonal_tasks()
    # TSV-M keeps all that they have: their sum.
    found = merged_matrix(tsv_merge, matrices)
    torch.testing.assert_close(found, sum(matrices), rtol=1e-9, atol=1e-9)
    # Iso-C gives each of their directions the same length, the mean one.
    for matrix in matrices:
        u, _, vh = svd(matrix)
        for merge in (iso_c, iso_cts):
            kept = u[:, :3].T @ merged_matrix(merge, matrices) @ vh[:3].T
            expected = torch.eye(3, dtype=torch.float64) * 10 / 3
            torch.testing.assert_close(kept, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", [(12, 9), (9, 14)])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_task_of_low_rank_pushes_nothing_aside(shape, rank):
    # What a task does not move (frozen layers, adapters of low rank) has no directions.
    one = torch.randn(shape, dtype=torch.float64)
    (u, s, vh), k = svd(one), min(shape) // 2
    kept = u[:, :k] @ torch.diag(s[:k]) @ vh[:k]
    # A second task beside the first one's directions, on both sides.
    other = rank * torch.outer(u[:, k], vh[k])
    torch.testing.assert_close(merged_matrix(tsv_merge, [one, other]), kept + other)


def test_equal_tasks_give_the_task():
    task = with_values((12, 9), [9.0 - k for k in range(9)])
    start = torch.randn(12, 9, dtype=torch.float64)
    tuned = {"w": start + task}
    torch.testing.assert_close(cart([tuned] * 4, 3.0)["w"], tuned["w"], rtol=1e-12, atol=1e-12)
    vectors = [{"w": task}] * 4
    merged = task_arithmetic({"w": start}, vectors, 0.8)
    found = svc({"w": start}, vectors, merged)
    torch.testing.assert_close(found["w"], tuned["w"], rtol=1e-9, atol=1e-9)
    # TSV-M has the share of the task for which there is room, once: 9 // 4 triples.
    u, s, vh = svd(task)
    expected = u[:, :2] @ torch.diag(s[:2]) @ vh[:2]
    found = merged_matrix(tsv_merge, [task] * 4)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_svc_takes_tasks_without_a_part_by_alpha_and_leaves_no_step_alone():
    # No two singular values are equal: the merge has directions of its own.
    matrices = [one * (1 + k / 10) for k, one in enumerate(orthogonal_tasks())]
    zero = {"w": torch.zeros(12, 9, dtype=torch.float64)}
    vectors = [{"w": one} for one in matrices]
    found = svc(zero, vectors, {"w": sum(matrices)}, 0.5)["w"]
    torch.testing.assert_close(found, sum(matrices) / ((1 + 0.5 + 0.5) / 3), rtol=1e-9, atol=1e-9)
    assert torch.equal(svc(zero, vectors, zero)["w"], zero["w"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "values",
    [[2.0, 2.0, 2.0], [1 + 1e-6, 1.0, 1 - 1e-6], [5.0, 1.0, 0.0], [7.0, 0.0, 0.0], [0.0] * 3],
)
def test_iso_c_of_known_singular_values(values, dtype):
    left, right = rotation(5, 3), rotation(3, 3)
    task = with_values((5, 3), values, left, right).to(dtype)
    there = torch.tensor([float(value > 0) for value in values], dtype=torch.float64)
    expected = sum(values) / 3 * left @ torch.diag(there) @ right.T
    found = iso_c({"w": torch.zeros(5, 3, dtype=dtype)}, [{"w": task / 4}, {"w": task * 3 / 4}])
    torch.testing.assert_close(found["w"], expected.to(dtype), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 6), (6, 1), (1, 1)])
@pytest.mark.parametrize("merge", [tsv_merge, iso_c, iso_cts])
def test_a_single_row_or_column_is_averaged(merge, shape):
    matrices = tasks(shape)
    torch.testing.assert_close(merged_matrix(merge, matrices), sum(matrices) / TASKS)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("count", [1, 3])
def test_layers_at_the_same_time_give_the_same(count):
    names = [f"layers.{k}.weight" for k in range(6)]
    vectors = [{name: torch.randn(30, 20) for name in names} for _ in range(2)]
    start = {name: torch.zeros(30, 20) for name in names}
    torch.set_num_threads(1)
    alone = {name: iso_c({name: start[name]}, [{name: v[name]} for v in vectors]) for name in names}
    torch.set_num_threads(count)
    merged = iso_c(start, vectors)
    assert list(merged) == names
    assert all(torch.equal(merged[name], alone[name][name]) for name in names)
    vectors[1][names[2]][3, 4] = torch.nan
    with pytest.raises(NonFiniteError, match=r"layers\.2\.weight"):
        iso_c(start, vectors)
    assert torch.get_num_threads() == count


def test_convolutions_are_matrices_and_the_rest_is_averaged():
    torch.manual_seed(3)
    start = {
        "conv.weight": torch.zeros(6, 2, 2, 2, dtype=torch.float64),
        "conv.bias": torch.zeros(6),
        "pos_embed": torch.zeros(1, 5, 4),
        "positional_embedding": torch.zeros(5, 4),
        "scores.running_mean": torch.zeros(3),
    }
    vectors = [
        {name: torch.randn(value.shape, dtype=value.dtype) for name, value in start.items()}
        for _ in range(2)
    ]
    for merge, formula in ((tsv_merge, tsv_by_formula), (iso_c, iso_c_by_formula)):
        merged = merge(start, vectors)
        expected = formula([vector["conv.weight"].reshape(6, 8) for vector in vectors])
        torch.testing.assert_close(merged["conv.weight"].reshape(6, 8), expected)
        for name in list(start)[1:]:
            torch.testing.assert_close(merged[name], (vectors[0][name] + vectors[1][name]) / 2)


def test_a_matrix_with_fewer_rows_than_tasks_is_averaged_by_tsv():
    matrices = tasks((2, 5), 3)
    torch.testing.assert_close(merged_matrix(tsv_merge, matrices), sum(matrices) / 3)


class Tied(nn.Module):
    """BatchNorm, a counter, a convolution, and one weight under two names."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5)
        self.one, self.other = nn.Linear(5, 5), nn.Linear(5, 5)
        self.other.weight = self.one.weight
        self.register_buffer("mask", torch.full((4, 4), -torch.inf).triu(1))


def networks(count=3, dtype=torch.float32):
    states = []
    for seed in range(count + 1):
        torch.manual_seed(seed)
        network = Tied()
        network.norm.running_var.uniform_(0.5, 2)
        network.norm.running_mean.normal_()
        network.norm.num_batches_tracked += seed
        state = network.state_dict()
        states.append({k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()})
    return states[0], states[1:]


MERGES = {
    "tsv": lambda start, tuned, vectors: tsv_merge(start, vectors),
    "iso_c": lambda start, tuned, vectors: iso_c(start, vectors),
    "iso_cts": lambda start, tuned, vectors: iso_cts(start, vectors),
    "cart": lambda start, tuned, vectors: cart(tuned),
    "svc": lambda start, tuned, vectors: svc(
        start, vectors, task_arithmetic(start, vectors, 1 / len(vectors))
    ),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("merge", MERGES)
def test_batchnorm_counters_tied_weights_and_masks(merge, dtype):
    start, tuned = networks(dtype=dtype)
    vectors = [task_vector(state, start) for state in tuned]
    merged = MERGES[merge](start, tuned, vectors)
    assert {k: v.dtype for k, v in merged.items()} == {k: v.dtype for k, v in start.items()}
    Tied().load_state_dict(merged)
    assert torch.equal(merged["one.weight"], merged["other.weight"])
    assert torch.equal(merged["mask"], start["mask"])
    first = tuned[0] if merge == "cart" else start
    assert merged["norm.num_batches_tracked"] == first["norm.num_batches_tracked"]
    mean = average(tuned)
    for name in ("norm.running_var", "norm.running_mean", "norm.weight", "conv.bias"):
        torch.testing.assert_close(merged[name], mean[name], rtol=2e-2, atol=2e-2)
    assert not torch.equal(merged["conv.weight"], mean["conv.weight"])


@pytest.mark.parametrize("merge", MERGES)
def test_files_are_read_as_state_dicts_are(merge, tmp_path):
    from safetensors.torch import save_file

    start, tuned = networks()
    vectors = [task_vector(state, start) for state in tuned]

    def on_disk(state, name):
        save_file({k: v.clone() for k, v in state.items()}, tmp_path / name)
        return StateOnDisk(tmp_path / name)

    expected = MERGES[merge](start, tuned, vectors)
    found = MERGES[merge](
        on_disk(start, "start.safetensors"),
        [on_disk(state, f"{k}.safetensors") for k, state in enumerate(tuned)],
        [on_disk(vector, f"v{k}.safetensors") for k, vector in enumerate(vectors)],
    )
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_what_cannot_be_is_refused():
    start, tuned = networks()
    vectors = [task_vector(state, start) for state in tuned]
    for merge in (tsv_merge, iso_c, iso_cts):
        with pytest.raises(ConfigError, match="no task vector"):
            merge(start, [])
        with pytest.raises(ArchitectureMismatchError, match=r"one\.bias"):
            merge(start, [vectors[0], {k: v for k, v in vectors[1].items() if k != "one.bias"}])
    with pytest.raises(ConfigError, match=r"common 1\.5"):
        iso_cts(start, vectors, common=1.5)
    with pytest.raises(ConfigError, match="rank 0"):
        cart(tuned, rank=0)
    with pytest.raises(ConfigError, match="no state"):
        cart([])
    with pytest.raises(ConfigError, match="alpha 0"):
        svc(start, vectors, start, alpha=0)


@pytest.mark.parametrize("shape", [(6, 9), (9, 6)])
def test_what_a_task_does_not_move_pushes_no_other_task_aside(shape):
    start = {"w": torch.zeros(shape, dtype=torch.float64)}
    moved = {"w": torch.randn(shape, dtype=torch.float64)}
    values = torch.linalg.svdvals(iso_cts(start, [moved, start])["w"])
    # Five of six directions are used, all as much.
    torch.testing.assert_close(values[:5], values[0].expand(5))
    assert float(values[5]) < 1e-9


@pytest.mark.parametrize("shape", [(6, 9), (9, 6)])
def test_tasks_of_rank_one_may_come_in_any_order(shape):
    start = {"w": torch.zeros(shape, dtype=torch.float64)}
    moved = [{"w": with_values(shape, [3.0])} for _ in range(3)]
    found, other = (iso_cts(start, some)["w"] for some in (moved, moved[::-1]))
    torch.testing.assert_close(found, other)
