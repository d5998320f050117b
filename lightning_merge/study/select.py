"""Which ingredients to merge: a selection in front of any aggregate."""

import copy
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, seed_everything
from torch import Tensor

from lightning_merge.aggregate import (
    cosine_similarity_matrix,
    dpp_kernel,
    exact_map,
    greedy_order,
    relative_gain_quality,
    sample_kdpp,
    select_dpp,
)
from lightning_merge.checkpoint import StateDict
from lightning_merge.errors import ConfigError, SelectionError
from lightning_merge.progress import tracked
from lightning_merge.study.pool import Pool
from lightning_merge.study.pretrained import check_pretrained, pretrained_state
from lightning_merge.study.task_held_out import held_out_of

Merge = Callable[[Sequence[StateDict], Pool], LightningModule]


@dataclass(frozen=True)
class SelectionChoice:
    """Which ingredients were merged, and by what.

    Attributes:
        ingredients: Those that were.
        among: How many there were.
        by: The selection's class.
        details: What it went by, such as each ingredient's quality.
        scores: Where the number was chosen too, the score of each merge, under its number of
            ingredients.
        score: What was scored.
        examples: How many validation examples there are; their labels were used.
    """

    ingredients: list[str]
    among: int
    by: str
    details: dict[str, Any]
    scores: dict[str, float]
    score: str
    examples: int

    def plain(self) -> dict[str, Any]:
        """The choice as JSON holds it."""
        return asdict(self)

    def __str__(self) -> str:
        number = f", their number by {self.score}" if self.scores else ""
        return (
            f"{len(self.ingredients)} of {self.among} ingredients ({', '.join(self.ingredients)}), "
            f"chosen by {self.by}{number} on {self.examples:,} validation examples"
        )


@dataclass(frozen=True)
class Proposal:
    """What a selection says of a pool.

    Attributes:
        subsets: Indices of ingredients, a list for each subset; of several the one is kept
            whose merge is best on held-out data.
        details: What it went by, as JSON holds it.
    """

    subsets: list[list[int]]
    details: dict[str, Any]


class Select(ABC):
    """Says which of a pool's ingredients to merge.

    Attributes:
        metric: The validation's metric that it goes by; accuracy if None.
        sign: 1 if more of it is better, -1 if less.
    """

    metric: str | None = None
    sign: float = 1.0

    def check(self, pool: Pool) -> None:
        """Checks that the pool has what is needed, before anything is computed.

        Raises:
            ConfigError: If there are no held-out data.
        """
        held_out_of(pool)

    @abstractmethod
    def propose(self, states: Sequence[StateDict], pool: Pool) -> Proposal:
        """The subsets to merge, each of two ingredients or more.

        Args:
            states: The aligned ingredients.
            pool: What they came from.
        """


