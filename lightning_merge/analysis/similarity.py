"""How alike weights are."""

import torch
from torch import Tensor


def similarities(one: Tensor, other: Tensor) -> Tensor:
    """The cosines of the angles between the rows of two tensors; 0 where one of them is zero.

    Rethinking Weight-Averaged Model-merging (Wang et al.), Eq. 1.

    Args:
        one: `(N, ...)`.
        other: `(M, ...)`.

    Returns:
        The cosines `(N, M)`.
    """
    units = [
        torch.nn.functional.normalize(tensor.flatten(1).double(), dim=1) for tensor in (one, other)
    ]
    return (units[0] @ units[1].T).float()
