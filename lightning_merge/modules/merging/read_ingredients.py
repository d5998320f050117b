"""What a MergeModule is made of: ingredients read and checked, and which part each one gives."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from lightning_merge.checkpoint import (
    StateDict,
    check_ingredients,
    digest,
    fit_names,
    prefixed,
    read_checkpoint,
)
from lightning_merge.errors import ConfigError


@dataclass(frozen=True)
class Ingredients:
    """Checked state dicts with the module's names.

    Attributes:
        states: One for each ingredient; what is kept has its own values where they fit the
            module, else zeros.
        digests: The SHA-256 of each one, as it was given.
        kept: Which ingredient a parameter or buffer is taken from, by name; what is not
            here is merged.
    """

    states: list[StateDict]
    digests: list[str]
    kept: dict[str, int]


def read_ingredients(
    checkpoints: Sequence[str | Path | Mapping[str, Tensor]],
    module: nn.Module,
    keep: Sequence[str | None],
) -> Ingredients:
    """Reads the ingredients of a module.

    Args:
        checkpoints: Paths, or state dicts with the module's names.
        module: The module.
        keep: For some of the ingredients, a regular expression that matches the whole names
            of what is taken from it alone.

    Returns:
        The ingredients.

    Raises:
        ConfigError: If an expression is none, matches nothing, or what another one keeps.
        MergeError: If a file cannot be read, or what is merged differs in shape or holds NaN.
    """
    expected: dict[str, Tensor] = module.state_dict()
    given, names = [], []
    for position, checkpoint in enumerate(checkpoints, start=1):
        if isinstance(checkpoint, Mapping):
            given.append(prefixed(checkpoint, expected))
            names.append(f"ingredient {position}")
        else:
            given.append(prefixed(read_checkpoint(checkpoint).state_dict, expected))
            names.append(str(checkpoint))
    kept = _kept(module, expected, keep)
    # Each with what the merge will have, so that a head that nobody keeps may differ.
    common = [
        {
            **{name: value for name, value in state.items() if name not in kept},
            **{name: given[k][name] for name, k in kept.items() if name in given[k]},
        }
        for state in given
    ]
    check_ingredients(common, names)
    states = [fit_names(state, expected, name) for state, name in zip(common, names, strict=True)]
    for state, own in zip(states, given, strict=True):
        for name in kept:
            fits = name in own and own[name].shape == expected[name].shape
            state[name] = own[name] if fits else torch.zeros_like(expected[name])
    return Ingredients(states, [digest(state) for state in given], kept)


def _kept(
    module: nn.Module, expected: Mapping[str, Tensor], keep: Sequence[str | None]
) -> dict[str, int]:
    kept: dict[str, int] = {}
    for index, pattern in enumerate(keep):
        if pattern is None:
            continue
        option = f"keep_{'ab'[index]}"
        try:
            matching = [name for name in expected if re.fullmatch(pattern, name)]
        except re.error as error:
            raise ConfigError(
                f"{option} '{pattern}' is no regular expression: {error}; escape what is meant "
                "literally"
            ) from error
        if not matching:
            some = next(iter(expected), "none")
            raise ConfigError(
                f"{option} '{pattern}' matches no parameter; write it for whole names, such as "
                f"'{some}'"
            )
        for name in [*matching, *_tied(module, matching)]:
            if kept.setdefault(name, index) != index:
                raise ConfigError(f"'{name}' is matched by keep_a and by keep_b; keep it from one")
    return kept


def _tied(module: nn.Module, names: Sequence[str]) -> list[str]:
    """The other names of the same parameters."""
    every = list(module.named_parameters(remove_duplicate=False))
    chosen = {id(parameter) for name, parameter in every if name in names}
    return [name for name, parameter in every if id(parameter) in chosen]
