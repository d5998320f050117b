import itertools
import math

import pytest
import torch
from torch import nn

from lightning_merge.aggregate import average, greedy_soup, greedy_soup_by_counts
from lightning_merge.aggregate.greedy_search import hardest_first
from lightning_merge.errors import ConfigError, NonFiniteError


def numbers(*values):
    return [{"w": torch.tensor([float(value)])} for value in values]


def closeness_to(target):
    return lambda state: -abs(state["w"].item() - target)


def greedy_by_definition(states, evaluate):
    """Wortsman et al.'s Recipe 1 with strict improvement, averaging anew each time."""
    order = sorted(range(len(states)), key=lambda i: evaluate(states[i]), reverse=True)
    kept = [order[0]]
    for index in order[1:]:
        before = evaluate(average([states[i] for i in kept]))
        if evaluate(average([states[i] for i in [*kept, index]])) > before:
            kept.append(index)
    return kept, average([states[i] for i in kept])


def test_by_hand():
    soup, trace = greedy_soup(numbers(0, 3, 9, 1.5), closeness_to(2))
    # 1.5 is nearest; with 3 the mean is 2.25, nearer; with 0 it is 1.5, not; with 9 it is 4.5.
    assert [trial.candidate for trial in trace] == [3, 1, 0, 2]
    assert [trial.kept for trial in trace] == [True, True, False, False]
    assert [trial.metric for trial in trace] == [-0.5, -0.25, -0.5, -2.5]
    assert [trial.alone for trial in trace] == [-0.5, -1, -2, -7]
    assert soup["w"].item() == 2.25


def test_an_equal_candidate_is_not_kept_and_the_earlier_of_equals_is_first():
    soup, trace = greedy_soup(numbers(1, 1, 1), closeness_to(0))
    assert [trial.candidate for trial in trace] == [0, 1, 2]
    assert [trial.kept for trial in trace] == [True, False, False]
    assert soup["w"].item() == 1


def test_each_ingredient_is_evaluated_once_and_the_best_is_not_evaluated_again():
    calls = []

    def evaluate(state):
        calls.append(state["w"].item())
        return -abs(calls[-1] - 2)

    greedy_soup(numbers(0, 3, 9), evaluate)
    assert calls == [0, 3, 9, 1.5, 4]
    calls.clear()
    greedy_soup(numbers(0, 3, 9), evaluate, metrics=[-2, -1, -7])
    assert calls == [1.5, 4]


def test_states_are_read_when_needed():
    reads = []

    def reader(index):
        def read():
            reads.append(index)
            return numbers(0, 3, 9)[index]

        return read

    soup, _ = greedy_soup([reader(i) for i in range(3)], closeness_to(2))
    assert soup["w"].item() == 1.5
    assert reads == [0, 1, 2, 1, 0, 2]


@pytest.mark.parametrize("seed", range(20))
def test_running_sum_gives_the_average_of_those_kept(seed):
    generator = torch.Generator().manual_seed(seed)
    states = [{"w": torch.randn(40, generator=generator)} for _ in range(7)]
    target = torch.randn(40, generator=generator)

    def evaluate(state):
        return -float((state["w"] - target).norm())

    soup, trace = greedy_soup(states, evaluate)
    kept, expected = greedy_by_definition(states, evaluate)
    assert [trial.candidate for trial in trace if trial.kept] == kept
    torch.testing.assert_close(soup, expected, rtol=1e-6, atol=1e-7)


def count_in_batches(data, labels, batch_size, evaluated=None):
    def count(state):
        for start in range(0, len(data), batch_size):
            part = slice(start, start + batch_size)
            predicted = (data[part] @ state["w"].T).argmax(dim=1)
            if evaluated is not None:
                evaluated.append(len(predicted))
            yield int((predicted == labels[part]).sum()), len(predicted)

    return count


def test_pruned_search_gives_the_plain_result_on_200_random_cases_with_less_work():
    generator = torch.Generator().manual_seed(0)
    saved, all_examples = 0, 0
    for case in range(200):
        models, batch_size = 2 + case % 7, 1 + case % 9
        data = torch.randn(60, 5, generator=generator)
        truth = torch.randn(3, 5, generator=generator)
        labels = (data @ truth.T).argmax(dim=1)
        spread = (0.3, 1.0, 3.0)[case % 3]
        states = [
            {"w": truth + spread * torch.randn(3, 5, generator=generator)} for _ in range(models)
        ]
        count = count_in_batches(data, labels, batch_size)

        def accuracy(state, count=count):
            return sum(correct for correct, _ in count(state)) / 60

        plain, plain_trace = greedy_soup(states, accuracy)
        pruned, trace = greedy_soup_by_counts(states, count, total=60)
        assert [(t.candidate, t.kept, t.alone) for t in trace] == [
            (t.candidate, t.kept, t.alone) for t in plain_trace
        ]
        assert torch.equal(pruned["w"], plain["w"])
        for ours, theirs in zip(trace, plain_trace, strict=True):
            assert ours.metric in (None, theirs.metric)
            assert (ours.metric is None) == (ours.examples not in (0, 60))
        saved += sum(60 - trial.examples for trial in trace[1:])
        all_examples += 60 * (models - 1)
    assert saved > 0.2 * all_examples


