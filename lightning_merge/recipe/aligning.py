"""Aligning a context's ingredients to the first one, each once."""

import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule

from lightning_merge.aggregate import interpolate
from lightning_merge.align import Matching, PermutationSpec
from lightning_merge.checkpoint import StateDict, tensors_of
from lightning_merge.errors import ConfigError
from lightning_merge.loaders import Transferred, example_inputs
from lightning_merge.recipe.cache import identity
from lightning_merge.recipe.choice import Choice
from lightning_merge.recipe.context import Context
from lightning_merge.recipe.held_out import Score, validate
from lightning_merge.recipe.kept import Alignment
from lightning_merge.recipe.recalibration import keeps_statistics, own_recalibration
from lightning_merge.symmetry.spec import Symmetries


def align(matching: Matching | None, context: Context) -> Alignment:
    """Aligns every ingredient to the first one: alone, or all at once where a matching is joint.

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
    if matching.joint and len(context.states) > 2:
        joint = ("aligned", identity(matching), *context.digests)
        return _kept(context, joint, partial(_align_jointly, matching, context))
    states, seconds = [context.states[0]], 0.0
    choices: tuple[Choice, ...] = ()
    for index in range(1, len(context.states)):
        # The name too: a choice names its ingredient, and copies have one digest.
        name, digests = context.names[index], context.digests
        key = ("aligned", identity(matching), name, digests[0], digests[index])
        found = _kept(context, key, partial(_align, matching, context, index))
        states += found.states
        seconds += found.seconds
        choices += found.choices
    return Alignment(states, seconds, choices)


_Found = tuple[Sequence[StateDict], tuple[Choice, ...]]


def _kept(context: Context, key: tuple[Hashable, ...], make: Callable[[], _Found]) -> Alignment:
    """What is known of an alignment, in this process or beyond it; made where nothing is."""

    def made() -> Alignment:
        start = time.perf_counter()
        states, choices = make()
        return Alignment(states, time.perf_counter() - start, choices)

    keep = context.keep
    return context.recall(key, made if keep is None else lambda: keep(key, made)).value


def _align(matching: Matching, context: Context, index: int) -> _Found:
    device, state = context.device, context.states[index]
    first = context.build(context.states[0]).to(device).eval()
    batches = context.statistics()
    spec = spec_of(context, first, batches, matching.symmetries)
    shared, headless = _headless(context, state)
    scores: list[Score] = []

    def score(candidate: StateDict) -> float:
        scores.append(_held_out_score(context, candidate))
        return scores[-1].value

    with torch.no_grad():
        found = matching.aligned(
            spec,
            first,
            context.build(headless).to(device).eval(),
            batches,
            score=score,
            progress=context.progress,
        )
    aligned = {name: value.cpu() for name, value in tensors_of(found.state).items()}
    heads = {head: context.states[0][head] for head in shared}
    chosen = found.choice is not None and scores
    choices = (_choice(found.choice or {}, scores[-1], context, index),) if chosen else ()
    return [{**aligned, **heads}], choices


def _headless(context: Context, state: StateDict) -> tuple[Sequence[str], StateDict]:
    """The heads of several tasks, and an ingredient with zeros in their place.

    A head of another task must not decide which units correspond.
    """
    shared = () if context.joins_heads else context.heads
    return shared, {**state, **{head: torch.zeros_like(state[head]) for head in shared}}


def _align_jointly(matching: Matching, context: Context) -> _Found:
    device, first = context.device, context.states[0]
    module = context.build(first).to(device).eval()
    spec = spec_of(context, module, context.statistics(), matching.symmetries)
    others = [_headless(context, state) for state in context.states[1:]]
    states = [first, *(state for _, state in others)]
    moved = [{name: value.to(device) for name, value in state.items()} for state in states]
    with torch.no_grad():
        found = matching.align_many(spec, moved, progress=context.progress)
    heads = {head: first[head] for shared, _ in others for head in shared}
    aligned = [{name: value.cpu() for name, value in state.items()} for state in found[1:]]
    return [first, *({**state, **heads} for state in aligned)], ()


def spec_of(
    context: Context,
    first: LightningModule,
    batches: Transferred,
    symmetries: Symmetries = "permutation",
) -> PermutationSpec:
    """The spec of the ingredients' architecture, derived once."""
    return context.recall(
        ("spec", context.digests[0], symmetries),
        lambda: PermutationSpec.from_model(
            first, example_inputs(batches, context.device), symmetries=symmetries
        ),
    ).value


def _choice(found: Mapping[str, Any], score: Score, context: Context, index: int) -> Choice:
    chosen = {name: value for name, value in found.items() if name != "scores"}
    values = ", ".join(f"{name} {value:g}" for name, value in chosen.items())
    source = _validation_source(context.data)
    return Choice(
        f"{values}, chosen on {score.examples:,} examples: {source}",
        {
            **chosen,
            "ingredient": context.names[index],
            "scores": found.get("scores", {}),
            "score": score.name,
            "selected_on": source,
            "examples": score.examples,
        },
    )


def _held_out_score(context: Context, state: StateDict) -> Score:
    """The held-out score of the mean of both networks, recalibrated as suits the network.

    What suits none, a network without BatchNorm and without biases to shift, is scored as it is.
    """
    first = context.states[0]
    aligned = {name: value.cpu() for name, value in tensors_of(state).items()}
    both = context.under_all_heads([first, aligned])
    module = context.build(interpolate(both[0], both[1], 0.5))
    recalibration = own_recalibration(module)
    # REPAIR refuses what it cannot correct; a reset that fails is an error as elsewhere.
    unsuited = () if keeps_statistics(module) else (ConfigError,)
    with suppress(*unsuited):
        recalibration.check(context.module, "choice of gamma")
        recalibration.prepare([first, aligned], context)(module, None)
    return validate(module, context.data, context.trainer())


def _validation_source(data: LightningDataModule) -> str:
    """Where a data module's validation examples come from, in words."""
    share = getattr(data, "held_out", None)
    if share is None:
        return f"the validation data of {type(data).__name__}"
    return "held out of train" if share > 0 else "the official validation split"
