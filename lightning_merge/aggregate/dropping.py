"""DARE: drop most entries of a task vector at random and scale up the rest.

Yu et al. 2024, "Language Models are Super Mario: Absorbing Abilities from Homologous Models
as a Free Lunch". What it returns goes into `task_arithmetic` or `ties`.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lightning_merge.aggregate.vector_arithmetic import check_vectors, is_running_statistic
from lightning_merge.checkpoint import StateDict
from lightning_merge.errors import ConfigError


def dare(
    vectors: Sequence[Mapping[str, Tensor]],
    drop: float,
    generator: torch.Generator | None = None,
) -> list[StateDict]:
    """Sets each entry to 0 with probability `drop`, and divides those that stay by `1 - drop`.

    Every entry keeps its expected value. Running statistics are left as they are: a statistic
    that is zero at random is no estimate of anything.

    Args:
        vectors: K task vectors with the same names.
        drop: The probability, in [0, 1).
        generator: Where the chances come from; the vectors are gone through in their order,
            so a seed gives the same result again. Torch's own if not given.

    Returns:
        K new task vectors, in their own types.

    Raises:
        ConfigError: If there is no vector, or `drop` is out of range.
        ArchitectureMismatchError: If names differ.
    """
    check_vectors(vectors)
    if not 0 <= drop < 1:
        raise ConfigError(f"DARE: drop {drop} is no probability below 1; choose one in [0, 1)")
    return [
        {
            name: _drop(value, drop, generator)
            if value.is_floating_point() and not is_running_statistic(name)
            else value.clone()
            for name, value in vector.items()
        }
        for vector in vectors
    ]


def _drop(value: Tensor, drop: float, generator: torch.Generator | None) -> Tensor:
    device = generator.device if generator is not None else torch.device("cpu")
    stays = torch.rand(value.shape, generator=generator, device=device) >= drop
    return value.div(1 - drop).mul_(stays.to(value.device))
