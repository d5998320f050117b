"""What fine-tuning changed: the task vector of two networks, read and computed when wanted."""

from dataclasses import replace

import torch
from torch import Tensor

from lightning_merge.aggregate.inputs import State, checked, opened_all, wide
from lightning_merge.aggregate.on_disk import LazyState
from lightning_merge.number_types import is_complex, is_fraction
from lightning_merge.state_dicts import (
    StateDict,
    check_alike,
    check_finite,
    is_finite,
    table_of,
    torch_type,
)


def task_vector(finetuned: State, pretrained: State) -> StateDict:
    """`finetuned - pretrained`, for the floating-point and complex tensors.

    Args:
        finetuned: A fine-tuned network's state dict, or the path of its file.
        pretrained: The state dict that it was fine-tuned from, or its path.

    Returns:
        The differences, in the pre-trained network's types, but float32 where those are narrower:
        the difference of two numbers of 16 bits is none of them, and what is added to the one has
        to give the other. Integers and booleans are left out. Where both are the same infinity (a
        mask), the difference is 0.

    Raises:
        ArchitectureMismatchError: If a tensor is missing, of another shape or kind of number.
        CheckpointError: If a file cannot be read, or a tensor is no free parameter.
        NonFiniteError: If a tensor holds NaN, or an infinity that the other does not.
    """
    return dict(LazyTaskVector(finetuned, pretrained))


class LazyTaskVector(LazyState):
    """A task vector whose tensors are computed each time they are wanted, and not kept.

    With state dicts that are read tensor by tensor (paths, or `StateOnDisk`) a merge of many
    networks never has all of them in memory.

    Args:
        finetuned: A fine-tuned network's state dict, anything that acts like one, or a path.
        pretrained: The state dict that it was fine-tuned from, likewise.

    Attributes:
        table: Type and shape of each tensor.

    Raises:
        MergeError: As for `task_vector`; what depends on the numbers, when they are read.
    """

    def __init__(self, finetuned: State, pretrained: State) -> None:
        (self._finetuned, self._pretrained), self._called = opened_all(
            [finetuned, pretrained], ["the fine-tuned network", "the pre-trained network"]
        )
        check_alike((self._finetuned, self._pretrained), self._called)
        table = table_of(self._pretrained)
        self.table = {
            name: replace(entry, code=_at_least_f32(entry.code))
            for name, entry in table.items()
            if is_fraction(entry.code)
        }

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.table:
            raise KeyError(name)
        start = self._pretrained[name].detach()
        end = self._finetuned[name].detach().to(start.device)
        dtype = torch_type(self.table[name].code)
        if end.dtype == start.dtype == dtype:
            step = end - start
        else:
            step = (end.to(wide(start)) - start.to(wide(start))).to(dtype)
        if not is_finite(step):
            check_finite(f"{self._called[0]}: '{name}'", end, [start])
            check_finite(f"{self._called[1]}: '{name}'", start, [end])
            step = torch.where(end == start, torch.zeros_like(step), step)
            checked(name, step)
        return step


def _at_least_f32(code: str) -> str:
    if is_complex(code):
        return "C64" if code == "C32" else code
    return code if code == "F64" else "F32"
