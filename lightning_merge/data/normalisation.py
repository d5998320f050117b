"""Means and deviations that bring pixels to a network's range."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_merge.data.images import Images
from lightning_merge.progress import tracked


@dataclass(frozen=True)
class Normalisation:
    """Mean and standard deviation of each channel, of pixels scaled to [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def imagenet(cls, channels: int) -> "Normalisation":
        """ImageNet's statistics, usual for photographs; their mean where images are grey."""
        if channels == 1:
            return cls((0.449,), (0.226,))
        return cls((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

    @classmethod
    def clip(cls, channels: int) -> "Normalisation":
        """Those that CLIP was trained with (OpenAI's and most others); their mean where grey."""
        if channels == 1:
            return cls((0.449,), (0.269,))
        return cls((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))

    @classmethod
    def of(cls, images: Images) -> "Normalisation":
        """The exact statistics of uint8 images `(N, C, H, W)`, whatever the machine.

        They come from counts of the 256 values, which are integers: no order of summation
        changes them. A channel of one colour keeps its scale.
        """
        values = torch.arange(256, dtype=torch.float64) / 255
        means, stds = [], []
        for count in _count_values(images):
            counts = count.double()
            mean = (counts @ values) / counts.sum()
            std = ((counts @ (values - mean).square()) / counts.sum()).sqrt()
            means.append(mean.item())
            stds.append(std.item() or 1.0)
        return cls(tuple(means), tuple(stds))

    def __call__(self, images: Tensor) -> Tensor:
        """Uint8 `(N, C, H, W)` to float32 of mean 0 and deviation 1 per channel."""
        # Made on a GPU, each would wait for all that it has still to compute.
        mean, std = (
            torch.tensor(values).view(-1, 1, 1).to(images.device, non_blocking=True)
            for values in (self.mean, self.std)
        )
        return images.float().div_(255).sub_(mean).div_(std)


def adapted_normalisation(
    published: Normalisation | None, native: int, channels: int
) -> Normalisation | None:
    """Published statistics for images whose number of channels was `native`, and changed.

    Those of grey images repeated, or None where colour became grey: the deviation of the luminance
    does not follow from those of the channels.
    """
    if published is None or native == channels:
        return published
    if native == 1:
        return Normalisation(published.mean * channels, published.std * channels)
    return None


def _count_values(images: Images) -> Tensor:
    """How often each value occurs in each channel, `(C, 256)`, from a pass over all images."""
    pieces = torch.arange(len(images)).split(1024)
    counts = [
        torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in piece])
        for piece in (
            images[positions].unbind(1)
            for positions in tracked(pieces, "Reading statistics", not isinstance(images, Tensor))
        )
    ]
    return torch.stack(counts).sum(0)
