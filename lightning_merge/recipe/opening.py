"""A context from what a user has: files or networks, a data module or its configuration."""

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from torch import Tensor, nn

from lightning_merge.aggregate.heads import pad_heads, share_head
from lightning_merge.checkpoint import (
    Checkpoint,
    StateDict,
    check_ingredients,
    digest,
    prefixed,
    read_checkpoint,
    tensors_of,
)
from lightning_merge.division import warn_of_other_divisions
from lightning_merge.errors import ConfigError, printable
from lightning_merge.loaders import example_inputs, statistics_batches_of
from lightning_merge.modules import ImageClassifier
from lightning_merge.modules.module_state import build, filled, set_extra_state, shape_lazy_layers
from lightning_merge.preprocessing import warn_of_other_classes
from lightning_merge.recipe.build import build_data, build_module
from lightning_merge.recipe.context import Context
from lightning_merge.recipe.described_module import module_of
from lightning_merge.recipe.other_widths import of_widest
from lightning_merge.short_names import short_names

Network = str | Path | Mapping[str, Tensor] | nn.Module
"""An ingredient: a checkpoint's path, a state dict, or the network itself."""


def open_context(
    networks: Sequence[Network],
    data: LightningDataModule | Mapping[str, Any],
    trainer: Callable[..., Trainer],
    model: LightningModule | Mapping[str, Any] | None = None,
    heads: str | None = None,
    widen: bool = False,
    **settings: Any,
) -> Context:
    """The context of some ingredients and their data.

    Args:
        networks: The ingredients.
        data: The data module, or its `class_path` and `init_args`.
        trainer: Makes Trainers.
        model: The ingredients' LightningModule, or its `class_path` and `init_args`; None for
            what the first network is, or its checkpoint describes.
        heads: Which tensors are the first ingredient's in all of them (`share_head`); `join` for
            the heads of all side by side (`pad_heads`); None for none.
        widen: Whether narrower ingredients are brought to the shapes of the widest.
        **settings: `seed`, `statistics_examples` and `progress` of `Context`.
    """
    read = [_read(network, number) for number, network in enumerate(networks, start=1)]
    names = [str(one.path) for one in read]
    short = short_names(names)
    data = data if isinstance(data, LightningDataModule) else build_data(data)
    given = [one.state_dict for one in read]
    joins = heads == "join"
    if widen:
        if joins:
            raise ConfigError(
                "--heads join wants networks of one width, and --widen is for networks of the same "
                "classes: leave one of them out"
            )
        if model is not None:
            raise ConfigError(
                "with --widen each network is made as its own checkpoint describes it, and --model "
                "is one for all: leave --model out, or bring them to one width beforehand "
                "(lightning_merge.align.widened)"
            )
        modules = [
            _module([network], [one], None) for network, one in zip(networks, read, strict=True)
        ]
        data.prepare_data()
        data.setup("fit")
        batches = statistics_batches_of(data, modules[0], torch.device("cpu"))
        model, given = of_widest(modules, given, short, example_inputs(batches, "cpu"))
    described = joins and model is None and read
    module = _of_all_classes(read) if described else _module(networks, read, model)
    for one in read[:1]:
        build(module, one.state_dict)
        shape_lazy_layers(module, one.state_dict)
        set_extra_state(module, {**one.state_dict, **one.extra})
    expected = module.state_dict()
    own = [prefixed(state, expected) for state in given]
    if joins:
        shared, kept = pad_heads(own, names, expected)
    else:
        shared, kept = share_head(own, names, heads) if heads else (own, [])
    check_ingredients(shared, names)
    states = [filled(state, module, name) for state, name in zip(shared, names, strict=True)]
    warn_of_other_divisions(short, [one.content for one in read], data)
    # Of the files as they are, not of what sharing a head or widening made of them.
    digests = [digest(prefixed(one.state_dict, expected)) for one in read]
    _warn_of_equals(short, digests)
    context = Context(
        module,
        states,
        short,
        data,
        trainer,
        heads=kept,
        joins_heads=joins,
        given_digests=digests,
        **settings,
    )
    # With one head for all, the others' own classes are left behind.
    count = 1 if kept and not joins else len(read)
    contents = [one.content for one in read[:count]]
    warn_of_other_classes(short[:count], contents, context.data, joins)
    return context


def _warn_of_equals(names: Sequence[str], digests: Sequence[str]) -> None:
    first: dict[str, str] = {}
    for name, one in zip(names, digests, strict=True):
        if one in first:
            warnings.warn(
                f"{printable(name)} has the same weights as {printable(first[one])}, so one "
                "network counts twice; trainings differ by their seeds (`--seed_everything`)",
                stacklevel=3,
            )
        first.setdefault(one, name)


def _read(network: Network, number: int) -> Checkpoint:
    if isinstance(network, str | Path):
        return read_checkpoint(network)
    state: Mapping[str, Tensor] = (
        network.state_dict() if isinstance(network, nn.Module) else network
    )
    copied: StateDict = {n: v.detach().cpu().clone() for n, v in tensors_of(state).items()}
    extra = {name: value for name, value in state.items() if name not in copied}
    # Of a class of this package, from which a module of more classes can be made.
    known = {"hyper_parameters": network.hparams} if type(network) is ImageClassifier else {}
    return Checkpoint(Path(f"network {number}"), copied, known, extra)


def _of_all_classes(read: Sequence[Checkpoint]) -> LightningModule:
    total = 0
    for one in read:
        count = one.hyper_parameters.get("num_classes")
        if not isinstance(count, int):
            raise ConfigError(
                f"heads: join wants a network of all classes, and {one.path} does not say how many "
                "it has: give the model of all of them, with --model and --model.init_args..."
            )
        total += count
    described = {**read[0].hyper_parameters, "num_classes": total}
    return module_of(Checkpoint(Path("heads: join"), {}, {"hyper_parameters": described}))


def _module(
    networks: Sequence[Network],
    read: Sequence[Checkpoint],
    model: LightningModule | Mapping[str, Any] | None,
) -> LightningModule:
    # A network that was evaluated last would be trained with the statistics of its BatchNorm, and
    # without dropout: in the mode of a new one it learns as those of files do.
    if isinstance(model, LightningModule):
        for one in read[:1]:
            # Without shapes they cannot be copied.
            shape_lazy_layers(model, one.state_dict)
        return copy.deepcopy(model).train()
    if model is not None:
        return build_module(model)
    if not networks:
        raise ConfigError("there are no networks to merge: give two or more")
    if isinstance(networks[0], LightningModule):
        return copy.deepcopy(networks[0]).train()
    return module_of(read[0])
