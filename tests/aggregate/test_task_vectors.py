import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from lightning_merge.aggregate import (
    LazyTaskVector,
    MergedVector,
    SafetensorsState,
    average,
    dare,
    model_stock,
    sum_vectors,
    task_arithmetic,
    task_vector,
    ties,
    ties_vector,
)
from lightning_merge.errors import (
    ArchitectureMismatchError,
    CheckpointError,
    ConfigError,
    NonFiniteError,
)


def network(seed, steps=3):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(27, 4))
    model.register_buffer("mask", torch.tensor([True, seed % 2 == 0]))
    for _ in range(steps):
        model(10 * torch.rand(()) * torch.randn(6, 2, 5, 5) + torch.randn(()))
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_vector_and_back():
    pretrained, finetuned = network(0, 1), network(1, 5)
    vector = task_vector(finetuned, pretrained)
    assert "mask" not in vector
    assert "1.num_batches_tracked" not in vector
    restored = task_arithmetic(pretrained, [vector], 1.0)
    for name, value in restored.items():
        if value.is_floating_point():
            torch.testing.assert_close(value, finetuned[name])
        else:
            assert torch.equal(value, pretrained[name])
    unmoved = task_arithmetic(pretrained, [vector], 0.0)
    assert all(torch.equal(unmoved[name], pretrained[name]) for name in pretrained)


def test_arithmetic_by_hand():
    pretrained = {"w": torch.tensor([1.0, 2.0]), "n": torch.tensor(7)}
    vectors = [{"w": torch.tensor([1.0, -4.0])}, {"w": torch.tensor([2.0, 1.0])}]
    merged = task_arithmetic(pretrained, vectors, 0.5)
    assert merged["w"].tolist() == [2.5, 0.5]
    assert merged["n"].item() == 7
    negated = task_arithmetic(pretrained, vectors[:1], -1.0)
    assert negated["w"].tolist() == [0.0, 6.0]


def test_scale_one_over_k_is_the_average():
    pretrained, states = network(0), [network(seed) for seed in (1, 2, 3)]
    vectors = [task_vector(state, pretrained) for state in states]
    merged = task_arithmetic(pretrained, vectors, 1 / 3)
    expected = average(states)
    for name, value in merged.items():
        if value.is_floating_point():
            torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)


def test_all_scales_from_one_direction():
    pretrained = network(0)
    vectors = [task_vector(network(seed), pretrained) for seed in (1, 2)]
    direction = sum_vectors(vectors)
    for scale in (-0.5, 0.0, 0.3, 0.5, 1.0):
        torch.testing.assert_close(
            direction.at(pretrained, scale), task_arithmetic(pretrained, vectors, scale)
        )


MERGES = {
    "task arithmetic": lambda p, v, s: task_arithmetic(p, v, s),
    "TIES": lambda p, v, s: ties(p, v, s, 0.3),
    "DARE": lambda p, v, s: task_arithmetic(p, dare(v, 0.5), s),
    "DARE TIES": lambda p, v, s: ties(p, dare(v, 0.5), s, 1.0),
}


