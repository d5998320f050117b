"""The contract of choosing ingredients: a selection in front of any aggregate."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lightning.pytorch import seed_everything

from lightning_merge.checkpoint import StateDict
from lightning_merge.recipe.aggregate import Merged
from lightning_merge.recipe.choice import Choice
from lightning_merge.recipe.context import Context
from lightning_merge.registry import Registry

Merge = Callable[[Sequence[StateDict], Context], Merged]


@dataclass(frozen=True)
class Proposal:
    """What a selection proposes.

    Attributes:
        subsets: Indices of ingredients, a list for each subset; of several the one is kept
            whose merge is best on held-out data.
        details: What it is based on, as in JSON.
        seconds: What it would have taken longer without the cache.
    """

    subsets: list[list[int]]
    details: dict[str, Any]
    seconds: float = 0.0


class Selection(ABC):
    """Proposes which ingredients to merge.

    Attributes:
        metric: The validation's metric that it is judged by; accuracy if None.
        sign: 1 if more of it is better, -1 if less.
    """

    metric: str | None = None
    sign: float = 1.0

    def check(self, context: Context) -> None:
        """Checks that the context has what is needed, before anything is computed.

        Raises:
            ConfigError: If there are no held-out data.
        """
        context.held_out()

    @abstractmethod
    def propose(self, states: Sequence[StateDict], context: Context) -> Proposal:
        """The subsets of the aligned ingredients to merge, each of two or more.

        Raises:
            SelectionError: If too few ingredients can be used.
        """


selections: Registry[type[Selection]] = Registry("selections", "lightning_merge.recipe.selections")


def merge_selected(
    select: Selection, merge: Merge, states: Sequence[StateDict], context: Context
) -> Merged:
    """Merges the ingredients that a selection keeps, by `merge`, which recalibrates too.

    The selection is first among the choices.
    """
    held_out = context.held_out()
    proposal = select.propose(states, context)
    several = len(proposal.subsets) > 1
    scores: dict[str, float] = {}
    best: tuple[float, Merged, Context] | None = None
    saved = proposal.seconds
    for subset in proposal.subsets:
        part = context.of(subset)
        # As it would be if these ingredients were all there are.
        seed_everything(context.seed, verbose=False)
        made = merge([states[index] for index in subset], part)
        score = select.sign * held_out.score(made.module, select.metric) if several else math.inf
        scores[str(len(subset))] = select.sign * score
        saved += made.seconds
        if best is None or score > best[0] or math.isnan(best[0]):
            best = score, made, part
    assert best is not None
    _, made, part = best
    score_name = select.metric or "accuracy"
    number = f", their number by {score_name}" if several else ""
    choice = Choice(
        f"{len(part.names)} of {len(states)} ingredients ({', '.join(part.names)}), chosen by "
        f"{type(select).__name__}{number} on {held_out.size:,} validation examples",
        {
            "ingredients": list(part.names),
            "among": len(states),
            "by": type(select).__name__,
            "details": proposal.details,
            # Of each merge, by its number of ingredients, where the number was chosen too.
            "scores": scores if several else {},
            "score": score_name,
            "examples": held_out.size,
        },
    )
    return replace(
        made,
        choices=(choice, *made.choices),
        labelled_examples=made.labelled_with(held_out.size),
        seconds=saved,
    )
