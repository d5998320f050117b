"""Which network to use: chosen on held-out data, then described by the test data."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

from lightning_merge.measure.answers import mean_right
from lightning_merge.measure.intervals import Interval, Paired, interval_of, paired
from lightning_merge.measure.measurement import Measurement
from lightning_merge.measure.whole_means import ROUNDING, whole_mean

EACH_SEEDS_BEST = "each seed's best network"

_NOTHING_HELD_OUT = (
    "No recommendation: nothing was held out of the training data, and a choice by test accuracy "
    "would flatter what it chooses. Give the data module `held_out: 0.1` (or, if it is your own, a "
    "`val_dataloader` of examples that no network was trained on)."
)


@dataclass(frozen=True)
class Standing:
    """How one method stands, over all its seeds.

    Attributes:
        method: The recipe's or the ingredient's name.
        kind: `ingredient`, `merge` or `ensemble`.
        pool_size: How many ingredients it was made of; None for an ingredient.
        held_out: The mean over seeds of the accuracy on held-out examples; None if not known.
        held_out_examples: How many held-out examples there are.
        held_out_step: How much one of them changes the accuracy.
        accuracy: The mean over seeds of the accuracy on test examples.
        accuracy_low: The lower end of its 95% interval over test examples.
        accuracy_high: The upper end.
        test_examples: How many test examples there are.
        cost: Operations of a prediction (parameters where these are not known).
        chose: Whether making it chose or learned on the same held-out examples.
    """

    method: str
    kind: str
    pool_size: int | None
    held_out: float | None
    held_out_examples: int
    held_out_step: float
    accuracy: float | None
    accuracy_low: float | None
    accuracy_high: float | None
    test_examples: int
    cost: int
    chose: bool


@dataclass(frozen=True)
class Recommendation:
    """What a comparison says: which single network to use, chosen on held-out data alone.

    What is particular to a kind of results are the words that its methods of this class make.

    Attributes:
        use: The network to use: the best merge where it has more than one held-out example more
            right than the best ingredient, else that ingredient; None if there is no choice.
        best_ingredient: The ingredient with the best held-out accuracy; `each seed's best network`
            where seeds differ in which that is.
        best_merge: The merge with the best held-out accuracy.
        gain: The held-out accuracy of `use` minus that of `best_ingredient`.
        tied: Other single networks within one held-out example of `use`.
        seeds: Over how many seeds all figures are means.
        better_in: In how many of them `use` is better on the test set than `best_ingredient`.
        difference: The test accuracy of `use` minus that of `best_ingredient`.
        difference_low: The lower end of its 95% interval (paired bootstrap over test examples);
            None where it is not known which examples are right.
        difference_high: The upper end.
        p_value: Of no difference.
        test: The test that gives it.
        ensemble: The ensemble with the best held-out accuracy, if any.
        ensemble_cost: How many times the operations of `use` it needs.
        majority: The test accuracy of always giving the most frequent class.
        guessing: The methods whose test accuracy is not above that, by their 95% intervals.
        multiple_pools: Whether methods were run on several numbers of ingredients.
        reason: Why nothing is recommended; empty if something is.
    """

    use: Standing | None = None
    best_ingredient: Standing | None = None
    best_merge: Standing | None = None
    gain: float | None = None
    tied: tuple[Standing, ...] = ()
    seeds: int = 1
    better_in: int | None = None
    difference: float | None = None
    difference_low: float | None = None
    difference_high: float | None = None
    p_value: float | None = None
    test: str = ""
    ensemble: Standing | None = None
    ensemble_cost: float | None = None
    majority: float | None = None
    guessing: tuple[Standing, ...] = ()
    multiple_pools: bool = False
    reason: str = ""

    @property
    def lines(self) -> list[str]:
        """The recommendation in words, a sentence or two each."""
        lines = [self.reason] if self.use is None else self._of_use(self.use)
        if self.guessing and self.majority is not None:
            names = ", ".join(self.name(one) for one in self.guessing)
            lines.append(f"No better than guessing ({self._guess(self.majority)}): {names}.")
        return lines

    @property
    def text(self) -> str:
        """The lines, one below the other."""
        return "\n".join(self.lines)

    def plain(self) -> dict[str, Any]:
        """The recommendation as in JSON, with its `text`."""
        return {**asdict(self), "text": self.text}

    def mark(self, method: str, pool_size: int | None) -> str:
        """What a row of a table is: `best`, `tied` with it, or neither (empty)."""
        if self.use is not None and (self.use.method, self.use.pool_size) == (method, pool_size):
            return "best"
        tied = any((one.method, one.pool_size) == (method, pool_size) for one in self.tied)
        return "tied" if tied else ""

    def name(self, standing: Standing) -> str:
        """What to call a method: with its number of ingredients where there are several."""
        of = f" of {standing.pool_size}" if self.multiple_pools and standing.pool_size else ""
        return standing.method + of

    def _of_use(self, use: Standing) -> list[str]:
        best = self.best_ingredient
        assert best is not None
        assert use.held_out is not None
        over = f" (means over {self.seeds} seeds)" if self.seeds > 1 else ""
        lines = []
        if use is best:
            none = (
                "There is no merge to compare"
                if self.best_merge is None
                else f"No merge is better than {self._yours()}"
            )
            lines.append(f"{none}: use {self.name(use)}, {self._score(use)}{over}.")
            if self.best_merge is not None and self.best_merge not in self.tied:
                lines[0] += (
                    f" The best merge, {self.name(self.best_merge)}, has "
                    f"{self.best_merge.held_out:.3f}."
                )
        else:
            lines.append(
                f"Use {self.name(use)}: {self._score(use)}, {self.gain:.3f} "
                f"more than {self._rival(best)}{over}."
            )
        if self.tied:
            names = ", ".join(self.name(one) for one in self.tied)
            lines.append(f"Tied with it, within one held-out example: {names}.")
        lines.append(self._on_test(use, best))
        if use.chose:
            lines.append(
                f"{self.name(use)} also chose or learned on these held-out examples, so its "
                "held-out figure is somewhat flattering; the test figures are not."
            )
        ensemble = self.ensemble
        if ensemble is not None and ensemble.accuracy is not None and self.ensemble_cost:
            lines.append(
                f"{self._several(ensemble)} {ensemble.held_out:.3f} on the held-out and "
                f"{_with_interval(ensemble)} on the test examples, at "
                f"{self._price(self.ensemble_cost)}."
            )
        return lines

    def _yours(self) -> str:
        return "your best network"

    def _rival(self, best: Standing) -> str:
        if best.method == EACH_SEEDS_BEST:
            return f"{EACH_SEEDS_BEST} ({best.held_out:.3f})"
        return f"the best single network ({self.name(best)}, {best.held_out:.3f})"

    def _score(self, use: Standing) -> str:
        return f"right for {use.held_out:.3f} of {use.held_out_examples:,} held-out examples"

    def _guess(self, majority: float) -> str:
        share = f"{majority:.3f} of the test examples"
        return f"always giving the most frequent class is right for {share}"

    def _several(self, ensemble: Standing) -> str:
        return f"The ensemble {self.name(ensemble)} has"

    def _price(self, times: float) -> str:
        return f"{times:.3g} times the cost of a prediction"

    def _on_test(self, use: Standing, best: Standing) -> str:
        line = f"On the {use.test_examples:,} test examples: {_with_interval(use)}"
        if use is best or self.difference is None:
            return f"{line} (95% interval)."
        line += f", difference to {self.name(best)} {self.difference:+.3f}"
        if self.difference_low is None or self.difference_high is None or self.p_value is None:
            line += " (not tested: it is not known which examples each gets right)"
        else:
            p = "p < 0.001" if self.p_value < 0.001 else f"p = {self.p_value:.2g}"
            line += f" [{self.difference_low:+.3f}, {self.difference_high:+.3f}], {p} ({self.test})"
        if self.seeds > 1:
            line += f", better in {self.better_in} of {self.seeds} seeds"
        verdict = ""
        if self.difference_low is not None and self.difference_high is not None:
            if self.difference_high < 0:
                verdict = " The test examples contradict the choice: it is worse there."
            elif self.difference_low <= 0:
                verdict = " So small a difference may be chance."
        return f"{line}; in brackets 95% intervals.{verdict}"


R = TypeVar("R", bound=Recommendation)


def recommend(
    rows: Sequence[Measurement],
    make: Callable[..., R] = Recommendation,  # type: ignore[assignment]
) -> R:
    """Chooses the single network to use, by held-out accuracy; test data only describe it.

    Rows are of all seeds; `make` takes the attributes of a `Recommendation`.
    """
    groups = by_method(rows)
    standings = {key: _standing(same) for key, same in groups.items()}
    majority = whole_mean(row.majority for row in rows)
    common: dict[str, Any] = {
        "majority": majority,
        "guessing": tuple(one for one in standings.values() if guesses(one, majority)),
        "multiple_pools": len({row.pool_size for row in rows} - {None}) > 1,
        "seeds": len({row.seed for row in rows}),
    }
    counts = {row.held_out_examples for row in rows}
    if counts <= {0, None}:
        unknown = "No recommendation: these results have no held-out scores."
        return make(**common, reason=_NOTHING_HELD_OUT if 0 in counts else unknown)
    scored = [one for one in standings.values() if one.held_out is not None]
    if len({one.held_out_examples for one in scored}) > 1:
        reason = "the networks were scored on different held-out examples"
        return make(**common, reason=f"No recommendation: {reason}.")
    best_ingredient = _best(scored, "ingredient")
    if best_ingredient is None:
        reason = "the modules' tests log no accuracy (test_accuracy or test_acc) on held-out data"
        return make(**common, reason=f"No recommendation: {reason}.")
    of_best = _best_of_each_seed(groups, scored)
    if len({row.method for row in of_best}) > 1:
        of_best = [replace(row, method=EACH_SEEDS_BEST) for row in of_best]
        best_ingredient = _standing(of_best)
    best_merge = _best(scored, "merge")
    use = best_ingredient
    if best_merge is not None and not _level(best_merge, best_ingredient):
        use = max(best_merge, best_ingredient, key=_held_out)
    ensemble = _best(scored, "ensemble")
    return make(
        **common,
        use=use,
        best_ingredient=best_ingredient,
        best_merge=best_merge,
        gain=_held_out(use) - _held_out(best_ingredient),
        tied=tuple(
            one for one in scored if one.kind != "ensemble" and one is not use and _level(one, use)
        ),
        ensemble=ensemble,
        ensemble_cost=ensemble.cost / use.cost if ensemble is not None and use.cost else None,
        **({} if use is best_ingredient else _difference(groups[_key(use)], of_best)),
    )


def guesses(one: Standing, majority: float | None) -> bool:
    """Whether a method's test accuracy is not above that of the most frequent class."""
    return majority is not None and one.accuracy_low is not None and one.accuracy_low <= majority


