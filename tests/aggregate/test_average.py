import pytest
import torch

from lightning_merge.aggregate import average, interpolate
from lightning_merge.errors import ArchitectureMismatchError, ConfigError


def states():
    return [
        {
            "w": torch.tensor([1.0, 2.0]),
            "half": torch.tensor([1.0], dtype=torch.bfloat16),
            "n": torch.tensor(7),
            "mask": torch.tensor([True, False]),
        },
        {
            "w": torch.tensor([3.0, -2.0]),
            "half": torch.tensor([2.0], dtype=torch.bfloat16),
            "n": torch.tensor(90),
            "mask": torch.tensor([False, False]),
        },
    ]


def test_the_mean_by_hand_and_counters_of_the_first():
    merged = average(states())
    assert merged["w"].tolist() == [2.0, 0.0]
    assert merged["half"].item() == 1.5
    assert merged["half"].dtype == torch.bfloat16
    assert merged["n"].item() == 7
    assert merged["n"].dtype == torch.long
    assert merged["mask"].tolist() == [True, False]


def test_weights_are_divided_by_their_sum():
    assert average(states(), [3, 1])["w"].tolist() == [1.5, 1.0]
    assert average(states(), [6, 2])["w"].tolist() == [1.5, 1.0]


def test_interpolation_at_its_ends_and_between():
    a, b = states()
    assert torch.equal(interpolate(a, b, 1.0)["w"], a["w"])
    assert torch.equal(interpolate(a, b, 0.0)["w"], b["w"])
    assert torch.allclose(interpolate(a, b, 0.25)["w"], 0.25 * a["w"] + 0.75 * b["w"])


def test_the_ingredients_are_not_changed_and_share_no_memory_with_the_result():
    given = states()
    before = [{key: value.clone() for key, value in state.items()} for state in given]
    merged = average(given[:1])
    merged["w"].zero_()
    merged["n"].zero_()
    for state, old in zip(given, before, strict=True):
        assert all(torch.equal(state[key], old[key]) for key in state)


def test_many_float32_states_are_summed_without_loss():
    # In float32 the running sum of these would lose the small part.
    given = [{"w": torch.tensor([1e8])}] + [{"w": torch.tensor([1.0])}] * 999
    assert average(given)["w"].item() == pytest.approx((1e8 + 999) / 1000, rel=1e-7)


@pytest.mark.parametrize(
    "weights",
    [[1.0], [1.0, -1.0], [float("nan"), 1.0], [1e308, 1e308], ["a", "b"], [None, 1.0], 3.0],
)
def test_weights_that_do_not_fit_are_refused(weights):
    with pytest.raises(ConfigError, match="weights"):
        average(states(), weights)


def test_no_state_is_refused():
    with pytest.raises(ConfigError, match="at least one"):
        average([])


def test_offsets_of_another_quantisation_are_refused():
    states = [
        {"fq.scale": torch.tensor([0.1]), "fq.zero_point": torch.tensor([offset])}
        for offset in (3, 7)
    ]
    with pytest.raises(ArchitectureMismatchError, match="of another quantisation"):
        average(states)
    assert average([states[0]] * 2)["fq.zero_point"].tolist() == [3]
