"""Merging networks of different tasks: their bodies, with the first one's head.

Rethinking Weight-Averaged Model-merging (Wang et al.), Sec. 6.2.3 and Table 2.
"""

import re
from collections.abc import Mapping, Sequence

from torch import Tensor

from lightning_merge.checkpoint import StateDict
from lightning_merge.errors import ArchitectureMismatchError, ConfigError


def share_head(
    states: Sequence[Mapping[str, Tensor]], names: Sequence[str], heads: str = "first"
) -> tuple[list[StateDict], list[str]]:
    """Gives every network the first one's head.

    They are then of one architecture and of the first one's task: their average has the mean
    body and the first head, and an ensemble asks each body through that head.

    Args:
        states: The state dicts.
        names: What to call each of them in an error.
        heads: `first`: the head is the layer whose tensors differ in shape. Anything else is
            a regular expression, which is looked for in the tensors' names: for heads of
            several layers, or of the same number of classes.

    Returns:
        The state dicts, the first as it is; and the names of the tensors that are the first
        one's in all of them.

    Raises:
        ConfigError: If there is no such tensor, or the expression is none.
        ArchitectureMismatchError: If tensors of several layers differ in shape.

    Example:
        >>> import torch
        >>> a = {"body": torch.zeros(2), "head.weight": torch.zeros(3, 2)}
        >>> b = {"body": torch.ones(2), "head.weight": torch.ones(5, 2)}
        >>> share_head([a, b], ["a", "b"])[1]
        ['head.weight']
    """
    first = states[0]
    kept = _differing(states, names) if heads == "first" else _matching(first, heads)
    # What only the others' heads have (a bias, another layer) goes with them.
    return [
        dict(first),
        *(
            {
                **{key: value for key, value in state.items() if not _gone(key, first, heads)},
                **{key: first[key] for key in kept},
            }
            for state in states[1:]
        ),
    ], kept


def _differing(states: Sequence[Mapping[str, Tensor]], names: Sequence[str]) -> list[str]:
    first = states[0]
    kept: list[str] = []
    for state, name in zip(states[1:], names[1:], strict=True):
        for key in first:
            if key in state and state[key].shape != first[key].shape and key not in kept:
                kept.append(key)
                if key.rpartition(".")[0] != kept[0].rpartition(".")[0]:
                    raise ArchitectureMismatchError(
                        f"{names[0]} and {name} differ in more than the head: in '{kept[0]}' and "
                        f"in '{key}'; where both belong to it, give heads a regular expression "
                        "of the names"
                    )
    if not kept:
        raise ConfigError(
            "heads: first keeps the layer whose shapes differ, and none does: leave heads out, or "
            "give it a regular expression of the names to keep"
        )
    layer = kept[0].rpartition(".")[0]
    return [key for key in first if key.rpartition(".")[0] == layer]


def _matching(first: Mapping[str, Tensor], heads: str) -> list[str]:
    try:
        kept = [key for key in first if re.search(heads, key)]
    except re.error as error:
        raise ConfigError(f"heads: '{heads}' is no regular expression: {error}") from error
    if not kept:
        raise ConfigError(
            f"heads: '{heads}' is found in no tensor's name; the last one is '{list(first)[-1]}'"
        )
    return kept


def _gone(key: str, first: Mapping[str, Tensor], heads: str) -> bool:
    return key not in first and heads != "first" and re.search(heads, key) is not None