def interval_over_seeds(rows: Sequence[Measurement]) -> Interval | None:
    """The interval, over test examples, of a mean accuracy over seeds (or networks)."""
    accuracy = whole_mean(row.accuracy for row in rows)
    sizes = [min(of_task) for of_task in zip(*(row.test_sizes for row in rows), strict=True)]
    return interval_of(mean_right([row.answers for row in rows]), accuracy, *sizes)


def paired_answers(one: Sequence[Measurement], other: Sequence[Measurement]) -> Paired | None:
    """Compares two methods' mean answers over seeds; None unless they are to the same examples."""
    rights = [mean_right([row.answers for row in rows]) for rows in (one, other)]
    digests = {row.answers.examples for row in (*one, *other) if row.answers is not None}
    if rights[0] is None or rights[1] is None or len(digests) > 1:
        return None
    return paired(rights[0], rights[1], one[0].test_sizes)


_Key = tuple[str, str, int | None]


def by_method(rows: Sequence[Measurement]) -> dict[_Key, list[Measurement]]:
    """The measurements of each method: of a kind, a name and a number of ingredients."""
    groups: dict[_Key, list[Measurement]] = {}
    for row in rows:
        groups.setdefault((row.kind, row.method, row.pool_size), []).append(row)
    return groups


def _key(one: Standing) -> _Key:
    return one.kind, one.method, one.pool_size


