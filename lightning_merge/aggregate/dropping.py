"""DARE: drop most entries of a task vector at random and scale up the rest.

Yu et al. 2024, "Language Models are Super Mario: Absorbing Abilities from Homologous Models
as a Free Lunch". What it returns goes into `task_arithmetic` or `ties`.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from lightning_merge.aggregate.inputs import State, checked, is_numeric
from lightning_merge.aggregate.name_weights import NameWeights, Weights
from lightning_merge.aggregate.vector_arithmetic import check_vectors
from lightning_merge.errors import ConfigError
from lightning_merge.state_dicts import StateDict, check_finite
from lightning_merge.tensor_names import is_running_statistic


def dare(
    vectors: Sequence[State],
    drop: float,
    generator: torch.Generator | None = None,
    weights: Weights | None = None,
) -> list[StateDict]:
    """Sets each entry to 0 with probability `drop`, and divides those that stay by `1 - drop`.

    Every entry keeps its expected value. Running statistics are left as they are: a statistic
    that is zero at random is no estimate of anything.

    Args:
        vectors: K task vectors with the same names, or paths of their files.
        drop: The probability, in [0, 1).
        generator: Where the chances come from; the vectors are gone through in their order,
            so a seed gives the same result again. Torch's own if not given.
        weights: K numbers that the vectors are multiplied by (running statistics are not); or K
            numbers by regular expression, of which the first that is found in a tensor's name
            counts.

    Returns:
        K new task vectors, in their own types.

    Raises:
        ConfigError: If there is no vector, `drop` is out of range, or the weights do not fit.
        ArchitectureMismatchError: If names, shapes or kinds of numbers differ.
        NonFiniteError: If an entry is NaN or infinite, or becomes so.
    """
    found = check_vectors(vectors)
    if not 0 <= drop < 1:
        raise ConfigError(f"DARE: drop {drop} is no probability below 1; choose one in [0, 1)")
    shares = NameWeights(weights, len(found), "DARE").check_used(found[0])
    device = generator.device if generator is not None else torch.device("cpu")

    def thin(value: Tensor, name: str, index: int) -> Tensor:
        stays = torch.rand(value.shape, generator=generator, device=device) >= drop
        return value.mul(shares.of(name)[index] / (1 - drop)).mul_(stays.to(value.device))

    return thinned(found, thin)


def thinned(
    vectors: Sequence[Mapping[str, Tensor]], thin: Callable[[Tensor, str, int], Tensor]
) -> list[StateDict]:
    """Task vectors with other parameters, and with the same running statistics and integers.

    The vectors are those of `check_vectors`; `thin` makes a new tensor of a floating-point or
    complex one, its name, and its vector's position.
    """
    result: list[StateDict] = []
    for index, vector in enumerate(vectors):
        kept: StateDict = {}
        for name, value in vector.items():
            value = value.detach()
            check_finite(f"task vector {index}: '{name}'", value, [])
            if is_numeric(value) and not is_running_statistic(name) and value.numel():
                # Eight bits are no type that torch sorts or multiplies in.
                working = value.float() if value.dtype.itemsize == 1 else value
                kept[name] = checked(name, thin(working, name, index).to(value.dtype))
            else:
                kept[name] = value.clone()
        result.append(kept)
    return result
