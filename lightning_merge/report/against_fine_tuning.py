"""NP Merge against fine-tuning of the same aligned average: by how much, and how sure that is."""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lightning_merge.measure.intervals import over_seeds
from lightning_merge.measure.measurement import Measurement
from lightning_merge.measure.recommendation import paired_answers
from lightning_merge.measure.whole_means import ROUNDING
from lightning_merge.report.recipe_words import arguments_of, kind_of

Plain = Mapping[str, Any]

TITLE = "NP Merge against fine-tuning"

_ALPHA_FOR_EACH = ("parameter", "channel")


@dataclass(frozen=True)
class Duel:
    """One NP Merge and one fine-tuning on the same aligned ingredients.

    Attributes:
        np_merge: The recipe's name.
        fine_tuning: That of the other.
        pool_size: Of how many ingredients.
        seeds: The seeds that both have.
        differences: For each seed the test accuracy of NP Merge minus that of fine-tuning.
        low: The lower end of the mean difference's 95% interval over seeds; None with one seed.
        high: The upper end.
        examples_low: The lower end of its 95% interval over test examples (paired bootstrap); None
            where it is not known which examples are right.
        examples_high: The upper end.
        p_value: Of no difference, over test examples.
        test: The test that gives it.
        unlike: What the two did not have alike, in words; empty where the comparison is fair.
    """

    np_merge: str
    fine_tuning: str
    pool_size: int | None
    seeds: list[int]
    differences: list[float]
    low: float | None = None
    high: float | None = None
    examples_low: float | None = None
    examples_high: float | None = None
    p_value: float | None = None
    test: str = ""
    unlike: tuple[str, ...] = ()

    @property
    def difference(self) -> float:
        """The mean over seeds."""
        return statistics.fmean(self.differences)

    @property
    def text(self) -> str:
        """A sentence or two."""
        size = "" if self.pool_size is None else f" ({self.pool_size} networks)"
        who, other = f"{self.np_merge}{size}", self.fine_tuning
        by = f"{abs(self.difference):.4f}"
        if abs(self.difference) <= ROUNDING:
            line = f"{who} and {other} are level"
        elif self.difference < 0:
            line = f"{who} loses to {other} by {by}"
        else:
            line = f"{who} wins against {other} by {by}"
        count = len(self.seeds)
        if count > 1:
            better = sum(one > ROUNDING for one in self.differences)
            line += f", better in {better} of {count} seeds"
        else:
            line += ", one seed"
        line += f"; difference {self.difference:+.4f}"
        if self.low is not None and self.high is not None:
            line += f", 95% interval over seeds [{self.low:+.4f}, {self.high:+.4f}]"
        if self.examples_low is not None and self.examples_high is not None:
            line += (
                f", over test examples [{self.examples_low:+.4f}, {self.examples_high:+.4f}] "
                f"(p = {self.p_value:.2g}, {self.test})"
            )
        line += "."
        ends = [
            (self.low, self.high),
            (self.examples_low, self.examples_high),
        ]
        if any(low is not None and high is not None and low <= 0 <= high for low, high in ends):
            line += " So small a difference may be chance."
        if self.unlike:
            line += f" Not alike: {'; '.join(self.unlike)}."
        return line

    def plain(self) -> dict[str, Any]:
        """The comparison as in JSON."""
        return {**asdict(self), "difference": self.difference, "unlike": list(self.unlike)}


def duels(rows: Sequence[Measurement], recipes: Sequence[Plain]) -> list[Duel]:
    """Every NP Merge beside every fine-tuning that has its alignment and recalibration."""
    merges = [one for one in recipes if _is_np_merge(one)]
    # With weights of its own it may start from one network, which is no merge.
    tuned = [r for r in recipes if _kind(r) == "FineTune" and not _arguments(r).get("weights")]
    sizes = list(dict.fromkeys(row.pool_size for row in rows if row.kind == "merge"))
    found = [
        _duel(rows, merge, other, size)
        for merge in merges
        for other in tuned
        if _before(merge) == _before(other)
        for size in sizes
    ]
    return [one for one in found if one is not None]


def duels_part(found: Sequence[Duel]) -> str:
    """The section of the report; empty if there is nothing to compare."""
    if not found:
        return ""
    lines = "".join(f"* {one.text}\n" for one in found)
    return (
        f"\n## {TITLE}\n\nTest accuracy on the same aligned networks, paired by seed (a t interval "
        f"over seeds) and by test example.\n\n{lines}"
    )


def _duel(rows: Sequence[Measurement], merge: Plain, other: Plain, size: int | None) -> Duel | None:
    sides = []
    for recipe in (merge, other):
        own = [r for r in rows if (r.method, r.pool_size) == (recipe["name"], size)]
        sides.append({row.seed: row for row in own if row.accuracy is not None})
    ours, theirs = sides
    seeds = [seed for seed in ours if seed in theirs]
    if not seeds:
        return None
    differences = [ours[seed].accuracy - theirs[seed].accuracy for seed in seeds]  # type: ignore[operator]
    interval = over_seeds(differences)
    known: dict[str, Any] = {}
    pair = paired_answers(*([side[seed] for seed in seeds] for side in sides))
    if pair is not None:
        known = {
            "examples_low": pair.low,
            "examples_high": pair.high,
            "p_value": pair.p_value,
            "test": pair.test,
        }
    several = len({row.pool_size for row in rows if row.kind == "merge"}) > 1
    return Duel(
        str(merge["name"]),
        str(other["name"]),
        size if several else None,
        seeds,
        differences,
        interval and interval[0],
        interval and interval[1],
        unlike=_unlike(merge, other),
        **known,
    )


def _unlike(merge: Plain, other: Plain) -> tuple[str, ...]:
    pairs = {
        "epochs": [_arguments(one).get("max_epochs", 10) for one in (merge, other)],
        "learning rates to choose from": [_candidates(one) for one in (merge, other)],
    }
    found = [
        f"{what} {ours} and {theirs}" for what, (ours, theirs) in pairs.items() if ours != theirs
    ]
    if _kind(merge) == "NPMergePairs":
        found.append("NP Merge goes two networks at a time, each pair for so many epochs")
    return tuple(found)


def _candidates(recipe: Plain) -> int:
    arguments = _arguments(recipe)
    return len(arguments.get("learning_rates") or [0]) * len(arguments.get("schedules") or [0])


def _is_np_merge(recipe: Plain) -> bool:
    each = _arguments(recipe).get("granularity", "parameter") in _ALPHA_FOR_EACH
    return _kind(recipe) in ("NPMerge", "NPMergePairs") and each


def _kind(recipe: Plain) -> str:
    return kind_of(recipe.get("aggregate"))


def _arguments(recipe: Plain) -> Plain:
    return arguments_of(recipe.get("aggregate"))


def _before(recipe: Plain) -> str:
    """What two recipes have alike that go from the same network: all but how they learn."""
    arguments = _arguments(recipe)
    align = recipe.get("align") or arguments.get("matching")
    rest = [recipe.get("recalibrate"), recipe.get("select"), arguments.get("start")]
    return json.dumps([align, *rest], sort_keys=True, default=str)