def _standing(rows: Sequence[Measurement]) -> Standing:
    first, interval = rows[0], interval_over_seeds(rows)
    counts = {row.held_out_examples for row in rows}
    return Standing(
        method=first.method,
        kind=first.kind,
        pool_size=first.pool_size,
        held_out=whole_mean(row.held_out for row in rows) if len(counts) == 1 else None,
        held_out_examples=first.held_out_examples or 0,
        held_out_step=first.held_out_step,
        accuracy=whole_mean(row.accuracy for row in rows),
        accuracy_low=interval.low if interval else None,
        accuracy_high=interval.high if interval else None,
        test_examples=first.test_examples,
        cost=first.flops or first.parameters,
        chose=any(row.chose for row in rows),
    )


def _difference(of_use: Sequence[Measurement], of_best: Sequence[Measurement]) -> dict[str, Any]:
    """What the test data say of two methods, paired by example and by seed."""
    theirs = {row.seed: row.accuracy for row in of_best}
    pairs = [
        (row.accuracy, theirs.get(row.seed)) for row in of_use if theirs.get(row.seed) is not None
    ]
    differences = [one - other for one, other in pairs if one is not None and other is not None]
    if not differences:
        return {}
    found: dict[str, Any] = {
        "difference": statistics.fmean(differences),
        "better_in": sum(one > ROUNDING for one in differences),
    }
    pair = paired_answers(of_use, of_best)
    if pair is not None:
        found |= {
            "difference_low": pair.low,
            "difference_high": pair.high,
            "p_value": pair.p_value,
            "test": pair.test,
        }
    return found


