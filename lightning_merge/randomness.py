"""The states of random generators: kept while data are read, and stored with a run."""

import os
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch


def random_state() -> dict[str, Any]:
    """What torch, all GPUs that are in use, numpy and Python draw next.

    They are tensors, numbers and lists: `torch.load(weights_only=True)` reads them back.
    """
    version, words, gauss = random.getstate()
    # Augmentations and data sets still draw from numpy's global generator.
    kind, key, *rest = np.random.get_state(legacy=True)  # noqa: NPY002
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        "python": [version, torch.tensor(words, dtype=torch.int64), gauss],
        "numpy": [kind, torch.tensor(np.asarray(key, dtype=np.int64)), *rest],
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Makes all of them draw what they would have drawn; GPUs only where there are as many."""
    torch.set_rng_state(state["torch"].cpu())
    if len(state["cuda"]) == torch.cuda.device_count() > 0:
        torch.cuda.set_rng_state_all([one.cpu() for one in state["cuda"]])
    version, words, gauss = state["python"]
    # Earlier versions stored them as a list.
    random.setstate((version, tuple(torch.as_tensor(words).tolist()), gauss))
    kind, key, *rest = state["numpy"]
    np.random.set_state((kind, key.numpy().astype(np.uint32), *rest))  # noqa: NPY002


@contextmanager
def isolated_randomness(*loaders: Any) -> Iterator[None]:
    """Restores every random generator to its earlier state on exit.

    Covers those of torch (the current GPU's too), numpy and Python, and those of the loaders.
    """
    with ExitStack() as stack:
        stack.callback(torch.set_rng_state, torch.get_rng_state())
        if torch.cuda.is_initialized():
            stack.callback(torch.cuda.set_rng_state, torch.cuda.get_rng_state())
        stack.callback(np.random.set_state, np.random.get_state())  # noqa: NPY002
        stack.callback(random.setstate, random.getstate())
        stack.enter_context(kept_generators(*loaders))
        yield


@contextmanager
def randomness_of_caller() -> Iterator[None]:
    """Restores the random generators on exit, and the seed that Lightning keeps for workers.

    That is what `seed_everything` sets: `PL_GLOBAL_SEED` and `PL_SEED_WORKERS`.
    """
    noted = {name: os.environ.get(name) for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS")}
    with isolated_randomness():
        try:
            yield
        finally:
            for name, value in noted.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value


@contextmanager
def kept_generators(*loaders: Any) -> Iterator[None]:
    """Restores the random generators of loaders to their earlier state on exit.

    Covers those that a DataLoader, its sampler or its batch sampler has as attributes: a training
    run that shares them continues as if nothing had been drawn. What is no DataLoader is ignored.
    """
    with ExitStack() as stack:
        for loader in loaders:
            batches = getattr(loader, "batch_sampler", None)
            samplers = getattr(loader, "sampler", None), getattr(batches, "sampler", None)
            for owner in (loader, batches, *samplers):
                for value in getattr(owner, "__dict__", {}).values():
                    restore = _restoring(value)
                    if restore is not None:
                        stack.callback(restore)
        yield


def _restoring(value: Any) -> Callable[[], Any] | None:
    """A function that restores a generator's present state; None for anything else."""
    if isinstance(value, torch.Generator):
        return partial(value.set_state, value.get_state())
    if isinstance(value, random.Random):
        return partial(value.setstate, value.getstate())
    if isinstance(value, np.random.RandomState):
        return partial(value.set_state, value.get_state())
    if isinstance(value, np.random.Generator):
        return partial(setattr, value.bit_generator, "state", value.bit_generator.state)
    return None
