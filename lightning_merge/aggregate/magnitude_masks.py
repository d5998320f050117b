"""Sparse task vectors by magnitude: Breadcrumbs (both tails cut) and DELLA (drops by rank).

What they return goes into `task_arithmetic` or `ties`, as that of `dare` does.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lightning_merge.aggregate.dropping import thinned
from lightning_merge.aggregate.inputs import State
from lightning_merge.aggregate.vector_arithmetic import check_vectors
from lightning_merge.errors import ConfigError
from lightning_merge.state_dicts import StateDict


def breadcrumbs(
    vectors: Sequence[State], density: float = 0.1, outliers: float = 0.01
) -> list[StateDict]:
    """Of each tensor of each vector, drops the largest entries and the small ones.

    Davari and Belilovsky 2024, "Model Breadcrumbs" (arXiv 2312.06795). In each tensor of n entries,
    in the order of their magnitudes, the first `round(outliers * n)` are set to 0, the next
    `round(density * n)` (at least 1) stay, and the others are set to 0. Running statistics, and
    complex tensors, are left as they are.

    Args:
        vectors: K task vectors with the same names, or paths of their files.
        density: The share of entries that stays, in (0, 1].
        outliers: The share of the largest entries that is dropped, with `density` at most 1.

    Returns:
        K new task vectors, in their own types.

    Raises:
        ConfigError: If there is no vector, or the shares are none.
        ArchitectureMismatchError: If names, shapes or kinds of numbers differ.
        NonFiniteError: If an entry is NaN or infinite.

    Example:
        >>> import torch
        >>> breadcrumbs([{"w": torch.tensor([9.0, -1.0, 3.0, 2.0])}], 0.5, 0.25)
        [{'w': tensor([0., 0., 3., 2.])}]
    """
    if not 0 < density <= 1 or not 0 <= outliers <= 1 - density + 1e-12:
        raise ConfigError(
            f"Breadcrumbs: density {density} and outliers {outliers} are no shares of one whole; "
            "choose 0.1 and 0.01, for example"
        )

    def cut(value: Tensor) -> Tensor:
        order = value.abs().flatten().argsort(descending=True, stable=True)
        first = round(outliers * len(order))
        kept = torch.zeros_like(order, dtype=torch.bool)
        kept[order[first : first + max(1, round(density * len(order)))]] = True
        return value.masked_fill(~kept.view(value.shape), 0)

    return _masked(vectors, cut)


def della(
    vectors: Sequence[State],
    drop: float,
    window: float = 0.1,
    generator: torch.Generator | None = None,
) -> list[StateDict]:
    """Drops entries at random, the larger ones less often, and scales up those that stay.

    Deep et al. 2024, "DELLA-Merging" (arXiv 2406.11617), MAGPRUNE. Within each row (all weights of
    one output; a tensor of one axis is one row) of n entries, that of rank r by magnitude, 0 for
    the largest, is set to 0 with probability `p = drop - window / 2 + window * r / n`, and else
    divided by `1 - p`, so that every entry keeps its expected value. Running statistics, and
    complex tensors, are left as they are.

    Args:
        vectors: K task vectors with the same names, or paths of their files.
        drop: The mean probability.
        window: By how much the smallest entry's probability exceeds the largest one's; 0 is DARE.
        generator: Where the chances come from; the vectors are gone through in their order, so
            a seed gives the same result again. Torch's own if not given.

    Returns:
        K new task vectors, in their own types.

    Raises:
        ConfigError: If there is no vector, or a probability would be outside [0, 1).
        ArchitectureMismatchError: If names, shapes or kinds of numbers differ.
        NonFiniteError: If an entry is NaN or infinite, or becomes so.
    """
    if window < 0 or not window / 2 <= drop < 1 - window / 2:
        raise ConfigError(
            f"DELLA: drop {drop} with window {window} gives no probabilities below 1; choose 0.7 "
            "and 0.1, for example"
        )
    device = generator.device if generator is not None else torch.device("cpu")

    def thin(value: Tensor) -> Tensor:
        rows = value.reshape(value.shape[0], -1) if value.dim() > 1 else value.reshape(1, -1)
        order = rows.abs().argsort(dim=1, descending=True, stable=True)
        # Of the largest 0: the inverse of the order.
        rank = order.argsort(dim=1)
        chance = drop - window / 2 + window * rank.to(torch.float64) / max(1, rows.shape[1])
        drawn = torch.rand(rows.shape, generator=generator, device=device, dtype=torch.float64)
        stays = drawn.to(rows.device) >= chance
        return (rows * stays / (1 - chance)).view(value.shape)

    return _masked(vectors, thin)


def _masked(vectors: Sequence[State], mask: Callable[[Tensor], Tensor]) -> list[StateDict]:
    return thinned(
        check_vectors(vectors),
        lambda value, _name, _index: value.clone() if value.is_complex() else mask(value),
    )
