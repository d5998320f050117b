"""Greedy soups: which ingredients to average, as held-out examples say.

Wortsman et al. 2022, "Model soups", Recipe 1. The search itself is `aggregate/greedy.py`.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from lightning_merge.aggregate import Trial, greedy_soup, greedy_soup_by_counts
from lightning_merge.aggregate.greedy_search import hardest_first
from lightning_merge.checkpoint import StateDict
from lightning_merge.progress import tracked
from lightning_merge.study.aggregates.aggregate import Aggregate
from lightning_merge.study.greedy_choice import GreedyChoice
from lightning_merge.study.pool import Pool
from lightning_merge.study.recalibration import Recalibration
from lightning_merge.study.task_held_out import held_out_of


@dataclass(frozen=True)
class Selection:
    """What a greedy search found.

    Attributes:
        soup: The average of the members.
        members: The ingredients in it, the best one first.
        choice: Which they are, with the search's trace.
        seconds: What the search took.
    """

    soup: StateDict
    members: list[StateDict]
    choice: GreedyChoice
    seconds: float


class Greedy(Aggregate):
    """An aggregate of the ingredients that a greedy search keeps.

    Args:
        metric: What is compared, on the validation data: the share of held-out examples
            that are classified rightly if not given; otherwise the name of a metric that
            the module's validation logs (`val_auroc`).
        mode: Whether more (`max`) or less (`min`) of `metric` is better.
    """

    def __init__(self, metric: str | None = None, mode: Literal["max", "min"] = "max") -> None:
        self.metric = metric
        self.mode = mode

    def check(self, pool: Pool) -> None:
        """Checks that there are held-out examples.

        Raises:
            ConfigError: If there are none.
        """
        held_out_of(pool)

    def search(self, states: Sequence[StateDict], pool: Pool) -> Selection:
        """The greedy soup of a pool's ingredients.

        Each candidate is recalibrated as the recipe's result will be, then evaluated. Where
        accuracy is compared, a candidate that can no longer win is dropped before its
        evaluation is complete. A pool is searched once: the greedy ensembles and the soup of
        the same aligned ingredients share the search.

        Args:
            states: The aligned ingredients.
            pool: What they came from; its validation data are what candidates are held
                against. Its `learned_from` and `selected` say so afterwards.
        """
        key = (self.metric, self.mode, self.recalibrate, *map(id, states))
        found = key in pool.searches
        if not found:
            pool.searches[key] = _Search(self, states, pool).run()
        selection: Selection = pool.searches[key]
        pool.reused_seconds = selection.seconds if found else 0.0
        pool.learned_from = selection.choice.examples
        pool.selected = [selection.choice]
        return selection


class GreedySoup(Greedy):
    """The average of those ingredients that improve it on held-out examples.

    Ingredients join from the best to the worst; one stays if the average with it is
    strictly better. Needs validation data, which the data module holds out of train; the
    test set is never looked at.

    Args:
        metric: What is compared, on the validation data: the share of held-out examples
            that are classified rightly if not given; otherwise the name of a metric that
            the module's validation logs (`val_auroc`).
        mode: Whether more (`max`) or less (`min`) of `metric` is better.
    """

    def __call__(self, states: Sequence[StateDict], pool: Pool) -> LightningModule:
        """A module with the soup's weights."""
        return pool.build(self.search(states, pool).soup)


class _Search:
    def __init__(self, greedy: Greedy, states: Sequence[StateDict], pool: Pool) -> None:
        self.metric = greedy.metric
        self.sign = 1.0 if greedy.mode == "max" else -1.0
        self.states = states
        self.pool = pool
        self.held_out = held_out_of(pool)
        self.recalibrate = Recalibration(greedy.recalibrate, states, pool, "greedy soup")

    def run(self) -> Selection:
        start = time.perf_counter()
        counted = self.metric is None and self.held_out.has_classes
        soup, trace = self._by_counts() if counted else self._by_metric()
        members = [self.states[trial.candidate] for trial in trace if trial.kept]
        score = self.metric or "accuracy"
        choice = GreedyChoice.of(trace, self.pool.names, score, self.held_out.size)
        return Selection(soup, members, choice, time.perf_counter() - start)

    def _by_counts(self) -> tuple[StateDict, list[Trial]]:
        shown = tracked(self.states, "Greedy soup: ingredients", self.pool.progress)
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
        module = self.pool.build(state)
        self.recalibrate(module)
        return module
