"""What a MergeModule is made of: ingredients read and checked, and which part each one gives."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from lightning_merge.aggregate.name_weights import compiled
from lightning_merge.checkpoint import (
    StateDict,
    check_ingredients,
    digest,
    prefixed,
    read_checkpoint,
    state_of,
    tensors_of,
)
from lightning_merge.errors import ConfigError
from lightning_merge.modules.module_state import fit_module, set_extra_state, shape_lazy_layers
from lightning_merge.preprocessing import warn_of_other_classes
from lightning_merge.state_dicts import is_finite


@dataclass(frozen=True)
class Ingredients:
    """Checked state dicts with the module's names.

    Attributes:
        states: One for each ingredient; what is kept has its own values where they fit the
            module, else zeros.
        digests: The SHA-256 of each one, as it was given.
        merged: The module's parameters that are merged, by name.
        kept: Which ingredient a parameter or buffer is taken from, by name. What is in no state,
            because the module leaves it out of its files, stays as the module has it.
    """

    states: list[StateDict]
    digests: list[str]
    merged: dict[str, nn.Parameter]
    kept: dict[str, int]


def read_ingredients(
    checkpoints: Sequence[str | Path | Mapping[str, Tensor] | nn.Module],
    module: LightningModule,
    keep: Sequence[str | None],
) -> Ingredients:
    """Reads the ingredients of a module, and builds the module where it has not been.

    What the module makes in `configure_model` is made, and its extra state is set to that of the
    first ingredient. `keep` has, for some of the ingredients, a regular expression that matches the
    whole names of what is taken from it alone. A `MergeError` if a file cannot be read, there is
    nothing to merge, or what is merged differs in shape or holds NaN.
    """
    _check(module)
    module.configure_model()
    files = [read_checkpoint(one) if isinstance(one, str | Path) else None for one in checkpoints]
    raw = [
        state_of(one) if file is None else {**file.state_dict, **file.extra}
        for one, file in zip(checkpoints, files, strict=True)
    ]
    names = [
        str(one) if isinstance(one, str | Path) else f"ingredient {position}"
        for position, one in enumerate(checkpoints, start=1)
    ]
    if not any(keep):
        # A head that is kept whole is of one network's classes.
        warn_of_other_classes(names, [file and file.content for file in files])
    for state in raw[:1]:
        shape_lazy_layers(module, state)
    expected = tensors_of(module)
    given = [prefixed(tensors_of(state), expected) for state in raw]
    if not module.strict_loading and all(expected.keys() & state.keys() for state in given):
        given = [{n: v for n, v in state.items() if n in expected} for state in given]
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
    states = [fit_module(state, module, name) for state, name in zip(common, names, strict=True)]
    kept = {name: k for name, k in kept.items() if name in states[k]}
    for index, (state, own) in enumerate(zip(states, given, strict=True)):
        for name, k in kept.items():
            if name in own and own[name].shape == expected[name].shape:
                state[name] = own[name]
            elif index != k:
                state[name] = torch.zeros_like(expected[name])
    set_extra_state(module, raw[0])
    merged, own_means = {}, _running_means(module)
    for name, parameter in module.named_parameters():
        if name in kept or name in own_means or name not in states[0]:
            continue
        if is_finite(states[0][name]):
            merged[name] = parameter
        else:
            # A constant mask: infinities are the same in all, and have no mean.
            kept[name] = 0
    if not merged:
        raise ConfigError(
            f"{type(module).__name__} has no parameter to merge: its state dict names none, or "
            "keep_a and keep_b match all; keep fewer"
        )
    return Ingredients(states, [digest(state) for state in given], merged, kept)


def _check(module: object) -> None:
    if not isinstance(module, LightningModule):
        raise ConfigError(
            f"{type(module).__module__}.{type(module).__name__} is no LightningModule of "
            "lightning.pytorch: hand over one, which has its steps"
        )


def check_automatic(module: LightningModule) -> None:
    """Checks that Lightning optimizes what is to train a merge; a `ConfigError` if not."""
    if not module.automatic_optimization:
        raise ConfigError(
            f"{type(module).__name__} optimizes manually: merging needs a module with "
            "automatic_optimization = True"
        )


def _kept(
    module: nn.Module, expected: Mapping[str, Tensor], keep: Sequence[str | None]
) -> dict[str, int]:
    kept: dict[str, int] = {}
    for index, pattern in enumerate(keep):
        if pattern is None:
            continue
        option = f"keep_{'ab'[index]}"
        whole = compiled(pattern, option)
        matching = [name for name in expected if whole.fullmatch(name)]
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


def _running_means(module: nn.Module) -> set[str]:
    """Names of parameters that the module itself writes, as means of what others become."""
    return {
        f"{owner}.{name}" if owner else name
        for owner, part in module.named_modules()
        if isinstance(part, AveragedModel)
        for name, _ in part.named_parameters()
    }


def _tied(module: nn.Module, names: Sequence[str]) -> list[str]:
    """The other names of the same parameters."""
    every = list(module.named_parameters(remove_duplicate=False))
    chosen = {id(parameter) for name, parameter in every if name in names}
    return [name for name, parameter in every if id(parameter) in chosen]
