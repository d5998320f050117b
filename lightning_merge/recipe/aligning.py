"""Aligning a context's ingredients to the first one, each once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lightning_merge.aggregate import interpolate
from lightning_merge.align import Matching, PermutationSpec
from lightning_merge.checkpoint import StateDict
from lightning_merge.loaders import example_inputs
from lightning_merge.recipe.cache import identity
from lightning_merge.recipe.context import Context
from lightning_merge.recipe.held_out import validate
from lightning_merge.recipe.matching_choice import MatchingChoice, validation_source
from lightning_merge.recipe.recalibration import own_recalibration


@dataclass(frozen=True)
class Alignment:
    """The ingredients in the order of the first one's units.

    Attributes:
        states: Their state dicts.
        seconds: What aligning them took, an earlier recipe's part included.
        choices: What was chosen on the way, on held-out data.
    """

    states: Sequence[StateDict]
    seconds: float = 0.0
    choices: tuple[MatchingChoice, ...] = ()


def align(matching: Matching | None, context: Context) -> Alignment:
    """Aligns every ingredient to the first one alone, so that more of them change none.

    Args:
        matching: How; None leaves the ingredients as they are.
        context: The ingredients and their data.

    Raises:
        MergeError: If the matching chooses by held-out examples and there are none, or the
            network cannot be aligned.
    """
    if matching is None:
        return Alignment(context.states)
    context.check_matching(matching)
    found = [_aligned(matching, context, index) for index in range(1, len(context.states))]
    return Alignment(
        [context.states[0], *(state for (state, _), _ in found)],
        sum(seconds for _, seconds in found),
        tuple(choice for (_, choice), _ in found if choice is not None),
    )


def _aligned(
    matching: Matching, context: Context, index: int
) -> tuple[tuple[StateDict, MatchingChoice | None], float]:
    # The name too: a choice tells of which ingredient it is, and copies have one digest.
    name, digests = context.names[index], context.digests
    key = ("aligned", identity(matching), name, digests[0], digests[index])
    cached = context.cache.get(key, lambda: _align(matching, context, index))
    return cached.value, cached.seconds


def _align(
    matching: Matching, context: Context, index: int
) -> tuple[StateDict, MatchingChoice | None]:
    device, state = context.device, context.states[index]
    first = context.build(context.states[0]).to(device).eval()
    batches = context.statistics()
    spec = context.cache.get(
        ("spec", context.digests[0]),
        lambda: PermutationSpec.from_model(first, example_inputs(batches, device)),
    ).value
    # A head of another task must not say which units correspond.
    shared = () if context.joins_heads else context.heads
    headless = {**state, **{head: torch.zeros_like(state[head]) for head in shared}}
    seen: dict[str, Any] = {}

    def score(candidate: StateDict) -> float:
        return _held_out_score(context, candidate, seen)

    with torch.no_grad():
        found = matching.aligned(
            spec,
            first,
            context.build(headless).to(device).eval(),
            batches,
            score=score,
            progress=context.progress,
        )
    aligned = {name: value.cpu() for name, value in found.state.items()}
    heads = {head: context.states[0][head] for head in shared}
    choice = None
    if found.choice is not None and seen:
        chosen = dict(found.choice)
        scores = chosen.pop("scores", {})
        choice = MatchingChoice(
            context.names[index],
            chosen,
            scores,
            selected_on=validation_source(context.data),
            **seen,
        )
    return {**aligned, **heads}, choice


def _held_out_score(context: Context, state: StateDict, seen: dict[str, Any]) -> float:
    """The held-out accuracy of the mean of both networks, recalibrated as suits the network."""
    first = context.states[0]
    aligned = {name: value.cpu() for name, value in state.items()}
    both = context.under_all_heads([first, aligned])
    module = context.build(interpolate(both[0], both[1], 0.5))
    recalibration = own_recalibration(module)
    recalibration.check(context.module, "choice of gamma")
    recalibration.prepare([first, aligned], context)(module, None)
    value, seen["score"], seen["examples"] = validate(module, context.data, context.trainer())
    return value
