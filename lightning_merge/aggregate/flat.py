"""Many tensors in one flat buffer, so that a pass over all weights is one operation."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_merge.errors import ConfigError


@dataclass(frozen=True)
class Slot:
    """Where one tensor lies in the buffer; stride, offset and size are in elements."""

    name: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    size: int


class FlatLayout:
    """The places of named tensors in one flat buffer, each in its own memory format.

    The tensors are all of one floating-point type. One that is `channels_last` is stored so, hence
    a view of the buffer is as fast to use as the tensor was.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        types = {tensor.dtype for tensor in tensors.values()}
        if len(types) != 1 or not next(iter(types)).is_floating_point:
            found = ", ".join(sorted(str(dtype) for dtype in types)) or "none"
            raise ConfigError(
                f"the parameters to merge must be of one floating-point type, not {found}; "
                "convert the network first, for example with module.float()"
            )
        self.dtype = types.pop()
        self.slots: list[Slot] = []
        offset = 0
        for name, tensor in tensors.items():
            stride = torch.empty_like(tensor, device="meta", memory_format=_format(tensor)).stride()
            self.slots.append(Slot(name, tuple(tensor.shape), stride, offset, tensor.numel()))
            offset += tensor.numel()
        self.size = offset

    def flatten(self, tensors: Mapping[str, Tensor], device: torch.device | str = "cpu") -> Tensor:
        """Copies named tensors into a new buffer `(size,)`; names without slot are passed over."""
        buffer = torch.empty(self.size, dtype=self.dtype, device=device)
        for slot, view in zip(self.slots, self.views(buffer), strict=True):
            view.copy_(tensors[slot.name].detach())
        return buffer

    def views(self, buffer: Tensor) -> tuple[Tensor, ...]:
        """The tensors inside a buffer of shape `(size,)`, sharing its memory."""
        start = buffer.storage_offset()
        return tuple(
            buffer.as_strided(slot.shape, slot.stride, start + slot.offset) for slot in self.slots
        )

    def untracked(self, buffer: Tensor) -> tuple[Tensor, ...]:
        """`views` that autograd takes for tensors of their own: each may be changed in place."""
        return tuple(view.data for view in self.views(buffer))

    def named_views(self, buffer: Tensor) -> dict[str, Tensor]:
        """`views`, by name."""
        names = (slot.name for slot in self.slots)
        return dict(zip(names, self.views(buffer), strict=True))

    def segments(self, granularity: str) -> list[int]:
        """How many consecutive elements of the buffer share one alpha.

        Those of a `model` are one, of a `layer` one a tensor, of a `channel` one an index of a
        tensor's first axis; the lengths add up to `size`.
        """
        if granularity == "model":
            return [self.size]
        if granularity == "layer":
            return [slot.size for slot in self.slots]
        if granularity == "channel":
            lengths = []
            for slot in self.slots:
                # A layer may be without outputs.
                rows = slot.shape[0] if slot.shape and slot.size else 1
                lengths += [slot.size // rows] * rows
            return lengths
        raise ConfigError(
            f"granularity '{granularity}' is unknown: choose model, layer, channel or parameter"
        )


def _format(tensor: Tensor) -> torch.memory_format:
    channels_last = tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    if channels_last and not tensor.is_contiguous():
        return torch.channels_last
    return torch.contiguous_format
