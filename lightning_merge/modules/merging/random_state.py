"""The state of every random generator that training draws from, those of loaders too."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from lightning_merge import randomness

RandomState = dict[str, Any]


def random_state(loaders: Iterable[Any] = ()) -> RandomState:
    """What torch, the GPU, numpy, Python and the generators of some loaders draw next.

    Tensors, numbers and lists: `torch.load(weights_only=True)` reads them back.
    """
    return {
        **randomness.random_state(),
        # This rank's device alone: the run may go on with other ones.
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,
        "loaders": [generator.get_state() for generator in _generators(loaders)],
    }


def set_random_state(state: RandomState, loaders: Iterable[Any] = ()) -> None:
    """Makes all of them draw what they would have drawn; the loaders are like those before."""
    randomness.set_random_state({**state, "cuda": []})
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    # Loaders without a state of their own here are being made anew, and begin as they did.
    for generator, own in zip(_generators(loaders), state["loaders"], strict=False):
        generator.set_state(own)


def _generators(loaders: Iterable[Any]) -> Sequence[torch.Generator]:
    found: dict[int, torch.Generator] = {}
    for loader in loaders:
        batches = getattr(loader, "batch_sampler", None)
        for owner in (loader, getattr(loader, "sampler", None), getattr(batches, "sampler", None)):
            generator = getattr(owner, "generator", None)
            if isinstance(generator, torch.Generator):
                found[id(generator)] = generator
    return list(found.values())
