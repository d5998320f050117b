"""A context from what a user has: files or networks, a data module or its configuration."""

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from torch import Tensor, nn

from lightning_merge.aggregate.heads import share_head
from lightning_merge.checkpoint import (
    Checkpoint,
    StateDict,
    check_ingredients,
    digest,
    fit_names,
    prefixed,
    read_checkpoint,
)
from lightning_merge.errors import ConfigError
from lightning_merge.recipe.build import build_data, build_module
from lightning_merge.recipe.context import Context
from lightning_merge.recipe.described_module import module_of

Network = str | Path | Mapping[str, Tensor] | nn.Module
"""An ingredient: a checkpoint's path, a state dict, or the network itself."""


def open_context(
    networks: Sequence[Network],
    data: LightningDataModule | Mapping[str, Any],
    trainer: Callable[..., Trainer],
    model: LightningModule | Mapping[str, Any] | None = None,
    heads: str | None = None,
    **settings: Any,
) -> Context:
    """The context of some ingredients and their data.

    Args:
        networks: The ingredients.
        data: The data module, or its `class_path` and `init_args`.
        trainer: Makes Trainers.
        model: The ingredients' LightningModule, or its `class_path` and `init_args`; None for
            what the first network is, or its checkpoint describes.
        heads: Which tensors are the first ingredient's in all of them (`share_head`); None for
            none.
        **settings: `seed`, `statistics_examples` and `progress` of `Context`.

    Raises:
        MergeError: If a checkpoint cannot be read or does not fit.
    """
    read = [_read(network, number) for number, network in enumerate(networks, start=1)]
    names = [str(one.path) for one in read]
    module = _module(networks, read, model)
    expected = module.state_dict()
    own = [prefixed(one.state_dict, expected) for one in read]
    shared, kept = share_head(own, names, heads) if heads else (own, [])
    check_ingredients(shared, names)
    states = [fit_names(state, expected, name) for state, name in zip(shared, names, strict=True)]
    return Context(
        module,
        states,
        names,
        data if isinstance(data, LightningDataModule) else build_data(data),
        trainer,
        heads=kept,
        # Of the files as they are, not of what sharing a head made of them.
        given_digests=[digest(state) for state in own],
        **settings,
    )


def _read(network: Network, number: int) -> Checkpoint:
    if isinstance(network, str | Path):
        return read_checkpoint(network)
    state: Mapping[str, Tensor] = (
        network.state_dict() if isinstance(network, nn.Module) else network
    )
    copied: StateDict = {name: value.detach().cpu().clone() for name, value in state.items()}
    return Checkpoint(Path(f"network {number}"), copied)


def _module(
    networks: Sequence[Network],
    read: Sequence[Checkpoint],
    model: LightningModule | Mapping[str, Any] | None,
) -> LightningModule:
    if isinstance(model, LightningModule):
        return copy.deepcopy(model)
    if model is not None:
        return build_module(model)
    if not networks:
        raise ConfigError("there are no networks to merge: give two or more")
    if isinstance(networks[0], LightningModule):
        return copy.deepcopy(networks[0])
    return module_of(read[0])
