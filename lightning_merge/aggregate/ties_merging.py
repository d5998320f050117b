"""TIES: trim the task vectors, elect a sign for each parameter, average those that agree.

Yadav et al. 2023, "TIES-Merging: Resolving Interference When Merging Models".
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from lightning_merge.aggregate.vector_arithmetic import (
    MergedVector,
    check_start,
    check_vectors,
    is_running_statistic,
    stepped,
    summed,
)
from lightning_merge.aggregate.weight_magnitude import smallest_kept_magnitude
from lightning_merge.checkpoint import StateDict
from lightning_merge.errors import ConfigError

# The sums of a piece stay in the processor's cache; a GPU wants fewer and larger pieces.
_CPU_BLOCK, _DEVICE_BLOCK = 1 << 14, 1 << 22


def ties(
    pretrained: Mapping[str, Tensor],
    vectors: Sequence[Mapping[str, Tensor]],
    scale: float = 1.0,
    density: float = 0.2,
) -> StateDict:
    """`pretrained + scale * (the TIES merge of the task vectors)`.

    To try many scales, use `ties_vector` once; the paper's own choice without held-out data is
    scale 1 and density 0.2.

    Args:
        pretrained: The state dict that the vectors start from.
        vectors: K task vectors.
        scale: The coefficient (lambda in the paper).
        density: The share of each vector that is kept, in (0, 1].

    Returns:
        A new state dict. Counters are the pre-trained network's, statistics lie between its
        own and the fine-tuned networks' average.

    Raises:
        ConfigError: If there is no vector, or the density is not a share.
        ArchitectureMismatchError: If names differ.
    """
    check_vectors(vectors)
    check_start(vectors[0], pretrained)
    # Tensor by tensor, so that the direction need not be held beside the result.
    merged = {
        name: stepped(name, pretrained[name], step, scale, members=1)
        for name, step in _steps(vectors, density)
    }
    return {
        name: merged[name] if name in merged else start.clone()
        for name, start in pretrained.items()
    }


def ties_vector(vectors: Sequence[Mapping[str, Tensor]], density: float = 0.2) -> MergedVector:
    """The direction that TIES makes of task vectors.

    1. Trim: of each vector as a whole, the `density` with the largest magnitudes is kept.
       All entries that equal the smallest one kept are kept too, so that the result does not
       depend on the order of the parameters.
    2. Elect: each parameter's sign is that of the sum of what is left.
    3. Merge: the mean of the entries with that sign; those of the other sign, and zeros
       (trimmed, or zero from the start), are neither summed nor counted.

    Where the sum is exactly zero there is no sign: the merged entry is 0, which leaves the
    pre-trained value, as the paper's formulas have it. (Its code takes the sign that is the
    more frequent in the whole network.) Running statistics are not trimmed, nor do they count
    for the density, since their scale says nothing of their importance: they are averaged.

    Memory: the result, and K times the largest tensor for vectors that are lazy. Each tensor
    is taken from each vector four times (three to find the trim, one to merge), and once if
    the density is 1.

    Args:
        vectors: K task vectors with the same names and shapes.
        density: The share of each vector that is kept, in (0, 1].

    Returns:
        The direction; its `at` gives the network for a scale.

    Raises:
        ConfigError: If there is no vector, or the density is not a share.
        ArchitectureMismatchError: If names differ.

    Example:
        >>> import torch
        >>> vectors = [{"w": torch.tensor([4.0, 1.0, -3.0])}, {"w": torch.tensor([2.0, 5.0, 1.0])}]
        >>> ties_vector(vectors, 2 / 3).vector
        {'w': tensor([ 3.,  5., -3.])}
    """
    check_vectors(vectors)
    return MergedVector(dict(_steps(vectors, density)))


def _steps(vectors: Sequence[Mapping[str, Tensor]], density: float) -> Iterator[tuple[str, Tensor]]:
    if not 0 < density <= 1:
        raise ConfigError(f"TIES: density {density} is not a share; choose one in (0, 1]")
    thresholds = [_trim_threshold(vector, density) for vector in vectors]
    for name in vectors[0]:
        if is_running_statistic(name):
            total = summed(vectors, name)
            if total is not None:
                yield name, (total[0] / len(vectors)).to(total[1])
            continue
        tensors = [vector[name] for vector in vectors]
        if tensors[0].is_floating_point():
            yield name, _elect_and_merge(tensors, thresholds)


def _trim_threshold(vector: Mapping[str, Tensor], density: float) -> float:
    if density == 1:
        return 0.0

    def parameters() -> Iterator[Tensor]:
        for name in vector:
            if not is_running_statistic(name):
                value = vector[name]
                if value.is_floating_point():
                    yield value

    return smallest_kept_magnitude(parameters, density)


def _elect_and_merge(tensors: list[Tensor], thresholds: list[float]) -> Tensor:
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    first = tensors[0]
    merged = torch.empty(first.numel(), dtype=dtype, device=first.device)
    flat = [tensor.to(first.device).reshape(-1) for tensor in tensors]
    limits = torch.tensor(thresholds, dtype=torch.float64, device=first.device)[:, None]
    # In pieces, because the sums in float64 of a large layer would outweigh the network.
    length = _CPU_BLOCK if first.device.type == "cpu" else _DEVICE_BLOCK
    for start in range(0, first.numel(), length):
        piece = slice(start, start + length)
        # (K, n), trimmed
        values = torch.stack([tensor[piece].to(torch.float64) for tensor in flat])
        values.masked_fill_(values.abs() < limits, 0)
        agrees = values * values.sum(dim=0).sign_() > 0
        count = agrees.sum(dim=0).clamp_(min=1)
        merged[piece] = values.mul_(agrees).sum(dim=0).div_(count)
    return merged.view(first.shape)
