"""Task vectors and their arithmetic (Ilharco et al. 2023, "Editing Models with Task Arithmetic").

Only what training moves is a direction that can be scaled. Running statistics are estimates
and counters are counts, so they follow rules of their own, which all merges of task vectors
share: counters and booleans stay the pre-trained network's; running means and variances go
from the pre-trained network's towards the average of the fine-tuned networks' and never past
it. Hence no variance becomes negative, whatever the scale. Reset them afterwards where data
is at hand.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_merge.aggregate.inputs import State, checked, is_numeric, opened, wide
from lightning_merge.aggregate.name_weights import NameWeights, Weights
from lightning_merge.errors import ArchitectureMismatchError, ConfigError
from lightning_merge.state_dicts import StateDict, check_alike, check_finite, table_of
from lightning_merge.tensor_names import is_running_statistic, is_running_variance
from lightning_merge.tensor_table import Entry


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

    def at(self, pretrained: State, scale: float) -> StateDict:
        """`pretrained + scale * vector`, computed in float64.

        Args:
            pretrained: The state dict that the vectors start from, or the path of its file.
                Tensors that are not in the vector are copied.
            scale: The coefficient, at which statistics are taken as said above.

        Returns:
            A new state dict, in the pre-trained network's types.

        Raises:
            ArchitectureMismatchError: If the vector has a tensor that `pretrained` has not, or
                of another shape.
            NonFiniteError: If the result is beyond its type's range.
        """
        pretrained = opened(pretrained)
        check_start(table_of(self.vector), table_of(pretrained))
        return {
            name: stepped(name, start, self.vector[name], scale, self.members)
            if name in self.vector
            else start.detach().clone()
            for name, start in pretrained.items()
        }


def sum_vectors(vectors: Sequence[State], weights: Weights | None = None) -> MergedVector:
    """The sum of task vectors, whose every scale is then cheap: `sum_vectors(v).at(p, scale)`.

    Args:
        vectors: K task vectors with the same names and shapes, or paths of their files. One
            tensor at a time is taken from each, so they may be lazy.
        weights: K numbers that the vectors are multiplied by, 1 if not given; or K numbers by
            regular expression: the first that is found in a tensor's name counts.

    Returns:
        The sum, and the mean (weighted by absolute value) for running statistics.

    Raises:
        ConfigError: If there is no vector, or the weights do not fit.
        ArchitectureMismatchError: If their names, shapes or kinds of numbers differ.
        NonFiniteError: If an entry is NaN or infinite.
    """
    found = check_vectors(vectors)
    shares = NameWeights(weights, len(found), "task arithmetic").check_used(found[0])
    merged: StateDict = {}
    for name in found[0]:
        total = summed(found, name, shares.of(name))
        if total is not None:
            merged[name] = checked(name, total[0].to(total[1]))
    return MergedVector(merged, len(found))


def task_arithmetic(
    pretrained: State,
    vectors: Sequence[State],
    scale: float,
    weights: Weights | None = None,
) -> StateDict:
    """`pretrained + scale * (the sum of the task vectors)` (Ilharco et al. 2023).

    With K vectors and `scale = 1 / K` this is the average of the fine-tuned networks. To try
    many scales, use `sum_vectors` once.

    Args:
        pretrained: The state dict that the vectors start from, or the path of its file.
        vectors: K task vectors, or paths of their files.
        scale: The coefficient of the sum; a negative one makes the network forget.
        weights: A factor for each vector, or for each and every pattern of names, as for
            `sum_vectors`.

    Returns:
        A new state dict. Counters are the pre-trained network's, statistics lie between its
        own and the fine-tuned networks' average.

    Raises:
        MergeError: As for `sum_vectors`, and if the result is beyond its type's range.

    Example:
        >>> import torch
        >>> pretrained = {"w": torch.tensor([1.0, 1.0])}
        >>> vectors = [{"w": torch.tensor([1.0, 0.0])}, {"w": torch.tensor([3.0, -2.0])}]
        >>> task_arithmetic(pretrained, vectors, 0.5)
        {'w': tensor([3., 0.])}
    """
    return sum_vectors(vectors, weights).at(pretrained, scale)


def check_vectors(vectors: Sequence[State]) -> list[Mapping[str, Tensor]]:
    """Checks that there are task vectors, and that they have the same tensors.

    A `MergeError` if not. The vectors of paths, which are given opened, stay on the disk.
    """
    if not len(vectors):
        raise ConfigError("no task vector was given; give at least one")
    found = [opened(vector) for vector in vectors]
    check_alike(found, [f"task vector {index}" for index in range(len(found))])
    return found


def check_start(vector: Mapping[str, Entry], pretrained: Mapping[str, Entry]) -> None:
    """Checks that a network has all tensors that task vectors move, in their shapes."""
    for name, entry in vector.items():
        if name not in pretrained:
            raise ArchitectureMismatchError(
                f"the task vectors' '{name}' is not in the pre-trained network; give the network "
                "that they were fine-tuned from"
            )
        if entry.shape != pretrained[name].shape:
            raise ArchitectureMismatchError(
                f"'{name}' is {entry.shape} in the task vectors and {pretrained[name].shape} in "
                "the pre-trained network; give the network that they were fine-tuned from"
            )


def stepped(name: str, start: Tensor, step: Tensor, scale: float, members: int) -> Tensor:
    """One tensor of `MergedVector.at`: `start + scale * step`, or the rule for its kind."""
    start = start.detach()
    if not is_numeric(start):
        return start.clone()
    if step.is_complex() and not start.is_complex():
        raise ArchitectureMismatchError(
            f"'{name}' is complex in the task vectors and not in the pre-trained network; convert "
            "one of them"
        )
    if is_running_statistic(name):
        scale = min(max(scale * members, 0.0), 1.0)
    end = start.to(wide(start), copy=True)
    end.add_(step.to(start.device), alpha=scale)
    if is_running_variance(name):
        # A convex combination of variances can still round to -1e-17.
        end.clamp_(min=0)
    return checked(name, end.to(start.dtype), start)


def summed(
    vectors: Sequence[Mapping[str, Tensor]], name: str, weights: Sequence[float] | None = None
) -> tuple[Tensor, torch.dtype] | None:
    """The sum of one tensor over task vectors, in float64, and the type to keep it in.

    That type is at least float32: a sum of half-precision steps is not yet a weight. Of running
    statistics it is the mean. None if the tensor is neither of a floating-point nor a complex
    type.
    """
    weights = [1.0] * len(vectors) if weights is None else list(weights)
    if is_running_statistic(name):
        # Where to go, not how far: shares of a whole.
        whole = sum(map(abs, weights)) or 1.0
        weights = [abs(weight) / whole for weight in weights]
    total: Tensor | None = None
    dtype = torch.float32
    for vector, weight in zip(vectors, weights, strict=True):
        value = vector[name].detach()
        if not is_numeric(value):
            return None
        check_finite(f"task vectors: '{name}'", value, [])
        dtype = torch.promote_types(dtype, _at_least_half(value.dtype))
        if total is None:
            total = torch.zeros_like(value, dtype=wide(value))
        total.add_(value.to(total), alpha=weight)
    return None if total is None else (total, dtype)


def _at_least_half(dtype: torch.dtype) -> torch.dtype:
    # torch promotes no eight-bit types.
    return torch.float16 if dtype.itemsize == 1 else dtype