@pytest.mark.parametrize("scale", [-1.0, 0.0, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("merge", MERGES)
def test_statistics_lie_between_and_a_merged_network_computes(merge, scale):
    pretrained, states = network(0), [network(seed, 2) for seed in range(1, 6)]
    # A unit that died in fine-tuning: arithmetic would take its variance far below zero.
    for state in states:
        state["1.running_var"][0] = 0.0
    vectors = [task_vector(state, pretrained) for state in states]
    merged = MERGES[merge](pretrained, vectors, scale)
    mean = average(states)
    for name in ("1.running_mean", "1.running_var"):
        low, high = (
            torch.minimum(pretrained[name], mean[name]),
            pretrained[name].maximum(mean[name]),
        )
        assert bool((merged[name] >= low - 1e-5).all())
        assert bool((merged[name] <= high + 1e-5).all())
    assert bool((merged["1.running_var"] >= 0).all())
    assert torch.equal(merged["1.num_batches_tracked"], pretrained["1.num_batches_tracked"])
    assert torch.equal(merged["mask"], pretrained["mask"])
    assert {n: v.dtype for n, v in merged.items()} == {n: v.dtype for n, v in pretrained.items()}
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(27, 4))
    model.register_buffer("mask", torch.zeros(2, dtype=torch.bool))
    model.load_state_dict(merged)
    assert bool(torch.isfinite(model.eval()(torch.randn(2, 2, 5, 5))).all())


@given(
    st.lists(st.floats(0, 100), min_size=1, max_size=5),
    st.floats(0, 100),
    st.floats(-3, 3),
)
@settings(max_examples=100, deadline=None)
def test_no_variance_is_ever_negative(variances, start, scale):
    pretrained = {"running_var": torch.tensor([start])}
    vectors = [task_vector({"running_var": torch.tensor([v])}, pretrained) for v in variances]
    for merged in (task_arithmetic(pretrained, vectors, scale), ties(pretrained, vectors, scale)):
        assert merged["running_var"].item() >= 0


@pytest.mark.parametrize("kind", ["running", "moving"])
@pytest.mark.parametrize("last", ["var", "variance"])
def test_statistics_are_known_by_the_names_that_reset_knows(kind, last):
    mean, variance = f"norm.{kind}_mean", f"norm.{kind}_{last}"
    start = {"w": torch.zeros(2), mean: torch.tensor([80.0]), variance: torch.tensor([90.0])}
    tuned = {"w": torch.ones(2), mean: torch.tensor([50.0]), variance: torch.tensor([10.0])}
    vectors = [task_vector(tuned, start)]
    for merged in (task_arithmetic(start, vectors, 2.0), ties(start, vectors, 2.0, 0.5)):
        assert {name: value.tolist() for name, value in merged.items()} == {
            "w": [2, 2],
            mean: [50],
            variance: [10],
        }
    with pytest.raises(NonFiniteError, match=f"'{variance}' is a variance"):
        average([tuned, start], [2, -1])


def test_a_variance_is_not_below_zero_where_its_step_was_rounded():
    start, step = torch.tensor([0.1], dtype=torch.float64), torch.tensor([-0.1])
    assert start + step < 0
    merged = MergedVector({"running_var": step}).at({"running_var": start}, 2.0)
    assert merged["running_var"].item() == 0


def test_weights_scale_parameters_and_are_shares_of_statistics():
    vectors = [{"w": torch.tensor([x]), "running_mean": torch.tensor([x])} for x in (3.0, 6.0)]
    found = sum_vectors(vectors, [1, -2]).vector
    assert found == {"w": torch.tensor([-9.0]), "running_mean": torch.tensor([(3 + 12) / 3])}
    found = sum_vectors(vectors, {"running": [0, 0], "w": [0.5, 0]}).vector
    assert found == {"w": torch.tensor([1.5]), "running_mean": torch.tensor([0.0])}


def test_sums_of_half_precision_are_beyond_its_range_in_the_network_only():
    vectors = [{"w": torch.tensor([40_000.0], dtype=torch.float16)}] * 2
    direction = sum_vectors(vectors)
    assert direction.vector["w"].dtype == torch.float32
    assert direction.vector["w"].item() == 80_000
    assert direction.at(vectors[0], -1.0)["w"].item() == -40_000
    with pytest.raises(NonFiniteError, match="beyond the range"):
        direction.at(vectors[0], 1.0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_types(dtype):
    pretrained = {"w": torch.tensor([1.0, 2.0], dtype=dtype)}
    vectors = [task_vector({"w": torch.tensor([1.5, 1.0], dtype=dtype)}, pretrained)] * 2
    assert vectors[0]["w"].dtype == torch.promote_types(dtype, torch.float32)
    merged = task_arithmetic(pretrained, vectors, 0.5)
    assert merged["w"].dtype == dtype
    assert merged["w"].tolist() == [1.5, 1.0]
    assert ties(pretrained, vectors, 1.0, 0.5)["w"].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_a_whole_step_leads_to_the_fine_tuned_network_however_few_bits_it_has(dtype):
    # Ends near 0 lie between numbers that a step of the start's size and type can be.
    generator = torch.Generator().manual_seed(4)
    start = {"w": torch.randn(4000, generator=generator).to(dtype)}
    end = {"w": (torch.randn(4000, generator=generator) * 0.1).to(dtype)}
    lossy = (end["w"].float() - start["w"].float()).to(dtype).float() + start["w"].float()
    # A few of the smallest numbers of float16 are below the last bit of a step in float32.
    near = {"rtol": 0.002, "atol": 2e-7}
    assert not torch.allclose(lossy.to(dtype).float(), end["w"].float(), **near)
    vector = task_vector(end, start)
    for merged in (task_arithmetic(start, [vector], 1.0), ties(start, [vector] * 3, 1.0, 1.0)):
        torch.testing.assert_close(merged["w"].float(), end["w"].float(), **near)
        assert merged["w"].dtype == dtype


def test_a_body_is_merged_and_the_head_stays():
    pretrained = {"body": torch.ones(2), "head": torch.ones(3)}
    merged = task_arithmetic(pretrained, [{"body": torch.ones(2)}], 1.0)
    assert merged["body"].tolist() == [2, 2]
    assert merged["head"].tolist() == [1, 1, 1]
    merged["head"].zero_()
    assert pretrained["head"].tolist() == [1, 1, 1]


class OneAtATime(dict):
    """Counts how often each tensor is asked for."""

    def __init__(self, state):
        super().__init__(state)
        self.reads = dict.fromkeys(state, 0)

    def __getitem__(self, name):
        self.reads[name] += 1
        return super().__getitem__(name)


def test_lazy_vectors_from_disk_give_the_same(tmp_path):
    pretrained, states = network(0), [network(seed) for seed in (1, 2, 3)]
    for index, state in enumerate([pretrained, *states]):
        save_file(state, tmp_path / f"{index}.safetensors")
    base = SafetensorsState(tmp_path / "0.safetensors")
    lazy = [
        LazyTaskVector(SafetensorsState(tmp_path / f"{index}.safetensors"), base)
        for index in (1, 2, 3)
    ]
    eager = [task_vector(state, pretrained) for state in states]
    for merge in (MERGES["task arithmetic"], MERGES["TIES"]):
        expected, found = merge(pretrained, eager, 0.4), merge(base, lazy, 0.4)
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert len(lazy[0]) == len(eager[0])
    with pytest.raises(KeyError):
        lazy[0]["absent"]


def test_each_tensor_of_a_vector_is_read_four_times_by_ties_and_once_by_arithmetic():
    vectors = [OneAtATime({"a": torch.randn(5), "b": torch.randn(7)}) for _ in range(3)]
    sum_vectors(vectors)
    assert all(vector.reads == {"a": 1, "b": 1} for vector in vectors)
    vectors = [OneAtATime(vector) for vector in vectors]
    ties_vector(vectors, 0.5)
    assert all(vector.reads == {"a": 4, "b": 4} for vector in vectors)


def test_what_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="at least one"):
        sum_vectors([])
    with pytest.raises(ArchitectureMismatchError, match="'b'"):
        sum_vectors([{"a": torch.ones(1)}, {"a": torch.ones(1), "b": torch.ones(1)}])
    with pytest.raises(ArchitectureMismatchError, match="'b'"):
        task_vector({"a": torch.ones(1)}, {"a": torch.ones(1), "b": torch.ones(1)})
    with pytest.raises(ArchitectureMismatchError, match=r"\(2,\).*\(1,\)"):
        task_vector({"a": torch.ones(2)}, {"a": torch.ones(1)})
    with pytest.raises(ArchitectureMismatchError, match="'a'"):
        MergedVector({"a": torch.ones(1)}).at({"b": torch.ones(1)}, 1.0)
    with pytest.raises(ArchitectureMismatchError, match="'a' is complex in the task vectors"):
        MergedVector({"a": torch.ones(1) * 1j}).at({"a": torch.ones(1)}, 1.0)
    with pytest.raises(CheckpointError, match=r"absent\.safetensors"):
        SafetensorsState(tmp_path / "absent.safetensors")


def test_dare_keeps_the_expected_value_and_drops_the_share():
    generator = torch.Generator().manual_seed(0)
    vector = {"w": torch.full((100_000,), 2.0), "running_var": torch.tensor([3.0])}
    (dropped,) = dare([vector], 0.9, generator)
    assert dropped["w"].unique().tolist() == [0.0, pytest.approx(20.0)]
    # Five standard deviations of the binomial
    assert abs((dropped["w"] == 0).double().mean().item() - 0.9) < 5 * (0.09 / 100_000) ** 0.5
    assert dropped["running_var"].item() == 3
    assert vector["w"][0] == 2


def test_dare_by_seed():
    vectors = [{"w": torch.randn(50)}, {"w": torch.randn(50)}]

    def run(seed):
        return dare(vectors, 0.5, torch.Generator().manual_seed(seed))

    one, again, other = run(0), run(0), run(1)
    assert torch.equal(one[1]["w"], again[1]["w"])
    assert not torch.equal(one[1]["w"], other[1]["w"])
    assert not torch.equal(one[0]["w"] == 0, one[1]["w"] == 0)
    assert torch.equal(dare(vectors, 0.0)[0]["w"], vectors[0]["w"])
    for drop in (-0.1, 1.0):
        with pytest.raises(ConfigError, match="DARE"):
            dare(vectors, drop)


def test_model_stock_by_hand():
    pretrained = {"w": torch.zeros(2), "v": torch.zeros(2), "still": torch.ones(2)}
    states = [
        {"w": torch.tensor([1.0, 0.0]), "v": torch.tensor([1.0, 0.0]), "still": torch.ones(2)},
        {"w": torch.tensor([1.0, 1.0]), "v": torch.tensor([-1.0, 0.1]), "still": torch.ones(2)},
    ]
    merged = model_stock(pretrained, states)
    cosine = 2**-0.5
    ratio = 2 * cosine / (1 + cosine)
    torch.testing.assert_close(merged["w"], ratio * torch.tensor([1.0, 0.5]))
    assert merged["v"].tolist() == [0, 0]  # they point apart
    assert merged["still"].tolist() == [1, 1]


def test_model_stock_of_many_against_all_pairs():
    generator = torch.Generator().manual_seed(3)
    start = torch.randn(4, 5, generator=generator)
    common = torch.randn(4, 5, generator=generator)
    ends = [start + common + torch.randn(4, 5, generator=generator) for _ in range(4)]
    steps = [(end - start).flatten() for end in ends]
    cosines = [
        torch.cosine_similarity(steps[i], steps[j], dim=0) for i in range(4) for j in range(i)
    ]
    cosine = sum(cosines) / 6
    ratio = 4 * cosine / (1 + 3 * cosine)
    merged = model_stock({"w": start}, [{"w": end} for end in ends])
    torch.testing.assert_close(merged["w"], start.lerp(sum(ends) / 4, ratio))


@pytest.mark.parametrize(
    ("first", "second", "ratio"),
    [
        ((0, 0, 0, 0, 0), (0, 0, 0, 0, 0), 1),
        ((0, 0, 0, 1, 0), (0, 0, 0, 0, 0), 0),
        ((0, 0, 0, 1, 2), (0, 0, 0, -1, -2), 0),
        ((1, 1, 1, 0, 0), (1, 1, 1, 0, 0), 1),
        ((1, 1, 1, 1, 0), (1, 1, 1, 0, 2), 3 / 5),
        ((1, 1, 1, 1, 2), (1, 1, 1, -1, -2), 3 / 5),
        ((4, 0, 0, 1, 0), (0, 3, 0, 1, 1), 2 / 5 * 2 * 2**-0.5 / (1 + 2**-0.5)),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_statistics_of_model_stock_go_as_far_as_the_parameters_that_moved(
    first, second, ratio, dtype
):
    start, mean = torch.tensor([1.0, 2, 3, 4, 5]), torch.tensor([8.0, 0.25])
    states = [
        {"a": end[:3].to(dtype), "bn.running_mean": statistics.to(dtype), "b": end[3:].to(dtype)}
        for end, statistics in (
            (start, mean),
            (start + torch.tensor(first), mean + 2),
            (start + torch.tensor(second), mean - 5),
        )
    ]
    merged = model_stock(states[0], states[1:])["bn.running_mean"]
    assert torch.equal(merged, (mean.double() - 1.5 * ratio).to(dtype))


def test_model_stock_of_equal_networks_is_that_network_and_batchnorm_works():
    pretrained, finetuned = network(0), network(1)
    merged = model_stock(pretrained, [finetuned, finetuned])
    for name, value in merged.items():
        expected = finetuned if value.is_floating_point() else pretrained
        torch.testing.assert_close(value, expected[name])
    merged = model_stock(pretrained, [finetuned, network(2)])
    assert bool((merged["1.running_var"] > 0).all())
    assert list(merged) == list(pretrained)
    with pytest.raises(ConfigError, match="two"):
        model_stock(pretrained, [finetuned])
