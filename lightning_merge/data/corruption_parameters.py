"""The parameters of the corruptions, as published for three sizes, and which of them are taken."""

import math
from typing import Literal, get_args

from lightning_merge.errors import ConfigError

Parameters = tuple[float, ...]
ParameterSet = Literal["nearest", "cifar-10-c", "tiny-imagenet-c", "imagenet-c", "fusionbench"]

WATER, MUD = 0.0, 1.0

_SIZES = {"cifar-10-c": 32, "fusionbench": 32, "tiny-imagenet-c": 64, "imagenet-c": 224}

# By the size that they were chosen for, one row for each severity from 1 to 5.
PUBLISHED: dict[str, dict[int, tuple[Parameters, ...]]] = {
    "gaussian_noise": {  # standard deviation
        32: ((0.04,), (0.06,), (0.08,), (0.09,), (0.10,)),
        64: ((0.04,), (0.08,), (0.12,), (0.15,), (0.18,)),
        224: ((0.08,), (0.12,), (0.18,), (0.26,), (0.38,)),
    },
    "impulse_noise": {  # fraction of the values
        32: ((0.01,), (0.02,), (0.03,), (0.05,), (0.07,)),
        64: ((0.01,), (0.02,), (0.05,), (0.08,), (0.14,)),
        224: ((0.03,), (0.06,), (0.09,), (0.17,), (0.27,)),
    },
    "motion_blur": {  # radius and deviation, in pixels
        32: ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
        64: ((10, 1), (10, 1.5), (10, 2), (10, 2.5), (12, 3)),
        224: ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
    },
    "spatter": {  # mean, deviation, blur and threshold of the liquid; its strength; its kind
        32: (
            (0.62, 0.1, 0.7, 0.7, 0.5, WATER),
            (0.65, 0.1, 0.8, 0.7, 0.5, WATER),
            (0.65, 0.3, 1, 0.69, 0.5, WATER),
            (0.65, 0.1, 0.7, 0.69, 0.6, MUD),
            (0.65, 0.1, 0.5, 0.68, 0.6, MUD),
        ),
        64: (
            (0.62, 0.1, 0.7, 0.7, 0.6, WATER),
            (0.65, 0.1, 0.8, 0.7, 0.6, WATER),
            (0.65, 0.3, 1, 0.69, 0.6, WATER),
            (0.65, 0.1, 0.7, 0.68, 0.6, MUD),
            (0.65, 0.1, 0.5, 0.67, 0.6, MUD),
        ),
        224: (
            (0.65, 0.3, 4, 0.69, 0.6, WATER),
            (0.65, 0.3, 3, 0.68, 0.6, WATER),
            (0.65, 0.3, 2, 0.68, 0.5, WATER),
            (0.65, 0.3, 1, 0.65, 1.5, MUD),
            (0.67, 0.4, 1, 0.65, 1.5, MUD),
        ),
    },
    "contrast": {  # what is left of it
        32: ((0.75,), (0.5,), (0.4,), (0.3,), (0.15,)),
        64: ((0.4,), (0.3,), (0.2,), (0.1,), (0.05,)),
        224: ((0.4,), (0.3,), (0.2,), (0.1,), (0.05,)),
    },
    "pixelate": {  # what is left of the resolution
        32: ((0.95,), (0.9,), (0.85,), (0.75,), (0.65,)),
        64: ((0.9,), (0.8,), (0.7,), (0.6,), (0.5,)),
        224: ((0.6,), (0.5,), (0.4,), (0.3,), (0.25,)),
    },
    "jpeg_compression": {  # quality
        32: ((80,), (65,), (58,), (50,), (40,)),
        64: ((65,), (58,), (50,), (40,), (25,)),
        224: ((25,), (18,), (15,), (10,), (7,)),
    },
}


def check_parameters(chosen: str) -> None:
    """Refuses, by a `ConfigError`, a set of parameters that there is not."""
    if chosen not in get_args(ParameterSet):
        raise ConfigError(
            f"parameters {chosen!r} of corruptions are unknown: choose one of "
            f"{', '.join(get_args(ParameterSet))}"
        )


def parameters_of(name: str, severity: int, size: int, chosen: str) -> tuple[Parameters, float]:
    """One corruption's parameters, and by how much lengths among them are to be multiplied.

    For images whose shorter side has `size` pixels; `chosen` is one of `ParameterSet`, see
    `Corruption`.
    """
    published = PUBLISHED[name]
    if chosen == "nearest":
        home = min(published, key=lambda known: abs(math.log(size / known)))
    else:
        home = _SIZES[chosen]
    parameters = published[home][severity - 1]
    if chosen != "fusionbench":
        return parameters, size / home
    # Its code brings images of any size to 32 pixels before it puts them back together.
    return (*parameters, 32.0) if name == "pixelate" else parameters, 1.0
