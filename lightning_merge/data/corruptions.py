"""Seven corruptions of Hendrycks and Dietterich (ICLR 2019, arXiv:1903.12261), by severity.

Written anew, with the parameters that the authors published for CIFAR-10-C (32 pixels),
Tiny-ImageNet-C (64) and ImageNet-C (224). They are the seven under which quality- and
diversity-aware merging is tested (its Table 2).
"""

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor

from lightning_merge.errors import ConfigError

Image = NDArray[np.float32]  # (C, H, W), in [0, 1]
Parameters = tuple[float, ...]

_WATER, _MUD = 0.0, 1.0
_COLOURS = {_WATER: (175, 238, 238), _MUD: (63, 42, 20)}
_LUMINANCE = np.array((0.299, 0.587, 0.114))

# By the size that they were chosen for, one row for each severity from 1 to 5.
_PUBLISHED: dict[str, dict[int, tuple[Parameters, ...]]] = {
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
            (0.62, 0.1, 0.7, 0.7, 0.5, _WATER),
            (0.65, 0.1, 0.8, 0.7, 0.5, _WATER),
            (0.65, 0.3, 1, 0.69, 0.5, _WATER),
            (0.65, 0.1, 0.7, 0.69, 0.6, _MUD),
            (0.65, 0.1, 0.5, 0.68, 0.6, _MUD),
        ),
        64: (
            (0.62, 0.1, 0.7, 0.7, 0.6, _WATER),
            (0.65, 0.1, 0.8, 0.7, 0.6, _WATER),
            (0.65, 0.3, 1, 0.69, 0.6, _WATER),
            (0.65, 0.1, 0.7, 0.68, 0.6, _MUD),
            (0.65, 0.1, 0.5, 0.67, 0.6, _MUD),
        ),
        224: (
            (0.65, 0.3, 4, 0.69, 0.6, _WATER),
            (0.65, 0.3, 3, 0.68, 0.6, _WATER),
            (0.65, 0.3, 2, 0.68, 0.5, _WATER),
            (0.65, 0.3, 1, 0.65, 1.5, _MUD),
            (0.67, 0.4, 1, 0.65, 1.5, _MUD),
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

#: The names of the corruptions.
CORRUPTIONS = tuple(_PUBLISHED)


@dataclass(frozen=True)
class Corruption:
    """One corruption at one severity, the same each time for the same image.

    What is random about an image (noise, direction, drops) follows from the corruption's
    name and the image's index alone: neither order, batch nor process changes it, and all
    severities share it. Parameters are those published for the nearest size on a logarithmic
    scale; lengths are scaled from there to the shorter side of the images, and drops are
    made there and resized. At 32, 64 and 224 pixels everything is as published, except that
    results are rounded to the nearest of the 256 values, and drops, which were drawn with
    another library, differ in detail.

    Args:
        name: `gaussian_noise`, `impulse_noise`, `motion_blur`, `spatter`, `contrast`,
            `pixelate` or `jpeg_compression`.
        severity: 1 to 5.

    Raises:
        ConfigError: If there is no such corruption or severity.
    """

    name: str
    severity: int = 3

    def __post_init__(self) -> None:
        if self.name not in CORRUPTIONS:
            raise ConfigError(
                f"corruption {self.name!r} is unknown: choose one of {', '.join(CORRUPTIONS)}"
            )
        if self.severity not in range(1, 6):
            raise ConfigError(f"severity is {self.severity}: choose 1 to 5")

    def __call__(self, images: Tensor, indices: Tensor | Sequence[int]) -> Tensor:
        """Corrupt images, before they are normalised.

        Args:
            images: `(N, C, H, W)` of one (grey) or three (colour) channels; uint8, or
                floating point in [0, 1]. JPEG rounds the latter to 256 values.
            indices: Which image of its set each one is, `(N,)`.

        Returns:
            New images of the same shape, type, range and device.

        Raises:
            ConfigError: If there are other channels, or values outside [0, 1].
        """
        pixels = _to_unit_range(images)
        height, width = images.shape[-2:]
        parameters, scale = self._parameters(min(height, width))
        corrupt = _FUNCTIONS[self.name]
        seed = CORRUPTIONS.index(self.name)
        corrupted = np.empty_like(pixels)
        for position, index in enumerate(torch.as_tensor(indices).tolist()):
            draw = np.random.default_rng((seed, index))
            corrupted[position] = corrupt(pixels[position], draw, scale, *parameters)
        result = torch.from_numpy(corrupted.clip(0, 1))
        if images.dtype == torch.uint8:
            result = result.mul_(255).round_()
        return result.to(images.device, images.dtype)

    def _parameters(self, size: int) -> tuple[Parameters, float]:
        published = _PUBLISHED[self.name]
        nearest = min(published, key=lambda known: abs(math.log(size / known)))
        return published[nearest][self.severity - 1], size / nearest


def _to_unit_range(images: Tensor) -> NDArray[np.float32]:
    if images.shape[1] not in (1, 3):
        raise ConfigError(
            f"images have {images.shape[1]} channels: only grey (1) and colour (3) are corrupted"
        )
    if images.dtype == torch.uint8:
        return images.cpu().numpy().astype(np.float32) / np.float32(255)
    pixels = images.detach().float().cpu().numpy()
    if pixels.size and not (pixels.min() >= 0 and pixels.max() <= 1):
        raise ConfigError(
            f"images go from {pixels.min():.3g} to {pixels.max():.3g}: corrupt them before they "
            "are normalised, in [0, 1]"
        )
    return pixels


def _gaussian_noise(image: Image, draw: Generator, scale: float, deviation: float) -> Image:
    del scale
    return image + np.float32(deviation) * draw.standard_normal(image.shape, dtype=np.float32)


def _impulse_noise(image: Image, draw: Generator, scale: float, fraction: float) -> Image:
    del scale
    struck = draw.random(image.shape) < fraction
    salt = draw.integers(0, 2, image.shape).astype(np.float32)
    return np.where(struck, salt, image)


def _motion_blur(image: Image, draw: Generator, scale: float, radius: float, sigma: float) -> Image:
    """A trail to one side, its weights half a Gaussian, up to 45 degrees off the horizontal."""
    angle = np.deg2rad(draw.uniform(-45, 45))
    steps = np.arange(round(2 * radius * scale) + 1)
    weights = np.exp(-((steps / (sigma * scale)) ** 2) / 2).astype(np.float32)
    weights /= weights.sum()
    reach = len(steps)
    padded = np.pad(image, ((0, 0), (reach, reach), (reach, reach)), mode="edge")
    height, width = image.shape[1:]
    blurred = np.zeros_like(image)
    downs = reach + np.rint(steps * np.sin(angle)).astype(int)
    rights = reach + np.rint(steps * np.cos(angle)).astype(int)
    for weight, down, right in zip(weights, downs, rights, strict=True):
        blurred += weight * padded[:, down : down + height, right : right + width]
    return blurred


def _spatter(
    image: Image,
    draw: Generator,
    scale: float,
    mean: float,
    deviation: float,
    blur: float,
    threshold: float,
    strength: float,
    kind: float,
) -> Image:
    """Drops of water that brighten, or splashes of mud that cover."""
    from scipy.ndimage import gaussian_filter

    height, width = image.shape[1:]
    shape = (max(round(height / scale), 1), max(round(width / scale), 1))
    liquid = gaussian_filter(mean + deviation * draw.standard_normal(shape), blur, mode="nearest")
    if kind == _MUD:
        cover = gaussian_filter((liquid > threshold).astype(np.float64), strength, mode="nearest")
        cover[cover < 0.8] = 0
    else:
        cover = strength * _relief(np.where(liquid < threshold, 0, liquid))
    cover = _resized(cover.astype(np.float32), (height, width))
    colour = np.array(_COLOURS[kind]) / 255
    if len(image) == 1:
        colour = colour[None] @ _LUMINANCE
    layer = cover * colour.astype(np.float32).reshape(-1, 1, 1)
    return image * (1 - cover) + layer if kind == _MUD else image + layer


def _relief(liquid: NDArray[np.floating]) -> NDArray[np.floating]:
    """Drops lit from one side: `(H, W)` in [0, 1], zero outside them."""
    from scipy.ndimage import binary_erosion, correlate, distance_transform_edt, uniform_filter

    drops = liquid > 0
    edges = drops & ~binary_erosion(drops, border_value=1)
    if not drops.any():
        return liquid
    distance = distance_transform_edt(~edges) if edges.any() else np.full(liquid.shape, 20.0)
    depth = _equalised(uniform_filter(np.minimum(distance, 20), 3, mode="mirror").astype(np.uint8))
    light = np.array(((-2, -1, 0), (-1, 1, 1), (0, 1, 2)))
    lit = correlate(depth, light, mode="mirror").clip(0, 255)
    shaded = liquid * uniform_filter(lit, 3, mode="mirror")
    return shaded / (shaded.max() or 1)


def _equalised(values: NDArray[np.uint8]) -> NDArray[np.floating]:
    """The histogram of whole numbers stretched to be even from 0 to 255."""
    below = np.bincount(values.ravel(), minlength=256).cumsum()
    lowest = below[values.min()]
    levels = (below - lowest) / max(values.size - lowest, 1) * 255
    return np.rint(levels)[values]


def _contrast(image: Image, draw: Generator, scale: float, factor: float) -> Image:
    del draw, scale
    means = image.mean((1, 2), keepdims=True)
    return (image - means) * np.float32(factor) + means


def _pixelate(image: Image, draw: Generator, scale: float, factor: float) -> Image:
    del draw, scale
    height, width = image.shape[1:]
    smaller = (max(int(height * factor), 1), max(int(width * factor), 1))
    return np.stack(
        [_resized(_resized(channel, smaller, "BOX"), (height, width), "BOX") for channel in image]
    )


def _jpeg_compression(image: Image, draw: Generator, scale: float, quality: float) -> Image:
    del draw, scale
    from PIL import Image as Pillow

    levels = np.rint(image * 255).astype(np.uint8)
    # Pillow takes grey images without, colour images with their channels last.
    picture = Pillow.fromarray(levels[0] if len(levels) == 1 else levels.transpose(1, 2, 0))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=int(quality))
    decoded = np.asarray(Pillow.open(file), dtype=np.float32) / np.float32(255)
    return decoded[None] if decoded.ndim == 2 else decoded.transpose(2, 0, 1)


def _resized(channel: Image, shape: tuple[int, int], method: str = "BILINEAR") -> Image:
    from PIL import Image as Pillow

    if channel.shape == shape:
        return channel
    size = (shape[1], shape[0])
    return np.asarray(Pillow.fromarray(channel).resize(size, Pillow.Resampling[method]))


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "gaussian_noise": _gaussian_noise,
    "impulse_noise": _impulse_noise,
    "motion_blur": _motion_blur,
    "spatter": _spatter,
    "contrast": _contrast,
    "pixelate": _pixelate,
    "jpeg_compression": _jpeg_compression,
}
