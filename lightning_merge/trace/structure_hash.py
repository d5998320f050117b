"""A hash of all that decides which units of an exported network may move."""

import hashlib

import torch
from torch import Tensor

from lightning_merge.trace.exported import Exported


def structure_hash(exported: Exported) -> str:
    """A hash of the graph and of the names and shapes of all tensors."""
    lines = [str(exported.module.graph), repr(sorted(exported.tensors.items()))]
    lines += [f"{name} {tuple(t.shape)} {t.dtype}" for name, t in exported.state.items()]
    # What may move depends on the values of constants: on which of their entries are equal.
    lines += [f"{name} {_digest(value)}" for name, value in exported.constants.items()]
    constants = dict(exported.module.named_buffers())
    lines += [f"{n} {_digest(t)}" for n, t in constants.items() if n not in exported.state]
    for node in exported.module.graph.nodes:
        value = node.meta.get("val")
        if node.op == "placeholder" and isinstance(value, Tensor):
            lines.append(f"{node.name} {tuple(value.shape)}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _digest(value: object) -> str:
    if not isinstance(value, Tensor):
        return repr(value)
    entries = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return f"{value.dtype} {tuple(value.shape)} {hashlib.sha256(entries.tobytes()).hexdigest()}"
