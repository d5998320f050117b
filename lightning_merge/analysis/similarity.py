"""How alike weights are."""

import torch
from torch import Tensor

from lightning_merge.aggregate.kernel import Numbers, as_numbers


def similarities(one: Numbers, other: Numbers) -> Tensor:
    """The cosines of the angles between the rows of two tensors; 0 where one of them is zero.

    Rethinking Weight-Averaged Model-merging (Wang et al.), Eq. 1.

    Args:
        one: `(N, ...)`, a tensor, an array or lists.
        other: `(M, ...)`, likewise.

    Returns:
        The cosines `(N, M)`.
    """
    # torchmetrics' pairwise_cosine_similarity divides zero by zero where a row is zero.
    units = [
        torch.nn.functional.normalize(as_numbers(numbers).flatten(1), dim=1)
        for numbers in (one, other)
    ]
    return (units[0] @ units[1].T).float()
