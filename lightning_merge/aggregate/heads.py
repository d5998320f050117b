"""Merging networks of different tasks: their bodies, with the first one's head or with all.

Rethinking Weight-Averaged Model-merging (Wang et al.), Sec. 6.2.3 and Table 2.
"""

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lightning_merge.aggregate.name_weights import compiled
from lightning_merge.checkpoint import StateDict
from lightning_merge.errors import ArchitectureMismatchError, ConfigError


def share_head(
    states: Sequence[Mapping[str, Tensor]], names: Sequence[str], heads: str = "first"
) -> tuple[list[StateDict], list[str]]:
    """Gives every network the first one's head.

    They are then of one architecture and of the first one's task: their average has the mean
    body and the first head, and an ensemble asks each body through that head.

    With `heads="first"` the head is the layer whose tensors differ in shape. Anything else is a
    regular expression, which is looked for in the tensors' names: for heads of several layers, or
    of the same number of classes. Returned with the state dicts, the first as it is, are the names
    of the tensors that are the first one's in all of them.

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


def pad_heads(
    states: Sequence[Mapping[str, Tensor]], names: Sequence[str], expected: Mapping[str, Tensor]
) -> tuple[list[StateDict], list[str]]:
    """Gives every network a head with room for the classes of all of them, in their order.

    A head's rows (its first axis) are the network's own where its classes are, and 0 elsewhere.
    So the networks are of one architecture, and aligning one moves its rows along with its units;
    afterwards `join_heads` puts all rows into each.

    Args:
        states: The state dicts; their classes are different ones, also where they are as many.
        names: What to call each of them in an error.
        expected: The state dict of a network of all classes. Its head are those tensors that
            have as many rows as the networks' together.

    Returns:
        The state dicts; and the names of the heads' tensors.

    Raises:
        ConfigError: If no tensor has as many rows as the networks' together.
        ArchitectureMismatchError: If one differs in shape, and is no head.
    """
    heads = [
        key
        for key, whole in expected.items()
        if all(key in state and state[key].dim() for state in states)
        and len(states[0][key]) < sum(len(state[key]) for state in states) == len(whole)
    ]
    if not heads:
        raise ConfigError(
            f"heads: join wants a network of all {len(states)} networks' classes together, and "
            "the model has no layer of so many: set its num_classes to their sum"
        )
    padded: list[StateDict] = [dict(state) for state in states]
    for key in heads:
        row = 0
        for state, own, name in zip(padded, states, names, strict=True):
            if own[key].shape[1:] != expected[key].shape[1:]:
                raise ArchitectureMismatchError(
                    f"{name}: '{key}' has the shape {tuple(own[key].shape)}, which is no part of "
                    f"{tuple(expected[key].shape)}: merge networks that differ in classes alone"
                )
            state[key] = own[key].new_zeros(expected[key].shape)
            state[key][row : row + len(own[key])] = own[key]
            row += len(own[key])
    return padded, heads


def join_heads(states: Sequence[StateDict], heads: Sequence[str]) -> list[StateDict]:
    """Puts the heads of all networks side by side into each of them.

    Args:
        states: What `pad_heads` gave, perhaps aligned since.
        heads: The names of the heads' tensors.

    Returns:
        State dicts that differ in their bodies alone: their average is one network of all classes.

    Example:
        >>> import torch
        >>> a = {"body": torch.zeros(2), "head": torch.ones(1, 2)}
        >>> b = {"body": torch.ones(2), "head": 2 * torch.ones(1, 2)}
        >>> whole = {"body": torch.zeros(2), "head": torch.zeros(2, 2)}
        >>> join_heads(*pad_heads([a, b], ["a", "b"], whole))[0]["head"].tolist()
        [[1.0, 1.0], [2.0, 2.0]]
    """
    # Each row is one network's; the others have zeros there.
    joined = {head: torch.stack([state[head] for state in states]).sum(dim=0) for head in heads}
    return [{**state, **joined} for state in states]


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
    pattern = compiled(heads, "heads")
    kept = [key for key in first if pattern.search(key)]
    if not kept:
        raise ConfigError(
            f"heads: '{heads}' is found in no tensor's name; the last one is '{list(first)[-1]}'"
        )
    return kept


def _gone(key: str, first: Mapping[str, Tensor], heads: str) -> bool:
    return key not in first and heads != "first" and re.search(heads, key) is not None