class DPP(Select):
    """Good ingredients that are not alike, by a determinantal point process.

    "Quality and Diversity Both Matters When Merging Models", section Kernel Construction. The
    quality of an ingredient is its gain in held-out accuracy over the pre-trained network,
    relative to that one's; where several tasks are merged, each on its own task, under its own
    head. The similarity of two is the cosine of their last layer's inputs, averaged over all
    held-out images. An ingredient that is no better than the pre-trained network is never
    selected.

    The paper does not say how it chose the number of ingredients, and with its normalisation
    the determinant of any set is at most that of the empty one. So `size` says it, or (None) each
    number from 2 on is merged, along the greedy order, and the merge that is best on held-out
    data is kept: of equals the one of fewer.

    Args:
        size: How many ingredients, two or more.
        pretrained: The checkpoint that the ingredients were fine-tuned from; where several
            tasks are merged, or the study has a `start`, it is known (None, or `start`).
        search: `greedy` for the fast approximation of the most probable set, `exact` for that
            set (small pools), `sample` for a draw with the pool's seed.
        metric: What quality and number go by: accuracy if not given; otherwise the name of a
            metric that the module's validation logs, more of which is better.

    Raises:
        ConfigError: If `size` is below 2, or missing where it has to be given.
    """

    def __init__(
        self,
        size: int | None = None,
        pretrained: str | None = None,
        search: Literal["greedy", "exact", "sample"] = "greedy",
        metric: str | None = None,
    ) -> None:
        if size is not None and size < 2:
            raise ConfigError(f"DPP: size is {size}: a merge needs 2 ingredients or more")
        if size is None and search != "greedy":
            raise ConfigError(f"DPP: search '{search}' needs a size: say how many ingredients")
        self.size = size
        self.pretrained = pretrained
        self.search = search
        self.metric = metric

    def check(self, pool: Pool) -> None:
        """Checks that there are held-out data, the pre-trained network and enough ingredients.

        Raises:
            ConfigError: If not.
        """
        super().check(pool)
        check_pretrained(self.pretrained, pool, "DPP")
        if self.size is not None and self.size > len(pool.states):
            raise ConfigError(
                f"DPP: size is {self.size}, and there are {len(pool.states)} ingredients"
            )

    def propose(self, states: Sequence[StateDict], pool: Pool) -> Proposal:
        """One subset, or for `size=None` the beginnings of the greedy order.

        Raises:
            SelectionError: If fewer ingredients than needed are better than the pre-trained
                network and no copies of each other, or it gets nothing right of a task.
        """
        kernel = self._kernel(states, pool)
        quality, similarity = kernel.quality, kernel.similarity
        needed = self.size or 2
        if not bool((quality > 0).any()):
            raise SelectionError(_too_few([], pool, needed))
        L = dpp_kernel(quality, similarity)
        order = greedy_order(L)
        if len(order) < needed:
            raise SelectionError(_too_few(order, pool, needed))
        details = {
            "own": dict(zip(pool.names, kernel.own, strict=True)),
            "pretrained": dict(zip(pool.names, kernel.pretrained, strict=True)),
            "quality": dict(zip(pool.names, quality.tolist(), strict=True)),
            "similarity": similarity.tolist(),
            "greedy_order": [pool.names[index] for index in order],
        }
        if self.size is None:
            return Proposal([order[:size] for size in range(2, len(order) + 1)], details)
        if self.search == "greedy":
            return Proposal([select_dpp(quality, similarity, self.size)], details)
        if self.search == "exact":
            return Proposal([exact_map(L, self.size)], details)
        generator = torch.Generator().manual_seed(pool.seed)
        return Proposal([sample_kdpp(L, self.size, generator)], details)

    def _kernel(self, states: Sequence[StateDict], pool: Pool) -> "_Kernel":
        # Recipes that differ in the aggregate alone share it.
        key = ("DPP", self.pretrained, self.metric, *map(id, states))
        if key in pool.searches:
            found: _Kernel = pool.searches[key]
            pool.reused_seconds += found.seconds
            return found
        start = time.perf_counter()
        pretrained = pretrained_state(self.pretrained, pool, "DPP")
        held_out = held_out_of(pool)
        own, before, features = [], [], []
        for state, name in tracked(
            list(zip(states, pool.names, strict=True)), "DPP: ingredients", pool.progress
        ):
            own.append(held_out.own_score(state, name, self.metric))
            before.append(held_out.own_score(pretrained, name, self.metric))
            features.append(held_out.features(pool.build(state)))
        nothing = [name for name, share in zip(pool.names, before, strict=True) if share <= 0]
        if nothing:
            raise SelectionError(
                f"DPP: the pre-trained network gets nothing right of {nothing[0]}, and a gain "
                "relative to 0 is not defined: leave `select` out, or that task"
            )
        quality = relative_gain_quality(own, before)
        similarity = cosine_similarity_matrix(features)
        seconds = time.perf_counter() - start
        # The states are held, so that no other can have their ids.
        found = _Kernel(own, before, quality, similarity, seconds, list(states))
        pool.searches[key] = found
        return found


def _too_few(usable: Sequence[int], pool: Pool, needed: int) -> str:
    names = ", ".join(pool.names[index] for index in usable)
    return (
        f"DPP: of {len(pool.names)} ingredients {f'only {names}' if names else 'none'} can be used "
        f"(better than the pre-trained network, and no copies of the others), and {needed} are "
        "needed: leave `select` out, or merge other ingredients"
    )


@dataclass(frozen=True)
class _Kernel:
    own: list[float]
    pretrained: list[float]
    quality: Tensor
    similarity: Tensor
    seconds: float
    states: list[StateDict]


def merge_selected(
    select: Select, merge: Merge, states: Sequence[StateDict], pool: Pool, learns: bool
) -> LightningModule:
    """Merges the ingredients that a selection keeps.

    Args:
        select: The selection.
        merge: Makes the (recalibrated) module of some ingredients and their pool.
        states: The aligned ingredients.
        pool: What they came from; its `selected` and `learned_from` say what was chosen, and
            on how many labelled examples.
        learns: Whether `merge` takes gradients on labelled training examples.

    Raises:
        ConfigError: If there are no held-out data.
    """
    held_out = held_out_of(pool)
    proposal = select.propose(states, pool)
    best: tuple[float, LightningModule, Pool] | None = None
    scores: dict[str, float] = {}
    several = len(proposal.subsets) > 1
    for subset in proposal.subsets:
        part = _part(pool, subset)
        # As it would be if these ingredients were all there are.
        seed_everything(pool.seed, verbose=False)
        module = merge([states[index] for index in subset], part)
        score = select.sign * held_out.score(module, select.metric) if several else math.inf
        scores[str(len(subset))] = select.sign * score
        pool.reused_seconds += part.reused_seconds
        if best is None or score > best[0] or math.isnan(best[0]):
            best = score, module, part
    assert best is not None
    _, module, part = best
    choice = SelectionChoice(
        ingredients=list(part.names),
        among=len(states),
        by=type(select).__name__,
        details=proposal.details,
        scores=scores if several else {},
        score=select.metric or "accuracy",
        examples=held_out.size,
    )
    pool.selected = [choice, *part.selected]
    pool.learned_from = held_out.size + (part.learned_from if learns else 0)
    return module


def _part(pool: Pool, indices: Sequence[int]) -> Pool:
    part = copy.copy(pool)
    part.states = [pool.states[index] for index in indices]
    part.names = [pool.names[index] for index in indices]
    part.__dict__.pop("digests", None)
    part.learned_from, part.selected, part.reused_seconds = 0, [], 0.0
    return part
