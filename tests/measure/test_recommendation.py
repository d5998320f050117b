"""What is recommended, on planted held-out and test answers."""

import json
from dataclasses import replace
from math import comb

import numpy as np
import pytest
from scipy.stats import bootstrap as scipy_bootstrap
from scipy.stats import norm, ttest_rel
from scipy.stats.contingency import crosstab

from lightning_merge.measure.answers import Answers
from lightning_merge.measure.intervals import bootstrap, interval_of, paired
from lightning_merge.measure.measurement import Measurement
from lightning_merge.measure.recommendation import recommend

HELD_OUT = 200
TARGETS = np.arange(100) % 2


def answers(right, targets=TARGETS):
    """Of which the first `right` are right."""
    wrong = np.arange(len(targets)) >= right
    return Answers.of_classes(targets, np.where(wrong, 1 - targets, targets))


def row(method, kind, held_out, right, seed=0, **changes):
    found = answers(right)
    accuracy = right / 100
    known = {
        "method": method,
        "kind": kind,
        "accuracy": accuracy,
        "seconds": 1.0,
        "parameters": 10,
        "seed": seed,
        "test_examples": 100,
        "train_examples": 0,
        "pool_size": None if kind == "ingredient" else 2,
        "held_out": held_out / HELD_OUT,
        "held_out_examples": HELD_OUT,
        "majority": 0.5,
        "answers": found,
    }
    return Measurement(**{**known, **changes})


def unscored(method, kind, right, examples=0):
    return replace(row(method, kind, 0, right), held_out=None, held_out_examples=examples)


def test_an_interval_is_that_of_scipys_bootstrap():
    rng = np.random.default_rng(1)
    for values in (rng.random(300) < 0.8, rng.integers(0, 5, 120) / 4, rng.random(60) < 0.5):
        values = values.astype(float)
        low, high = bootstrap(values)
        wanted = scipy_bootstrap(
            (values,),
            np.mean,
            method="percentile",
            n_resamples=20000,
            # scipy 1.15 calls it `rng`, and takes the older name, too.
            random_state=np.random.default_rng(0),
        ).confidence_interval
        # Quantiles lie on a grid of one example.
        assert (low, high) == pytest.approx(tuple(wanted), abs=1.5 / len(values))
        assert bootstrap(values) == (low, high)


def test_without_answers_an_interval_is_wilsons():
    p, n, z = 0.9, 50, norm.ppf(0.975)
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * (p * (1 - p) / n + z**2 / (4 * n**2)) ** 0.5
    found = interval_of(None, p, n)
    assert (found.low, found.high) == pytest.approx((centre - half, centre + half))
    assert found.how == "Wilson"
    sure = interval_of(np.ones(30), 1.0, 30)
    assert sure.how == "Wilson"
    assert sure.low == pytest.approx(1 / (1 + z**2 / 30))
    assert interval_of(None, float("nan"), 30) is None
    # Two tasks, each of which is all right or all wrong, have no spread either.
    assert interval_of(np.repeat([1.0, 0.0], [10, 5]), 0.5, 10, 5) == interval_of(None, 0.5, 10, 5)


def test_a_pair_is_tested_by_mcnemar_or_by_t():
    rng = np.random.default_rng(2)
    first, second = (rng.random(400) < share for share in (0.85, 0.75))
    found = paired(first.astype(float), second.astype(float))
    _, table = crosstab(first, second)
    better, worse = int(table[1, 0]), int(table[0, 1])
    # The binomial tail, summed directly.
    tail = sum(comb(better + worse, k) for k in range(min(better, worse) + 1))
    assert found.p_value == pytest.approx(min(1, 2 * tail / 2 ** (better + worse)))
    assert found.test == "exact McNemar test"
    assert found.difference == pytest.approx(first.mean() - second.mean())
    deviation = np.std(first.astype(float) - second) / 400**0.5
    assert found.low == pytest.approx(found.difference - 1.96 * deviation, abs=0.01)
    assert found.high == pytest.approx(found.difference + 1.96 * deviation, abs=0.01)
    shares = (first + 0.5 * second) / 1.5, second.astype(float)
    assert paired(*shares).p_value == pytest.approx(ttest_rel(*shares).pvalue)
    same = paired(shares[1], shares[1])
    assert (same.p_value, same.low, same.high) == (1.0, 0.0, 0.0)


