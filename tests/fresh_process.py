"""A study's pieces of work done in any order, each by itself in a process of its own."""

import multiprocessing
import os
import random
from pathlib import Path

import torch

from lightning_merge.checkpoint import read_checkpoint
from lightning_merge.files import read_json
from lightning_merge.study.store import Store
from lightning_merge.study.work import Session, execute

# What takes long to import is imported once; each process is a copy of that one.
_PRELOADED = [
    "lightning_merge.study.kinds.training",
    "lightning_merge.study.kinds.merging",
    "lightning_merge.study.kinds.task_merging",
    "torch.export._trace",
    "networkx",
    "sklearn.linear_model",
]
_PATIENCE = 120


def random_order(works, seed):
    """The works in a random order in which each comes after those that it needs."""
    draw, left, done, order = random.Random(seed), list(works), set(), []
    while left:
        chosen = draw.choice([work for work in left if done.issuperset(work.needs)])
        left.remove(chosen)
        done.add(chosen.key)
        order.append(chosen)
    return order


def execute_apart(works, folder: Path) -> Store:
    """Does works in their order; each process sees a store of what its work needs, no more."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    store = Store(folder / "all")
    store.folder.mkdir(parents=True)
    for number, work in enumerate(works):
        alone = folder / f"alone{number}"
        alone.mkdir()
        for key in work.needs:
            (alone / key).symlink_to(store.folder / key, target_is_directory=True)
        process = context.Process(target=_execute, args=(work, alone))
        process.start()
        process.join(_PATIENCE)
        assert process.exitcode == 0, f"{work.kind} {work.name}: exit code {process.exitcode}"
        os.replace(alone / work.key, store.folder / work.key)
    return store


def _execute(work, folder):
    torch.set_num_threads(1)
    execute(work, Store(folder), Session(progress=False))


def kept(store: Store, key: str):
    """What a store keeps of a piece, but for times and how it was made: (result, checkpoint)."""
    path = store.weights(key)
    content = read_checkpoint(path).content if path.is_file() else None
    return _timeless(read_json(store.folder / key / "result.json")["result"]), _timeless(content)


def same(one, other) -> bool:
    """Whether two nested values are equal, tensors bit for bit."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and _bits(one) == _bits(other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def _bits(tensor):
    return tensor.dtype, tensor.shape, tensor.contiguous().numpy().tobytes()


def _timeless(value):
    if isinstance(value, dict):
        return {key: _timeless(one) for key, one in value.items() if key != "seconds"}
    return [_timeless(one) for one in value] if isinstance(value, list) else value
