"""The network that the ingredients were fine-tuned from."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from lightning_merge.aggregate import LazyTaskVector
from lightning_merge.aggregate.inputs import is_numeric
from lightning_merge.checkpoint import StateDict, prefixed, read_checkpoint
from lightning_merge.errors import ConfigError
from lightning_merge.modules.module_state import filled
from lightning_merge.recipe.context import Context

START = "start"
"""A recipe's `pretrained`, instead of a path, for the context's own."""


def check_pretrained(pretrained: str | None, context: Context, what: str) -> None:
    """Checks that it is known from what network the ingredients were fine-tuned."""
    if pretrained not in (None, START) and not Path(pretrained).exists():
        read_checkpoint(pretrained)
    if pretrained in (None, START) and context.pretrained is None:
        raise ConfigError(
            f"{what} needs the network that the ingredients were fine-tuned from: set its "
            "`pretrained` to that checkpoint, or give the study a `start`"
        )


def pretrained_state(pretrained: str | None, context: Context, what: str) -> StateDict:
    """The pre-trained weights, with the names (and the shared heads) of the ingredients.

    Those of a checkpoint; None or `start` for the context's: that of its tasks, or the start of its
    study. `what` needs it, for the message. They are as wide as the ingredients': merges have the
    pre-trained network's types, and one of 16 bits would round what others were trained to.
    """
    check_pretrained(pretrained, context, what)
    if pretrained in (None, START):
        assert context.pretrained is not None
        return _as_wide(context.pretrained, context.states)
    expected = context.module.state_dict()
    state = prefixed(read_checkpoint(pretrained).state_dict, expected)
    first = context.under_all_heads(context.states)[0]
    heads = {name: first[name] for name in context.heads}
    return _as_wide(filled({**state, **heads}, context.module, pretrained), context.states)


def _as_wide(start: StateDict, states: Sequence[StateDict]) -> StateDict:
    def widened(name: str, value: Tensor) -> Tensor:
        if not is_numeric(value):
            return value
        own = [one[name] for one in states if is_numeric(one[name])]
        return value.to(min((one.dtype for one in (value, *own)), key=lambda k: torch.finfo(k).eps))

    return {name: widened(name, value) for name, value in start.items()}


def task_vectors(
    pretrained: StateDict, states: Sequence[StateDict], context: Context
) -> list[LazyTaskVector]:
    """What training changed of everything but the heads that all ingredients share."""
    (start,) = without(context.heads, [pretrained])
    return [LazyTaskVector(state, start) for state in without(context.heads, states)]


def without(names: Iterable[str], states: Sequence[StateDict]) -> list[StateDict]:
    """The state dicts without some of their tensors: heads that all of them share."""
    left = set(names)
    return [{name: value for name, value in state.items() if name not in left} for state in states]