@pytest.mark.parametrize(("count", "wanted"), [(1, 1.0), (10, 2 / 2**10)])
def test_differences_that_are_all_alike_have_signs_and_no_deviation(count, wanted):
    # Means over three seeds, whose differences are equal but for their last digits.
    first = np.resize([1 / 3, 2 / 3], count)
    found = paired(first, np.resize([2 / 3, 1.0], count))
    assert found.p_value == pytest.approx(wanted)
    assert found.test == "exact sign test over examples"
    assert found.difference == pytest.approx(-1 / 3)


def test_it_is_chosen_by_held_out_data_where_test_data_disagree():
    rows = [
        row("A", "ingredient", 160, 90),
        row("B", "ingredient", 170, 80),
        row("Mean", "merge", 175, 99),
        row("NP", "merge", 182, 85),
        row("All", "ensemble", 190, 95, flops=30, parameters=30),
    ]
    found = recommend(rows)
    assert (found.use.method, found.best_ingredient.method) == ("NP", "B")
    assert found.gain == pytest.approx(12 / 200)
    assert (found.difference, found.ensemble.method) == (pytest.approx(0.05), "All")
    # NP is right for five examples that B is wrong for, and never the other way round.
    assert found.p_value == pytest.approx(2 / 2**5)
    assert found.ensemble_cost == 3
    assert found.tied == ()
    assert [found.mark(one.method, one.pool_size) for one in rows] == ["", "", "", "best", ""]
    assert "Use NP: right for 0.910 of 200 held-out examples, 0.060 more" in found.text
    assert "100 test examples: 0.850 [" in found.text
    assert "at 3 times the cost" in found.text
    # Test figures describe, and change no choice.
    swapped = [row("B", "ingredient", 170, 99), row("NP", "merge", 182, 60)]
    assert recommend(swapped).use.method == "NP"
    assert "contradict the choice" in recommend(swapped).text
    assert json.loads(json.dumps(found.plain()))["use"]["method"] == "NP"


def test_with_several_seeds_the_rival_is_the_best_network_of_each():
    rows = [
        row("A", "ingredient", 180, 90, seed=0),
        row("B", "ingredient", 140, 70, seed=0),
        row("A", "ingredient", 120, 60, seed=1),
        row("B", "ingredient", 160, 80, seed=1),
    ]
    # Above each name's mean over seeds (150 and 150), and below the best of each (180 and 160).
    mean = [row("Mean", "merge", held_out, 77, seed=k) for k, held_out in enumerate((160, 166))]
    found = recommend([*rows, *mean])
    assert found.use.method == "each seed's best network"
    assert (found.use.held_out, found.use.accuracy) == pytest.approx((170 / 200, 85 / 100))
    assert found.text.startswith(
        "No merge is better than your best network: use each seed's best network, right for 0.850"
    )
    assert "The best merge, Mean, has 0.815." in found.text
    # Better than both bests: the difference is to the best of the same seed.
    np = [row("NP", "merge", 190, right, seed=k) for k, right in enumerate((92, 79))]
    found = recommend([*rows, *mean, *np])
    assert (found.use.method, found.gain) == ("NP", pytest.approx(20 / 200))
    assert (found.difference, found.better_in) == (pytest.approx((2 - 1) / 200), 1)
    assert "0.100 more than each seed's best network (0.850)" in found.text
    # One name that is the best in both seeds keeps its name.
    assert recommend([*rows[:3], replace(rows[3], held_out=0.5)]).use.method == "A"


def test_no_merge_better_than_the_best_network():
    rows = [row("A", "ingredient", 180, 90), row("B", "ingredient", 150, 80)]
    found = recommend([*rows, row("Mean", "merge", 120, 99)])
    assert found.use.method == "A"
    assert found.text.startswith("No merge is better than your best network: use A")
    assert found.difference is None


def test_within_one_example_is_a_tie():
    rows = [row("A", "ingredient", 180, 90), row("Mean", "merge", 181, 95)]
    found = recommend(rows)
    assert (found.use.method, [one.method for one in found.tied]) == ("A", ["Mean"])
    assert found.mark("Mean", 2) == "tied"
    more = [*rows, row("NP", "merge", 184, 91), row("NP again", "merge", 184, 92)]
    found = recommend([*more, row("x", "merge", 183, 92), row("y", "merge", 182, 92)])
    assert (found.use.method, [one.method for one in found.tied]) == ("NP", ["NP again", "x"])


