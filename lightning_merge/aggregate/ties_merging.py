"""TIES: trim the task vectors, elect a sign for each parameter, average those that agree.

Yadav et al. 2023, "TIES-Merging: Resolving Interference When Merging Models".
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from lightning_merge.aggregate.inputs import State, checked, opened
from lightning_merge.aggregate.name_weights import NameWeights, Weights
from lightning_merge.aggregate.vector_arithmetic import (
    MergedVector,
    check_start,
    check_vectors,
    stepped,
    summed,
)
from lightning_merge.aggregate.weight_magnitude import smallest_kept_magnitude
from lightning_merge.errors import ConfigError
from lightning_merge.number_types import is_complex
from lightning_merge.state_dicts import StateDict, check_finite, table_of
from lightning_merge.tensor_names import is_running_statistic
from lightning_merge.tensor_table import pruning_mask

# The sums of a piece stay in the processor's cache; a GPU wants fewer and larger pieces.
_CPU_BLOCK, _DEVICE_BLOCK = 1 << 14, 1 << 22


def ties(
    pretrained: State,
    vectors: Sequence[State],
    scale: float = 1.0,
    density: float = 0.2,
    merge: str = "mean",
    weights: Weights | None = None,
) -> StateDict:
    """`pretrained + scale * (the TIES merge of the task vectors)`.

    To try many scales, use `ties_vector` once; the paper's own choice without held-out data is
    scale 1 and density 0.2. With held-out data the authors search scales from 0.8 to 2.5.

    Args:
        pretrained: The state dict that the vectors start from, or the path of its file.
        vectors: K task vectors, or paths of their files.
        scale: The coefficient (lambda in the paper).
        density: The share of each vector that is kept, in (0, 1].
        merge: `mean` or `sum`, as for `ties_vector`.
        weights: As for `ties_vector`.

    Returns:
        A new state dict. Counters are the pre-trained network's, statistics lie between its
        own and the fine-tuned networks' average.

    Raises:
        MergeError: As for `ties_vector`, and if the result is beyond its type's range.
    """
    found = check_vectors(vectors)
    start = opened(pretrained)
    check_start(table_of(found[0]), table_of(start))
    # Tensor by tensor, so that the direction need not be beside the result in memory.
    merged = {
        name: stepped(name, start[name], step, scale, members=1)
        for name, step in _steps(found, density, merge, weights)
    }
    return {
        name: merged[name] if name in merged else value.detach().clone()
        for name, value in start.items()
    }


def ties_vector(
    vectors: Sequence[State],
    density: float = 0.2,
    merge: str = "mean",
    weights: Weights | None = None,
) -> MergedVector:
    """The direction that TIES makes of task vectors.

    1. Trim: of each vector as a whole, the `density` with the largest magnitudes is kept.
       All entries that equal the smallest one kept are kept too, so that the result does not
       depend on the order of the parameters.
    2. Elect: each parameter's sign is that of the sum of what is left.
    3. Merge: the mean (or the sum) of the entries with that sign; those of the other sign, and
       zeros (trimmed, or zero from the start), are neither summed nor counted.

    Where the sum is exactly zero there is no sign: the merged entry is 0, which leaves the
    pre-trained value, as the paper's formulas have it. (Its code takes the sign that is the
    more frequent in the whole network.) Running statistics are not trimmed, nor do they count
    for the density, since their scale says nothing of their importance: they are averaged.
    Pruning masks do not count either.

    Memory: the result, and K times the largest tensor for vectors that are lazy. Each tensor
    is taken from each vector four times (three to find the trim, one to merge), and once if
    the density is 1.

    Args:
        vectors: K task vectors with the same names and shapes, or paths of their files.
        density: The share of each vector that is kept, in (0, 1].
        merge: `mean`, as in the paper, or `sum` (the authors' `dis-sum`), whose steps grow with
            the number of networks that agree.
        weights: K numbers that are not negative, by which the trimmed vectors are multiplied
            before signs are elected (a weighted mean divides by the weights of those that
            agree); 1 if not given. Or K numbers by regular expression: the first that is found
            in a tensor's name counts.

    Returns:
        The direction; its `at` gives the network for a scale.

    Raises:
        ConfigError: If there is no vector, the density is not a share, `merge` is neither, the
            weights do not fit, or a tensor is complex and has no sign.
        ArchitectureMismatchError: If names, shapes or kinds of numbers differ.
        NonFiniteError: If an entry is NaN or infinite.

    Example:
        >>> import torch
        >>> vectors = [{"w": torch.tensor([4.0, 1.0, -3.0])}, {"w": torch.tensor([2.0, 5.0, 1.0])}]
        >>> ties_vector(vectors, 2 / 3).vector
        {'w': tensor([ 3.,  5., -3.])}
    """
    return MergedVector(dict(_steps(check_vectors(vectors), density, merge, weights)))


def _steps(
    vectors: Sequence[Mapping[str, Tensor]],
    density: float,
    merge: str,
    weights: Weights | None,
) -> Iterator[tuple[str, Tensor]]:
    if not 0 < density <= 1:
        raise ConfigError(f"TIES: density {density} is not a share; choose one in (0, 1]")
    if merge not in ("mean", "sum"):
        raise ConfigError(f"TIES: merge '{merge}' is unknown; choose mean or sum")
    shares = NameWeights(weights, len(vectors), "TIES").check_used(vectors[0])
    for name, entry in table_of(vectors[0]).items():
        if is_complex(entry.code):
            raise ConfigError(f"TIES: '{name}' is complex and has no sign; use task arithmetic")
        if min(shares.of(name)) < 0:
            raise ConfigError(f"TIES: a weight of '{name}' is negative; choose weights from 0 on")
    thresholds = [_trim_threshold(vector, density) for vector in vectors]
    for name in vectors[0]:
        if is_running_statistic(name):
            total = summed(vectors, name, shares.of(name))
            if total is not None:
                yield name, total[0].to(total[1])
            continue
        tensors = [vector[name].detach() for vector in vectors]
        if tensors[0].is_floating_point():
            for tensor in tensors:
                check_finite(f"task vectors: '{name}'", tensor, [])
            yield name, checked(name, _elect_and_merge(tensors, thresholds, merge, shares.of(name)))


def _trim_threshold(vector: Mapping[str, Tensor], density: float) -> float:
    if density == 1:
        return 0.0

    def parameters() -> Iterator[Tensor]:
        for name in vector:
            if not is_running_statistic(name) and not pruning_mask(name, vector):
                value = vector[name]
                if value.is_floating_point():
                    yield value

    return smallest_kept_magnitude(parameters, density)


def _elect_and_merge(
    tensors: list[Tensor], thresholds: list[float], merge: str, weights: Sequence[float]
) -> Tensor:
    double = any(tensor.dtype == torch.float64 for tensor in tensors)
    dtype = torch.float64 if double else torch.float32
    first = tensors[0]
    merged = torch.empty(first.numel(), dtype=dtype, device=first.device)
    flat = [tensor.to(first.device).reshape(-1) for tensor in tensors]
    limits = torch.tensor(thresholds, dtype=torch.float64, device=first.device)[:, None]
    shares = torch.tensor(weights, dtype=torch.float64, device=first.device)[:, None]
    # Equal ones cancel in a mean; what is multiplied by 0 has no sign.
    equal = len(set(weights)) == 1 and weights[0] > 0
    # In pieces, because the sums in float64 of a large layer would outweigh the network.
    length = _CPU_BLOCK if first.device.type == "cpu" else _DEVICE_BLOCK
    for start in range(0, first.numel(), length):
        piece = slice(start, start + length)
        # (K, n), trimmed
        values = torch.stack([tensor[piece].to(torch.float64) for tensor in flat])
        values.masked_fill_(values.abs() < limits, 0)
        if not equal or merge == "sum":
            values.mul_(shares)
        agrees = values * values.sum(dim=0).sign_() > 0
        total = values.mul_(agrees).sum(dim=0)
        if merge == "mean":
            count = agrees.sum(dim=0) if equal else (agrees * shares).sum(dim=0)
            total.div_(count.masked_fill_(count == 0, 1))
        merged[piece] = total
    return merged.view(first.shape)