def _best_of_each_seed(
    groups: Mapping[_Key, Sequence[Measurement]], scored: Sequence[Standing]
) -> list[Measurement]:
    """Of each seed the ingredient with the best held-out accuracy, the first of equals.

    Ingredients of two seeds share a name and no training: whoever trains some uses the best of
    them, of which the best name over all seeds would fall short.
    """
    best: dict[int, Measurement] = {}
    for row in (row for one in scored if one.kind == "ingredient" for row in groups[_key(one)]):
        found = best.setdefault(row.seed, row)
        assert row.held_out is not None
        assert found.held_out is not None
        if row.held_out > found.held_out + ROUNDING:
            best[row.seed] = row
    return list(best.values())


def _best(standings: Sequence[Standing], kind: str) -> Standing | None:
    # Of equals the first: recipes tend to be listed from the simplest on.
    own = [one for one in standings if one.kind == kind]
    highest = max(map(_held_out, own), default=0.0)
    return next((one for one in own if _held_out(one) >= highest - ROUNDING), None)


def _level(one: Standing, other: Standing) -> bool:
    """Whether two differ by no more than one held-out example."""
    return abs(_held_out(one) - _held_out(other)) <= (1 + 1e-3) * other.held_out_step


def _held_out(one: Standing) -> float:
    assert one.held_out is not None
    return one.held_out


def _with_interval(one: Standing) -> str:
    value = "-" if one.accuracy is None else f"{one.accuracy:.3f}"
    if one.accuracy_low is None or one.accuracy_high is None:
        return value
    return f"{value} [{one.accuracy_low:.3f}, {one.accuracy_high:.3f}]"
