"""DPP as a recipe's selection: good ingredients that are not alike."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_merge.aggregate import (
    cosine_similarity_matrix,
    dpp_kernel,
    exact_map,
    greedy_order,
    relative_gain_quality,
    sample_kdpp,
)
from lightning_merge.checkpoint import StateDict, digest
from lightning_merge.errors import ConfigError, SelectionError
from lightning_merge.progress import tracked
from lightning_merge.recipe.context import Context
from lightning_merge.recipe.pretrained import check_pretrained, pretrained_state
from lightning_merge.recipe.selection import Proposal, Selection, selections


@selections.register(
    paper="Quality and Diversity Both Matters When Merging Models",
    needs="held-out labels, the pre-trained network",
)
class DPP(Selection):
    """Good ingredients that are not alike, by a determinantal point process.

    "Quality and Diversity Both Matters When Merging Models", section Kernel Construction. The
    quality of an ingredient is its gain in held-out accuracy over the pre-trained network,
    relative to that one's; where several tasks are merged, each on its own task, under its own
    head. The similarity of two is the cosine of their last layer's inputs, averaged over all
    held-out images. An ingredient that is no better than the pre-trained network is never
    selected.

    The paper does not state how it chose the number of ingredients, and with its normalisation
    the determinant of any set is at most that of the empty one. So `size` gives it, or (None) each
    number from 2 on is merged, along the greedy order, and the merge that is best on held-out
    data is kept: of equals the one of fewer.

    Args:
        size: How many ingredients, two or more.
        pretrained: The checkpoint that the ingredients were fine-tuned from; where several
            tasks are merged, or the study has a `start`, it is known (None, or `start`).
        search: `greedy` for the fast approximation of the most probable set, `exact` for that
            set (small pools), `sample` for a draw with the context's seed.
        metric: What quality and number are judged by: accuracy if not given; otherwise the name
            of a metric that the module's validation logs, more of which is better.

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

    def check(self, context: Context) -> None:
        """Checks that there are held-out data, the pre-trained network and enough ingredients."""
        super().check(context)
        check_pretrained(self.pretrained, context, "DPP")
        if self.size is not None and self.size > len(context.states):
            raise ConfigError(
                f"DPP: size is {self.size}, and there are {len(context.states)} ingredients"
            )

    def propose(self, states: Sequence[StateDict], context: Context) -> Proposal:
        """One subset, or for `size=None` the beginnings of the greedy order.

        Raises:
            SelectionError: If fewer ingredients than needed are better than the pre-trained
                network and no copies of each other, or it gets nothing right of a task.
        """
        # Recipes that differ in the aggregate alone share it.
        key = ("DPP", self.pretrained, self.metric, *map(digest, states))
        cached = context.recall(key, lambda: self._measure(states, context))
        kernel = cached.value
        quality, similarity = kernel.quality, kernel.similarity
        needed = self.size or 2
        if not bool((quality > 0).any()):
            raise SelectionError(_too_few([], context, needed))
        L = dpp_kernel(quality, similarity)
        order = greedy_order(L)
        if len(order) < needed:
            raise SelectionError(_too_few(order, context, needed))
        by_name = {"own": kernel.own, "pretrained": kernel.pretrained, "quality": quality.tolist()}
        details: dict[str, Any] = {
            key: dict(zip(context.names, values, strict=True)) for key, values in by_name.items()
        }
        details["similarity"] = similarity.tolist()
        details["greedy_order"] = [context.names[index] for index in order]
        if self.size is None:
            subsets = [order[:size] for size in range(2, len(order) + 1)]
        elif self.search == "greedy":
            subsets = [order[: self.size]]
        elif self.search == "exact":
            subsets = [exact_map(L, self.size)]
        else:
            generator = torch.Generator().manual_seed(context.seed)
            subsets = [sample_kdpp(L, self.size, generator)]
        return Proposal(subsets, details, cached.saved)

    def _measure(self, states: Sequence[StateDict], context: Context) -> "_Kernel":
        pretrained = pretrained_state(self.pretrained, context, "DPP")
        held_out = context.held_out()
        own, before, features = [], [], []
        for state, name in tracked(
            list(zip(states, context.names, strict=True)), "DPP: ingredients", context.progress
        ):
            own.append(held_out.own_score(state, name, self.metric))
            before.append(held_out.own_score(pretrained, name, self.metric))
            features.append(held_out.features(context.build(state)))
        nothing = [name for name, share in zip(context.names, before, strict=True) if share <= 0]
        if nothing:
            raise SelectionError(
                f"DPP: the pre-trained network gets nothing right of {nothing[0]}, and a gain "
                "relative to 0 is not defined: leave `select` out, or that task"
            )
        quality = relative_gain_quality(own, before)
        return _Kernel(own, before, quality, cosine_similarity_matrix(features))


def _too_few(usable: Sequence[int], context: Context, needed: int) -> str:
    names = ", ".join(context.names[index] for index in usable)
    usable_ones = f"only {names}" if names else "none"
    return (
        f"DPP: of {len(context.names)} ingredients {usable_ones} can be used (better "
        f"than the pre-trained network, and no copies of the others), and {needed} are "
        "needed: leave `select` out, or merge other ingredients"
    )


@dataclass(frozen=True)
class _Kernel:
    own: list[float]
    pretrained: list[float]
    quality: Tensor
    similarity: Tensor
