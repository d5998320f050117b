"""Which body to use for several tasks, on planted answers of tasks of different sizes."""

import itertools

import numpy as np
import pytest

from lightning_merge.measure.answers import Answers
from lightning_merge.measure.intervals import bootstrap, interval_of, paired
from lightning_merge.measure.task_conditions import TaskMeasurement
from lightning_merge.report.task_recommendation import over_tasks, recommend_body

# Test examples and held-out examples of each task.
SIZES = {"large": (400, 100), "small": (20, 10), "new": (50, 50)}


def rows(method, right, held_out, seed=0, kind="merge", names=("large", "small")):
    """Rows of a method, with so many right on each task's test and held-out examples."""
    found = []
    for name, hits, held in zip(names, right, held_out, strict=True):
        tested, kept = SIZES[name]
        targets = np.arange(tested) % 2
        answers = np.where(np.arange(tested) < hits, targets, 1 - targets)
        found.append(
            TaskMeasurement(
                *(method, kind, seed, "clean", name, name != "new", tested),
                metrics={"accuracy": hits / tested},
                held_out=None if held is None else held / kept,
                held_out_examples=None if held is None else kept,
                majority=0.5,
                answers=Answers.of_classes(targets, answers),
            )
        )
    return found


def recommended(found, methods=()):
    return recommend_body(found, over_tasks(found, methods))


BASELINES = [
    *rows("Pre-trained", [200, 10], [50, 5], kind="baseline"),
    *rows("Individual", [380, 18], [95, 9], kind="baseline"),
]


def test_tasks_weigh_alike_and_test_data_choose_nothing():
    found = [
        *BASELINES,
        # More examples right, and a lower mean: (0.90 + 0.50) / 2 against (0.75 + 0.80) / 2.
        *rows("Sum", [390, 19], [90, 5]),
        *rows("TIES", [300, 15], [75, 8]),
        *rows("Pre-trained", [25], [None], kind="baseline", names=["new"]),
        *rows("Sum", [50], [None], names=["new"]),
        *rows("TIES", [20], [None], names=["new"]),
    ]
    costs = [{"method": one, "seed": 0, "parameters": 7} for one in ("Pre-trained", "Sum", "TIES")]
    costs.append({"method": "Individual", "seed": 0, "parameters": 14})
    advice = recommended(found, costs)
    assert advice.use.method == "TIES"
    assert advice.use.held_out == pytest.approx(0.775)
    assert advice.use.accuracy == pytest.approx(0.75)
    assert advice.gain == pytest.approx(0.275)
    assert advice.use.held_out_examples == 110
    assert advice.unseen == {"Pre-trained": 0.5, "Sum": 1.0, "TIES": 0.4}
    lead, test, *others = advice.lines
    assert lead == (
        "Use TIES: a mean accuracy of 0.775 over the 2 seen tasks, on 110 held-out examples, "
        "0.275 more than the pre-trained body (0.500)."
    )
    assert "On the 420 test examples: 0.750 [" in test
    assert "difference to Pre-trained +0.250" in test
    assert "The 2 tasks' own bodies, each on its own task, have 0.925 on the held-out" in others[0]
    assert "at 2 times the parameters" in others[0]
    assert others[1].startswith("No better than guessing")
    assert others[1].endswith(": Pre-trained.")
    assert others[2].endswith("on them: TIES 0.400, Pre-trained 0.500.")


def test_a_merge_that_loses_leaves_the_start():
    lead = recommended([*BASELINES, *rows("Sum", [400, 20], [40, 4])]).lines[0]
    assert lead.startswith("No merge is better than the pre-trained body: use Pre-trained, a mean")


def test_a_tie_is_one_example_of_the_smallest_task():
    best = rows("A", [300, 15], [80, 8])
    # One example of ten less is 0.05 of the mean; so are ten of a hundred.
    near, far = rows("B", [300, 15], [70, 8]), rows("C", [300, 15], [69, 8])
    advice = recommended([*BASELINES, *best, *near, *far])
    assert (advice.use.method, [one.method for one in advice.tied]) == ("A", ["B"])


def test_what_was_not_merged_with_every_seed_is_not_chosen():
    starts = [one for seed in (0, 1) for one in rows("Pre-trained", [200, 10], [50, 5], seed)]
    both = [one for seed in (0, 1) for one in rows("A", [300, 15], [70, 7], seed)]
    advice = recommended([*starts, *both, *rows("B", [390, 19], [99, 9])])
    assert (advice.use.method, advice.seeds) == ("A", 2)


def test_without_held_out_examples_of_every_task_nothing_is_recommended():
    found = [*rows("Pre-trained", [200, 10], [50, 5]), *rows("A", [300, 15], [90, 9])]
    found = [
        one if one.task == "large" else type(one)(**{**vars(one), "held_out": None})
        for one in found
    ]
    for one in found:
        object.__setattr__(one, "held_out_examples", 100 if one.task == "large" else 0)
    advice = recommended(found)
    assert advice.use is None
    assert "nothing was held out" in advice.text


def test_resamples_are_drawn_within_each_task():
    rng = np.random.default_rng(0)
    parts = [(rng.random(300) < 0.9).astype(float), (rng.random(40) < 0.4).astype(float)]
    means = np.mean([rng.choice(one, (4000, len(one))).mean(axis=1) for one in parts], axis=0)
    wanted = np.quantile(means, [0.025, 0.975])
    sizes = [len(one) for one in parts]
    found = bootstrap(np.concatenate(parts), sizes=sizes)
    assert found == pytest.approx(tuple(wanted), abs=0.01)
    # Of all examples together it is elsewhere: there are more of the first task.
    assert bootstrap(np.concatenate(parts))[0] > found[1]


def test_an_exchange_of_answers_is_enumerated():
    rng = np.random.default_rng(3)
    first, second = (rng.integers(0, 3, 12) / 2 for _ in range(2))
    sizes = (8, 4)
    difference = first - second

    def mean(values):
        return (values[:8].mean() + values[8:].mean()) / 2

    signs = itertools.product((1, -1), repeat=12)
    extreme = [abs(mean(difference * one)) >= abs(mean(difference)) - 1e-12 for one in signs]
    found = paired(first, second, sizes)
    assert found.difference == pytest.approx(mean(difference))
    assert found.p_value == pytest.approx(np.mean(extreme), abs=0.02)
    assert found.test == "paired permutation test over examples"


def test_without_answers_a_mean_over_tasks_has_the_width_of_its_variance():
    # At one half a mean over both varies by sqrt(1/4 * 1/4 * (1/400 + 1/100)): as of 320 examples.
    assert interval_of(None, 0.5, 400, 100) == interval_of(None, 0.5, 320)
