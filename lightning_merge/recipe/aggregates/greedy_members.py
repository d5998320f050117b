"""Greedy soups: which ingredients to average, by held-out examples.

Wortsman et al. 2022, "Model soups", Recipe 1. The search itself is `aggregate/greedy_search.py`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from lightning_merge.aggregate import Trial, greedy_soup, greedy_soup_by_counts
from lightning_merge.aggregate.greedy_search import hardest_first
from lightning_merge.checkpoint import StateDict, digest
from lightning_merge.progress import tracked
from lightning_merge.recipe.aggregate import Aggregate, Merged, aggregates
from lightning_merge.recipe.cache import Cached, identity
from lightning_merge.recipe.choice import Choice
from lightning_merge.recipe.context import Context
from lightning_merge.recipe.recalibration import recalibrate_with


@dataclass(frozen=True)
class GreedySearch:
    """A greedy soup, its members, the best one first, and which they are, with the trace."""

    soup: StateDict
    members: list[StateDict]
    choice: Choice


@dataclass(eq=False)
class GreedyMembers(Aggregate):
    """An aggregate of the ingredients that a greedy search keeps.

    Args:
        metric: What is compared, on the validation data: the share of held-out examples
            that are classified correctly if not given; otherwise the name of a metric that
            the module's validation logs (`val_auroc`).
        mode: Whether more (`max`) or less (`min`) of `metric` is better.
    """

    metric: str | None = None
    mode: Literal["max", "min"] = "max"

    def check(self, context: Context) -> None:
        """Checks that there are held-out examples."""
        context.held_out()

    def search(self, states: Sequence[StateDict], context: Context) -> Cached[GreedySearch]:
        """The greedy soup of some aligned ingredients, compared on the context's validation data.

        Each candidate is recalibrated as the recipe's result will be, then evaluated. Where
        accuracy is compared, a candidate that can no longer win is dropped before its
        evaluation is complete. The greedy ensembles and the soup of the same aligned
        ingredients share one search.
        """
        recalibration = identity(context.recalibration)
        named = (*context.names, *map(digest, states))
        key = ("greedy", self.metric, self.mode, recalibration, *named)
        return context.recall(key, lambda: _Search(self, states, context).run())

    def _merged(self, module: LightningModule, found: Cached[GreedySearch]) -> Merged:
        choice = found.value.choice
        return Merged(module, (choice,), choice.details["examples"], found.saved)


@aggregates.register(paper="Wortsman et al. 2022, Model soups", needs="held-out labels")
class GreedySoup(GreedyMembers):
    """The average of those ingredients that improve it on held-out examples.

    Ingredients join from the best to the worst; one stays if the average with it is
    strictly better. Needs validation data, which the data module holds out of train; the
    test set is never used.
    """

    label = "GreedySoup"

    def __call__(self, states: Sequence[StateDict], context: Context) -> Merged:
        """A module with the soup's weights."""
        found = self.search(states, context)
        return self._merged(context.build(found.value.soup), found)


class _Search:
    def __init__(
        self, greedy: GreedyMembers, states: Sequence[StateDict], context: Context
    ) -> None:
        self.metric = greedy.metric
        self.sign = 1.0 if greedy.mode == "max" else -1.0
        self.states = states
        self.context = context
        self.held_out = context.held_out()
        self.recalibrate = recalibrate_with(context, states)

    def run(self) -> GreedySearch:
        counted = self.metric is None and self.held_out.has_classes
        soup, trace = self._by_counts() if counted else self._by_metric()
        members = [self.states[trial.candidate] for trial in trace if trial.kept]
        return GreedySearch(soup, members, self._choice(trace))

    def _choice(self, trace: Sequence[Trial]) -> Choice:
        names, size, score = self.context.names, self.held_out.size, self.metric or "accuracy"
        kept = [names[trial.candidate] for trial in trace if trial.kept]
        lines = [
            {
                "ingredient": names[trial.candidate],
                "alone": trial.alone,
                # None where it was dropped before its evaluation was complete.
                "with_it": trial.metric,
                "kept": trial.kept,
                "examples": trial.examples,
            }
            for trial in trace
        ]
        return Choice(
            f"{len(kept)} of {len(trace)} ingredients, chosen by {score} on "
            f"{size:,} validation examples",
            {"ingredients": kept, "trace": lines, "score": score, "examples": size},
        )

    def _by_counts(self) -> tuple[StateDict, list[Trial]]:
        shown = tracked(self.states, "Greedy soup: ingredients", self.context.progress)
        hits = torch.stack([torch.cat(list(self._hits(state))) for state in shown])
        order = hardest_first(hits)

        def count(state: StateDict) -> Iterator[tuple[int, int]]:
            for batch in self._hits(state, order):
                yield int(batch.sum()), len(batch)

        correct = hits.sum(dim=1).tolist()
        return greedy_soup_by_counts(self.states, count, hits.shape[1], correct)

    def _by_metric(self) -> tuple[StateDict, list[Trial]]:
        def score(state: StateDict) -> float:
            return self.sign * self.held_out.metric(self._candidate(state), self.metric)

        soup, trace = greedy_soup(self.states, score)
        return soup, [
            replace(
                trial,
                alone=self.sign * trial.alone,
                metric=None if trial.metric is None else self.sign * trial.metric,
            )
            for trial in trace
        ]

    def _hits(self, state: StateDict, order: Tensor | None = None) -> Iterator[Tensor]:
        return self.held_out.hits(self._candidate(state), order)

    def _candidate(self, state: StateDict) -> LightningModule:
        module = self.context.build(state)
        self.recalibrate(module, None)
        return module
