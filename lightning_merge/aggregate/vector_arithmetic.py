"""Task vectors and their arithmetic (Ilharco et al. 2023, "Editing Models with Task Arithmetic").

Only what training moves is a direction that can be scaled. Running statistics are estimates
and counters are counts, so they follow rules of their own, which all merges of task vectors
share: counters and booleans stay the pre-trained network's; running means and variances go
from the pre-trained network's towards the average of the fine-tuned networks' and never past
it. Hence no variance becomes negative, whatever the scale. Reset them afterwards where data
is at hand.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_merge.checkpoint import StateDict
from lightning_merge.errors import ArchitectureMismatchError, ConfigError


def is_running_statistic(name: str) -> bool:
    """Whether a state dict's entry is a normalisation layer's running mean or variance."""
    return name.rpartition(".")[2] in ("running_mean", "running_var")


def task_vector(finetuned: Mapping[str, Tensor], pretrained: Mapping[str, Tensor]) -> StateDict:
    """`finetuned - pretrained`, for the floating-point tensors.

    Args:
        finetuned: A fine-tuned network's state dict.
        pretrained: The state dict that it was fine-tuned from.

    Returns:
        The differences, in the pre-trained network's types; integers and booleans are left
        out.

    Raises:
        ArchitectureMismatchError: If a tensor is missing or of another shape.
    """
    return dict(LazyTaskVector(finetuned, pretrained))


class LazyTaskVector(Mapping[str, Tensor]):
    """A task vector whose tensors are computed each time they are asked for, and not kept.

    With state dicts that are read tensor by tensor (`SafetensorsState`, or
    `torch.load(..., mmap=True)`) a merge of many networks never has all of them in memory.

    Args:
        finetuned: A fine-tuned network's state dict, or any mapping that acts like one.
        pretrained: The state dict that it was fine-tuned from, likewise.

    Raises:
        ArchitectureMismatchError: If a tensor is missing; or later, if its shape differs.
    """

    def __init__(self, finetuned: Mapping[str, Tensor], pretrained: Mapping[str, Tensor]) -> None:
        different = sorted(set(finetuned) ^ set(pretrained))
        if different:
            raise ArchitectureMismatchError(
                f"task vector: '{different[0]}' is in one of the fine-tuned and the pre-trained "
                "network only; give two networks of one architecture"
            )
        self._finetuned, self._pretrained = finetuned, pretrained
        self._names = [name for name, value in pretrained.items() if value.is_floating_point()]

    def __getitem__(self, name: str) -> Tensor:
        start = self._pretrained[name]
        end = self._finetuned[name]
        if start.shape != end.shape:
            raise ArchitectureMismatchError(
                f"task vector: '{name}' is {tuple(end.shape)} in the fine-tuned and "
                f"{tuple(start.shape)} in the pre-trained network"
            )
        if end.dtype == start.dtype:
            return end.to(start.device) - start
        return (end.to(start.device, torch.float64) - start.to(torch.float64)).to(start.dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


@dataclass(frozen=True)
class MergedVector:
    """A direction made of task vectors, from which any scale is one pass away.

    Attributes:
        vector: What to add to the parameters at scale 1; for running statistics, the mean of
            the task vectors.
        members: How many fine-tuned networks scale 1 stands for: K for a sum of K vectors, 1
            for a mean. Statistics are those of the fine-tuned networks, averaged, from scale
            `1 / members` on.
    """

    vector: StateDict
    members: int = 1

    def at(self, pretrained: Mapping[str, Tensor], scale: float) -> StateDict:
        """`pretrained + scale * vector`, computed in float64.

        Args:
            pretrained: The state dict that the vectors start from. Tensors that are not in
                the vector are copied.
            scale: The coefficient, at which statistics are taken as said above.

        Returns:
            A new state dict, in the pre-trained network's types.

        Raises:
            ArchitectureMismatchError: If the vector has a tensor that `pretrained` has not.
        """
        check_start(self.vector, pretrained)
        return {
            name: stepped(name, start, self.vector[name], scale, self.members)
            if name in self.vector
            else start.clone()
            for name, start in pretrained.items()
        }


def sum_vectors(vectors: Sequence[Mapping[str, Tensor]]) -> MergedVector:
    """The sum of task vectors, whose every scale is then cheap: `sum_vectors(v).at(p, scale)`.

    Args:
        vectors: K task vectors with the same names and shapes. One tensor at a time is taken
            from each, so they may be lazy.

    Returns:
        The sum, and the mean for running statistics.

    Raises:
        ConfigError: If there is no vector.
        ArchitectureMismatchError: If their names differ.
    """
    check_vectors(vectors)
    merged: StateDict = {}
    for name in vectors[0]:
        total = summed(vectors, name)
        if total is not None:
            value, dtype = total
            merged[name] = (value / len(vectors) if is_running_statistic(name) else value).to(dtype)
    return MergedVector(merged, len(vectors))


def task_arithmetic(
    pretrained: Mapping[str, Tensor], vectors: Sequence[Mapping[str, Tensor]], scale: float
) -> StateDict:
    """`pretrained + scale * (the sum of the task vectors)` (Ilharco et al. 2023).

    With K vectors and `scale = 1 / K` this is the average of the fine-tuned networks. To try
    many scales, use `sum_vectors` once.

    Args:
        pretrained: The state dict that the vectors start from.
        vectors: K task vectors.
        scale: The coefficient of the sum; a negative one makes the network forget.

    Returns:
        A new state dict. Counters are the pre-trained network's, statistics lie between its
        own and the fine-tuned networks' average.

    Raises:
        ConfigError: If there is no vector.
        ArchitectureMismatchError: If names differ.

    Example:
        >>> import torch
        >>> pretrained = {"w": torch.tensor([1.0, 1.0])}
        >>> vectors = [{"w": torch.tensor([1.0, 0.0])}, {"w": torch.tensor([3.0, -2.0])}]
        >>> task_arithmetic(pretrained, vectors, 0.5)
        {'w': tensor([3., 0.])}
    """
    return sum_vectors(vectors).at(pretrained, scale)


def check_vectors(vectors: Sequence[Mapping[str, Tensor]]) -> None:
    """Checks that there are task vectors, and that they have the same names.

    Raises:
        ConfigError: If there is no vector.
        ArchitectureMismatchError: If their names differ; one that does is named.
    """
    if not vectors:
        raise ConfigError("no task vector was given; give at least one")
    for index, vector in enumerate(vectors):
        different = sorted(set(vector) ^ set(vectors[0]))
        if different:
            raise ArchitectureMismatchError(
                f"task vectors: '{different[0]}' is in one of number 0 and number {index} only; "
                "take them from networks of one architecture"
            )


def check_start(vector: Iterable[str], pretrained: Mapping[str, Tensor]) -> None:
    """Checks that a network has all tensors that task vectors move.

    Raises:
        ArchitectureMismatchError: If one is missing; it is named.
    """
    unknown = sorted(set(vector) - set(pretrained))
    if unknown:
        raise ArchitectureMismatchError(
            f"the task vectors' '{unknown[0]}' is not in the pre-trained network; give the "
            "network that they were fine-tuned from"
        )


def stepped(name: str, start: Tensor, step: Tensor, scale: float, members: int) -> Tensor:
    """One tensor of `MergedVector.at`: `start + scale * step`, or the rule for its kind."""
    if not start.is_floating_point():
        return start.clone()
    if is_running_statistic(name):
        scale = min(max(scale * members, 0.0), 1.0)
    end = start.to(torch.float64, copy=True)
    end.add_(step.to(start.device), alpha=scale)
    if name.endswith("running_var"):
        # A convex combination of variances can still round to -1e-17.
        end.clamp_(min=0)
    return end.to(start.dtype)


def summed(vectors: Sequence[Mapping[str, Tensor]], name: str) -> tuple[Tensor, torch.dtype] | None:
    """The sum of one tensor over task vectors, in float64, and the type to keep it in.

    That type is at least float32: a sum of half-precision steps is not yet a weight. None if
    the tensor is not of a floating-point type.
    """
    total: Tensor | None = None
    dtype = torch.float32
    for vector in vectors:
        value = vector[name]
        if not value.is_floating_point():
            return None
        dtype = torch.promote_types(dtype, value.dtype)
        if total is None:
            total = value.to(torch.float64, copy=True)
        else:
            total.add_(value.to(total))
    return None if total is None else (total, dtype)