def test_hard_examples_first_give_the_same_soup_with_less_work():
    generator = torch.Generator().manual_seed(1)
    as_they_come, hard_first = 0, 0
    for case in range(200):
        data = torch.randn(60, 5, generator=generator)
        truth = torch.randn(3, 5, generator=generator)
        labels = (data @ truth.T).argmax(dim=1)
        states = [
            {"w": truth + torch.randn(3, 5, generator=generator)} for _ in range(2 + case % 7)
        ]
        hits = torch.stack([(data @ state["w"].T).argmax(dim=1) == labels for state in states])
        order = hardest_first(hits)
        assert sorted(order.tolist()) == list(range(60))
        assert hits.sum(0)[order].diff().ge(0).all()
        results = [
            greedy_soup_by_counts(states, count_in_batches(data[i], labels[i], 5), total=60)
            for i in (torch.arange(60), order)
        ]
        (soup, trace), (other_soup, other_trace) = results
        assert torch.equal(soup["w"], other_soup["w"])
        assert [(t.candidate, t.kept) for t in trace] == [
            (t.candidate, t.kept) for t in other_trace
        ]
        as_they_come += sum(trial.examples for trial in trace)
        hard_first += sum(trial.examples for trial in other_trace)
    assert hard_first < 0.8 * as_they_come


def test_a_candidate_is_dropped_at_the_first_batch_that_settles_it():
    right = {1.0: [2, 2, 2, 2], 3.0: [2, 2, 2, 0], 2.0: [2, 0, 2, 2]}

    def count(state):
        for correct in right[state["w"].item()]:
            yield correct, 2

    # With all 8 right, one mistake settles it: after the second batch of the mean of 1 and 3.
    soup, trace = greedy_soup_by_counts(numbers(1, 3), count, total=8)
    assert soup["w"].item() == 1
    assert (trace[1].metric, trace[1].examples, trace[1].kept) == (None, 2, False)
    _, trace = greedy_soup_by_counts(numbers(1, 3), count, total=8, correct=[5, 4])
    assert (trace[1].metric, trace[1].examples, trace[1].kept) == (6 / 8, 8, True)
    _, trace = greedy_soup_by_counts(numbers(1, 3), count, total=8, correct=[6, 4])
    assert (trace[1].metric, trace[1].examples, trace[1].kept) == (None, 4, False)


def test_batchnorm_counters_and_types():
    def network(seed):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        for _ in range(seed + 1):
            model(torch.randn(8, 3, 5, 5))
        return model.state_dict()

    states = [{**network(seed), "mask": torch.tensor([seed == 1])} for seed in range(3)]
    before = [{k: v.clone() for k, v in state.items()} for state in states]
    rising = itertools.count(4)
    soup, trace = greedy_soup(states, lambda _: next(rising), [2, 3, 1])
    assert [trial.candidate for trial in trace] == [1, 0, 2]
    assert all(trial.kept for trial in trace)
    torch.testing.assert_close(soup, average([states[1], states[0], states[2]]))
    assert soup["1.num_batches_tracked"].item() == 2
    assert soup["mask"].item() is True
    assert all(torch.equal(a[k], b[k]) for a, b in zip(states, before, strict=True) for k in a)
    nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).load_state_dict(
        {k: v for k, v in soup.items() if k != "mask"}
    )


def test_the_soup_shares_no_memory_with_its_ingredients():
    states = numbers(1, 5)
    soup, _ = greedy_soup(states, closeness_to(1))
    soup["w"].add_(1)
    assert states[0]["w"].item() == 1


@pytest.mark.parametrize("narrow", [torch.float16, torch.float8_e4m3fn])
def test_what_is_evaluated_is_what_the_soup_would_be(narrow):
    # The mean is beyond the range of the first one's type, and not of the second's.
    states = [{"w": torch.tensor([2.0]).to(narrow)}, {"w": torch.tensor([1e6 + 0.5])}]
    seen = []

    def evaluate(state):
        seen.append((state["w"].dtype, state["w"].item()))
        return seen[-1][1]

    soup, trace = greedy_soup(states, evaluate, [3, 2])
    assert all(trial.kept for trial in trace)
    assert seen == [(torch.float32, 500001.25)]
    assert torch.equal(soup["w"], average(states)["w"])


def test_nan_is_never_better():
    soup, trace = greedy_soup(numbers(1, 2), lambda _: math.nan, metrics=[math.nan, 0.5])
    assert soup["w"].item() == 2
    assert [trial.candidate for trial in trace] == [1, 0]
    assert not trace[1].kept


@pytest.mark.parametrize("rows", list(itertools.product([0.0, -math.inf, math.inf], repeat=3)))
def test_infinities_are_kept_or_refused_as_in_an_average(rows):
    states = [{"w": torch.tensor([row, float(k)])} for k, row in enumerate(rows)]
    try:
        expected = average(states)["w"]
    except NonFiniteError:
        with pytest.raises(NonFiniteError, match="'w' holds NaN or infinity"):
            greedy_soup(states, lambda state: state["w"][1].item(), [-1, -2, -3])
    else:
        soup, _ = greedy_soup(states, lambda state: state["w"][1].item(), [-1, -2, -3])
        assert torch.equal(soup["w"], expected)


def test_what_is_refused():
    with pytest.raises(ConfigError, match="at least one"):
        greedy_soup([], closeness_to(0))
    with pytest.raises(ConfigError, match="1 metrics for 2 states"):
        greedy_soup(numbers(1, 2), closeness_to(0), metrics=[1])
    with pytest.raises(ConfigError, match="NaN"):
        greedy_soup(numbers(1), lambda _: math.nan)
    with pytest.raises(ConfigError, match="3 examples, not the 4"):
        greedy_soup_by_counts(numbers(1), lambda _: [(1, 3)], total=4)
