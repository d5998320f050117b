"""SCE: select entries by variance, calculate shares by energy, erase the minority's signs.

Wan et al. 2024, "FuseChat: Knowledge Fusion of Chat Models" (arXiv 2408.07990).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_merge.aggregate.inputs import State, checked
from lightning_merge.aggregate.vector_arithmetic import (
    MergedVector,
    check_vectors,
    summed,
)
from lightning_merge.errors import ConfigError
from lightning_merge.number_types import is_complex, is_fraction
from lightning_merge.state_dicts import StateDict, check_finite, table_of
from lightning_merge.tensor_names import is_running_statistic


def sce_vector(vectors: Sequence[State], density: float = 1.0) -> MergedVector:
    """The direction that SCE makes of K task vectors, tensor by tensor.

    1. Select: of the entries that the vectors do not agree about, the share `density` with the
       largest variance over the vectors; all others are set to 0. With density 1 all stay.
    2. Calculate: a vector's share of a tensor is its sum of squares there, divided by all vectors'.
    3. Erase: entries whose sign is not that of the sum over the vectors do not count; the
       others' mean, weighted by the shares, is the merged entry.

    Running statistics and complex tensors are averaged.

    Args:
        vectors: K task vectors with the same names and shapes, or paths of their files. One
            tensor at a time is taken from each.
        density: The share that is selected, in (0, 1].

    Returns:
        The direction; its `at` gives the network for a scale. The order of the vectors changes
        nothing but roundings.

    Raises:
        ConfigError: If there is no vector, or `density` is no share.
        ArchitectureMismatchError: If names, shapes or kinds of numbers differ.
        NonFiniteError: If an entry is NaN or infinite.

    Example:
        >>> import torch
        >>> vectors = [{"w": torch.tensor([3.0, 1.0])}, {"w": torch.tensor([1.0, -2.0])}]
        >>> sce_vector(vectors).vector
        {'w': tensor([ 2.3333, -2.0000])}
    """
    if not 0 < density <= 1:
        raise ConfigError(f"SCE: density {density} is no share; choose one in (0, 1]")
    found = check_vectors(vectors)
    merged: StateDict = {}
    for name, entry in table_of(found[0]).items():
        if (
            is_fraction(entry.code)
            and not is_complex(entry.code)
            and not is_running_statistic(name)
        ):
            tensors = [vector[name].detach() for vector in found]
            for tensor in tensors:
                check_finite(f"task vectors: '{name}'", tensor, [])
            double = any(tensor.dtype == torch.float64 for tensor in tensors)
            one = _fused(tensors, density)
            merged[name] = checked(name, one.to(torch.float64 if double else torch.float32))
            continue
        total = summed(found, name, [1 / len(found)] * len(found))
        if total is not None:
            merged[name] = checked(name, total[0].to(total[1]))
    return MergedVector(merged)


def _fused(tensors: Sequence[Tensor], density: float) -> Tensor:
    # (K, n)
    device = tensors[0].device
    values = torch.stack([tensor.to(device, torch.float64).reshape(-1) for tensor in tensors])
    # Roundings decide between entries that tie, and on the sign of a sum near 0: in the order of
    # the values they are the same whichever vector is first.
    ordered = values.sort(dim=0).values
    if density < 1:
        variance = ordered.var(dim=0, unbiased=False)
        count = int(density * int(variance.count_nonzero()))
        chosen = torch.zeros_like(variance, dtype=torch.bool)
        chosen[variance.argsort(descending=True, stable=True)[:count]] = True
        values = values * chosen
    energy = values.square().sum(dim=1, keepdim=True)
    agrees = values * ordered.sum(dim=0).sign() > 0
    shares = agrees * energy
    total, whole = (values * shares).sum(dim=0), shares.sum(dim=0)
    return (total / whole.masked_fill(whole == 0, 1)).view(tensors[0].shape)
