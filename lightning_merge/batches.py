"""Batches: the one place that knows where a loader puts inputs and classes."""

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_merge.errors import DataError

INPUT_KEYS = ("image", "x", "input")
LABEL_KEYS = ("label", "labels", "target", "targets", "y", "class")


def inputs_of(batch: Any) -> Tensor:
    """The network's input in a batch, as the loader gives it.

    Args:
        batch: A tensor, a tuple or list whose first item is the input, or a dict with
            `image`, `x` or `input`. Nothing is moved to a device.

    Raises:
        DataError: The batch is none of these.

    Example:
        >>> inputs_of((torch.ones(2, 3), torch.zeros(2))).shape
        torch.Size([2, 3])
    """
    if isinstance(batch, Tensor):
        return batch
    if isinstance(batch, Mapping):
        for key in INPUT_KEYS:
            if key in batch:
                return inputs_of(batch[key])
        raise DataError(
            f"a batch with the keys {sorted(map(str, batch))} has no input: "
            f"name it {', '.join(INPUT_KEYS)}"
        )
    if isinstance(batch, Sequence) and not isinstance(batch, str) and batch:
        return inputs_of(batch[0])
    raise DataError(
        f"a batch of type {type(batch).__name__} has no input: give a tensor, a tuple that "
        f"begins with one, or a dict with one of {', '.join(INPUT_KEYS)}"
    )


def inputs_in(batches: Iterable[Any]) -> Iterator[Tensor]:
    """The network's inputs in batches, without those that hold no example.

    A sampler or a filter in a `collate_fn` can leave a batch empty, and its means are NaN.
    """
    return (inputs for inputs in map(inputs_of, batches) if len(inputs))


def needed_arguments(model: torch.nn.Module) -> list[str]:
    """The arguments that a network's `forward` cannot do without, the first being its input."""
    arguments = inspect.signature(model.forward).parameters.values()
    any_number = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [
        one.name for one in arguments if one.default is one.empty and one.kind not in any_number
    ]


def targets_of(batch: Any) -> Tensor | None:
    """What a batch's examples should give, as the loader has it; None where it has no such tensor.

    Targets are the second item, or `label`, `target`, `y` or `class`.
    """
    found = None
    if isinstance(batch, Mapping):
        found = next((batch[key] for key in LABEL_KEYS if key in batch), None)
    elif isinstance(batch, Sequence) and not isinstance(batch, str) and len(batch) > 1:
        found = batch[1]
    return found if isinstance(found, Tensor) else None


def classes_of(batch: Any) -> Tensor | None:
    """The classes of a batch's examples, `(N,)` integers; None where the batch has none."""
    found = targets_of(batch)
    return None if found is None or found.dim() != 1 or found.is_floating_point() else found


def to_device_of(model: torch.nn.Module, inputs: Tensor) -> Tensor:
    """The inputs on the device of the model's first parameter or buffer."""
    for tensor in (*model.parameters(), *model.buffers()):
        return inputs.to(tensor.device, non_blocking=True)
    return inputs
