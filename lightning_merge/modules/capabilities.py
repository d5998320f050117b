"""What a module may declare of itself; any class can, ours or not, and nothing else is looked at.

| attribute | what it declares |
| --- | --- |
| `reads_text` | of a class: its constructor makes the head of `class_names` and `prompts` |
| `image_size`, `image_mean`, `image_std` | how images must come: pixels, and by channel |
| `memory_format` | the order to which it brings images; may be set |
| `alphas()` | its weights follow from alphas |
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def contiguous_images(module: nn.Module) -> Iterator[None]:
    """Images in contiguous order for a while: gradients of single examples need it.

    A module's `memory_format`, if it has one, is changed, and afterwards what it was.
    """
    before = getattr(module, "memory_format", None)
    if before is None:
        yield
        return
    setattr(module, "memory_format", torch.contiguous_format)  # noqa: B010
    try:
        yield
    finally:
        setattr(module, "memory_format", before)  # noqa: B010