def test_of_merges_with_as_many_right_over_all_seeds_the_first_is_used():
    # Each accuracy is rounded to float32, so equal sums have means that differ.
    hits = {"Mean": [159, 169, 156], "NP": [157, 170, 157]}
    rows = [row("A", "ingredient", 100, 90, seed=seed) for seed in range(3)]
    for name, of in hits.items():
        for seed, count in enumerate(of):
            scored = float(np.float32(count / HELD_OUT))
            rows.append(replace(row(name, "merge", 0, 90, seed=seed), held_out=scored))
    found = recommend(rows)
    assert found.tied[0].held_out > found.use.held_out
    assert (found.use.method, [one.method for one in found.tied]) == ("Mean", ["NP"])


def test_what_guesses_is_called_so():
    rows = [row("A", "ingredient", 180, 90), row("Mean", "merge", 100, 55)]
    found = recommend(rows)
    assert [one.method for one in found.guessing] == ["Mean"]
    assert "No better than guessing" in found.text
    assert "0.500 of the test examples): Mean." in found.text


def test_nothing_is_recommended_where_nothing_was_held_out():
    rows = [unscored("A", "ingredient", 90), unscored("Mean", "merge", 99)]
    found = recommend(rows)
    assert found.use is None
    assert "nothing was held out" in found.text
    assert "held_out: 0.1" in found.text
    assert not any(found.mark(one.method, one.pool_size) for one in rows)
    assert "no held-out scores" in recommend([unscored("A", "ingredient", 90, None)]).text
    others = [row("A", "ingredient", 160, 90), row("M", "merge", 150, 99, held_out_examples=50)]
    assert "different held-out examples" in recommend(others).text


def test_over_seeds_means_decide_and_pairs_are_compared():
    rows = [
        row("A", "ingredient", 180, 80, seed=0),
        row("A", "ingredient", 160, 80, seed=1),
        row("Mean", "merge", 170, 90, seed=0),
        row("Mean", "merge", 180, 76, seed=1),
    ]
    found = recommend(rows)
    assert (found.use.method, found.gain) == ("Mean", pytest.approx(5 / 200))
    assert (found.seeds, found.better_in) == (2, 1)
    assert found.difference == pytest.approx(0.03)
    mean = {
        method: np.mean([one.answers.right for one in rows if one.method == method], axis=0)
        for method in ("A", "Mean")
    }
    assert found.p_value == pytest.approx(ttest_rel(mean["Mean"], mean["A"]).pvalue)
    assert "better in 1 of 2 seeds" in found.text
    # Where a network's answers are unknown the difference stays, and is not tested.
    for unknown in rows:
        found = recommend([replace(one, answers=None) if one is unknown else one for one in rows])
        assert (found.difference, found.p_value) == (pytest.approx(0.03), None)
        assert "not tested" in found.text


def test_answers_are_stored_and_read_again():
    one = row("A", "ingredient", 180, 80)
    again = Measurement.of_row(json.loads(json.dumps(one.stored())))
    np.testing.assert_array_equal(again.answers.right, one.answers.right)
    assert again.answers.examples == one.answers.examples
    assert again.row() == one.row()
    assert "answers" not in one.row()
    labels = Answers(np.array([0.5, 1.0]), "some")
    read = Answers.of_plain(json.loads(json.dumps(labels.plain())))
    np.testing.assert_array_equal(read.right, labels.right)


def test_only_what_looked_at_held_out_data_is_called_flattered():
    rows = [row("A", "ingredient", 150, 70), row("B", "merge", 170, 80, chosen="pairs, drawn")]
    looked = replace(rows[1], chosen="scale 1, chosen", chose=True)
    assert "flattering" not in recommend(rows).text
    assert "B also chose or learned on these" in recommend([rows[0], looked]).text
    assert Measurement.of_row(looked.stored()).chose
    assert not Measurement.of_row(rows[1].stored()).chose
    # Before it was stored apart, whatever was chosen counted.
    assert Measurement.of_row(rows[1].row()).chose
    assert "chose" not in looked.row()


def test_a_metric_with_the_name_of_a_column_does_not_take_its_place():
    metrics = {"accuracy": 0.7, "seconds": 99.0, "answers": 3.0, "auroc": 0.8}
    one = row("A", "merge", 150, 70, metrics=metrics)
    stored = one.stored()
    assert (stored["seconds"], stored["test_seconds"], stored["auroc"]) == (1.0, 99.0, 0.8)
    again = Measurement.of_row(stored)
    assert again.seconds == 1.0
    assert again.metrics == {
        "accuracy": 0.7,
        "test_seconds": 99.0,
        "test_answers": 3.0,
        "auroc": 0.8,
    }
    np.testing.assert_array_equal(again.answers.right, one.answers.right)
