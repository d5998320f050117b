"""Seven corruptions of Hendrycks and Dietterich (ICLR 2019, arXiv:1903.12261), by severity.

Written anew, with the parameters that the authors published for CIFAR-10-C (32 pixels),
Tiny-ImageNet-C (64) and ImageNet-C (224). They are the seven under which quality- and
diversity-aware merging is tested (its Table 2).
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor

from lightning_merge.data.corruption_parameters import (
    PUBLISHED,
    ParameterSet,
    check_parameters,
    parameters_of,
)
from lightning_merge.data.spatter import Image, resized, spatter
from lightning_merge.errors import ConfigError

#: The names of the corruptions.
CORRUPTIONS = tuple(PUBLISHED)


@dataclass(frozen=True)
class Corruption:
    """One corruption at one severity, the same each time for the same image.

    What is random about an image (noise, direction, drops) follows from the corruption's
    name and the image's index alone: neither order, batch nor process changes it, and all
    severities and parameter sets share it. At the sizes for which parameters were published
    everything is as published, except that results are rounded to the nearest of the 256
    values, and that random numbers come from another generator.

    Args:
        name: `gaussian_noise`, `impulse_noise`, `motion_blur`, `spatter`, `contrast`,
            `pixelate` or `jpeg_compression`.
        severity: 1 to 5.
        parameters: Whose parameters:

            * `"nearest"`: those published for the nearest size on a logarithmic scale:
              CIFAR-10-C's up to 45 pixels, Tiny-ImageNet-C's up to 119, else ImageNet-C's.
            * `"cifar-10-c"`, `"tiny-imagenet-c"`, `"imagenet-c"`: those published for 32, 64 or
              224 pixels, at any size.
            * `"fusionbench"`: CIFAR-10-C's with lengths in pixels, whatever the size, and
              `pixelate` at 32 pixels, as FusionBench's code (arXiv:2406.03280) has it, which
              the merging of CLIP's networks is tested with.

            In all but the last lengths are scaled from the size of the set to the shorter side
            of the images; drops are made at that size and resized.

    Raises:
        ConfigError: If there is no such corruption, severity or parameter set.
    """

    name: str
    severity: int = 3
    parameters: ParameterSet = "nearest"

    def __post_init__(self) -> None:
        if self.name not in CORRUPTIONS:
            raise ConfigError(
                f"corruption {self.name!r} is unknown: choose one of {', '.join(CORRUPTIONS)}"
            )
        if self.severity not in range(1, 6):
            raise ConfigError(f"severity is {self.severity}: choose 1 to 5")
        check_parameters(self.parameters)

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
        parameters, scale = parameters_of(
            self.name, self.severity, min(height, width), self.parameters
        )
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


def _contrast(image: Image, draw: Generator, scale: float, factor: float) -> Image:
    del draw, scale
    means = image.mean((1, 2), keepdims=True)
    return (image - means) * np.float32(factor) + means


def _pixelate(image: Image, draw: Generator, scale: float, factor: float, side: float = 0) -> Image:
    """Averaged over boxes, at the image's own size or at `side` pixels each way."""
    del draw, scale
    height, width = image.shape[1:]
    within = (int(side), int(side)) if side else (height, width)
    smaller = (max(int(within[0] * factor), 1), max(int(within[1] * factor), 1))
    boxes = [resized(resized(channel, smaller, "BOX"), within, "BOX") for channel in image]
    return np.stack([resized(channel, (height, width), "BICUBIC") for channel in boxes])


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


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "gaussian_noise": _gaussian_noise,
    "impulse_noise": _impulse_noise,
    "motion_blur": _motion_blur,
    "spatter": spatter,
    "contrast": _contrast,
    "pixelate": _pixelate,
    "jpeg_compression": _jpeg_compression,
}
