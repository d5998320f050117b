"""Which body to use for several tasks: chosen by the held-out examples of the seen ones."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from lightning_merge.measure.answers import Answers
from lightning_merge.measure.measurement import Measurement
from lightning_merge.measure.recommendation import Recommendation, Standing, recommend
from lightning_merge.measure.task_conditions import CLEAN, TaskMeasurement
from lightning_merge.measure.whole_means import whole_mean
from lightning_merge.study.task_plan import INDIVIDUAL, PRETRAINED

_KINDS = {PRETRAINED: "ingredient", INDIVIDUAL: "ensemble"}


@dataclass
class MeanOverTasks(Measurement):
    """The mean of a method's accuracies on the seen tasks, all of them of equal weight.

    Attributes:
        tasks: How many test examples each task has, by name.
        held_out_sizes: How many held-out examples each has.
    """

    tasks: Mapping[str, int] = field(default_factory=dict)
    held_out_sizes: Sequence[int] = ()

    @property
    def test_sizes(self) -> tuple[int, ...]:
        """How many test examples each task has."""
        return tuple(self.tasks.values())

    @property
    def held_out_step(self) -> float:
        """How much one held-out example of the smallest task changes the mean."""
        sizes = self.held_out_sizes
        return 1 / (len(sizes) * min(sizes)) if sizes and min(sizes) else 1.0


@dataclass(frozen=True)
class TaskRecommendation(Recommendation):
    """Which one body to use for all tasks: a merge, or the pre-trained body as it is.

    The tasks' own bodies together take the place that an ensemble has in a comparison.

    Attributes:
        tasks: The names of the seen tasks, which determine the choice.
        unseen: The mean test accuracy on the unseen tasks, by method; they determine nothing.
    """

    tasks: tuple[str, ...] = ()
    unseen: Mapping[str, float] = field(default_factory=dict)

    @property
    def lines(self) -> list[str]:
        """The recommendation in words, a sentence or two each."""
        lines = super().lines
        if self.use is not None and self.use.method in self.unseen:
            shown = dict.fromkeys([self.use.method, PRETRAINED])
            figures = ", ".join(f"{name} {self.unseen[name]:.3f}" for name in shown)
            lines.append(
                f"Unseen tasks have no part in the choice; the mean test accuracy on them: "
                f"{figures}."
            )
        return lines

    def _yours(self) -> str:
        return "the pre-trained body"

    def _rival(self, best: Standing) -> str:
        return f"the pre-trained body ({best.held_out:.3f})"

    def _score(self, use: Standing) -> str:
        return (
            f"a mean accuracy of {use.held_out:.3f} over the {len(self.tasks)} seen tasks, on "
            f"{use.held_out_examples:,} held-out examples"
        )

    def _guess(self, majority: float) -> str:
        return (
            f"always giving a task's most frequent class has a mean accuracy of {majority:.3f} on "
            "the test examples"
        )

    def _several(self, ensemble: Standing) -> str:
        del ensemble
        return f"The {len(self.tasks)} tasks' own bodies, each on its own task, have"

    def _price(self, times: float) -> str:
        return f"{times:.3g} times the parameters"


def over_tasks(
    rows: Sequence[TaskMeasurement], methods: Sequence[Mapping[str, Any]]
) -> list[MeanOverTasks]:
    """The means over the seen tasks' clean images: a row for each method and seed.

    `methods` has `parameters`, `seconds`, `train_examples` and `chosen` of each. What was not
    merged with every seed has no held-out accuracy, since a mean over other seeds could not be
    compared.
    """
    seen = [row for row in rows if row.seen and row.condition == CLEAN]
    known = {(one["method"], one["seed"]): one for one in methods}
    seeds = {row.seed for row in seen}
    made_with: dict[str, set[int]] = {}
    groups: dict[tuple[str, int], list[TaskMeasurement]] = {}
    for row in seen:
        groups.setdefault((row.method, row.seed), []).append(row)
        made_with.setdefault(row.method, set()).add(row.seed)
    return [
        _mean(same, known.get(key, {}), made_with[key[0]] == seeds) for key, same in groups.items()
    ]


def recommend_body(
    rows: Sequence[TaskMeasurement], means: Sequence[MeanOverTasks]
) -> TaskRecommendation:
    """Chooses one body by the mean held-out accuracy over the seen tasks."""
    tasks = tuple(means[0].tasks) if means else ()
    unseen: dict[str, list[float]] = {}
    for row in rows:
        if not row.seen and row.condition == CLEAN:
            unseen.setdefault(row.method, []).append(row.metrics["accuracy"])
    named = {method: statistics.fmean(values) for method, values in unseen.items()}
    return recommend(means, partial(TaskRecommendation, tasks=tasks, unseen=named))


def _mean(
    rows: Sequence[TaskMeasurement], made: Mapping[str, Any], comparable: bool
) -> MeanOverTasks:
    first = rows[0]
    kind = _KINDS.get(first.method, "merge")
    counts = [row.held_out_examples for row in rows]
    answers = [row.answers for row in rows if row.answers is not None]
    held_out = whole_mean(row.held_out for row in rows) if comparable else None
    return MeanOverTasks(
        method=first.method,
        kind=kind,
        accuracy=whole_mean(row.metrics.get("accuracy") for row in rows),
        seconds=made.get("seconds"),
        parameters=made.get("parameters") or 0,
        seed=first.seed,
        test_examples=sum(row.test_examples for row in rows),
        train_examples=made.get("train_examples"),
        pool_size=None if kind == "ingredient" else len(rows),
        chosen=made.get("chosen") or "",
        chose=any("examples" in choice for choice in made.get("choices") or ()),
        held_out=held_out,
        held_out_examples=None if None in counts else sum(one or 0 for one in counts) * all(counts),
        majority=whole_mean(row.majority for row in rows),
        answers=Answers.joined(answers) if len(answers) == len(rows) else None,
        tasks={row.task: row.test_examples for row in rows},
        held_out_sizes=[one or 0 for one in counts],
    )
