"""Labelled images in memory: one uint8 tensor, fetched, augmented and normalised by batch."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_merge.data.augment import random_crop, random_flip


@dataclass(frozen=True)
class LabelledImages:
    """One official split of a data set.

    Attributes:
        images: `(N, C, H, W)`, uint8.
        targets: Classes `(N,)`, long; or `(N, L)`, float zeros and ones (multi-label).
    """

    images: Tensor
    targets: Tensor


@dataclass(frozen=True)
class Normalisation:
    """Mean and standard deviation of each channel, of pixels scaled to [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, images: Tensor) -> "Normalisation":
        """The exact statistics of uint8 images `(N, C, H, W)`, whatever the machine.

        They come from counts of the 256 values, which are integers: no order of summation
        changes them. A channel of one colour keeps its scale.
        """
        values = torch.arange(256, dtype=torch.float64) / 255
        means, stds = [], []
        for channel in images.unbind(1):
            counts = torch.bincount(channel.flatten(), minlength=256).double()
            mean = (counts @ values) / counts.sum()
            std = ((counts @ (values - mean).square()) / counts.sum()).sqrt()
            means.append(mean.item())
            stds.append(std.item() or 1.0)
        return cls(tuple(means), tuple(stds))

    def __call__(self, images: Tensor) -> Tensor:
        """Uint8 `(N, C, H, W)` to float32 of mean 0 and deviation 1 per channel."""
        mean = torch.tensor(self.mean).view(-1, 1, 1)
        std = torch.tensor(self.std).view(-1, 1, 1)
        return images.float().div_(255).sub_(mean).div_(std)


class ImageDataset(Dataset[tuple[Tensor, Tensor]]):
    """Some of the examples of a split, ready for a network.

    A `DataLoader` asks for a whole batch at once (`__getitems__`), so that the work per
    image is a few vector operations; it collates as usual.

    Args:
        source: All the examples.
        indices: Which of them belong here, `(M,)`; None for all.
        normalisation: What brings pixels to the network's range.
        padding: Pixels by which a random crop may shift; 0 for none.
        flip: Whether half of the images, at random, are mirrored.
    """

    def __init__(
        self,
        source: LabelledImages,
        normalisation: Normalisation,
        indices: Tensor | None = None,
        padding: int = 0,
        flip: bool = False,
    ) -> None:
        self.source = source
        self.normalisation = normalisation
        self.indices = torch.arange(len(source.targets)) if indices is None else indices
        self.padding = padding
        self.flip = flip

    @property
    def targets(self) -> Tensor:
        """The labels of the examples here: `(M,)` or `(M, L)`."""
        return self.source.targets[self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        chosen = self.indices[torch.as_tensor(indices)]
        images = random_crop(self.source.images[chosen], self.padding)
        if self.flip:
            images = random_flip(images)
        targets = self.source.targets[chosen]
        return list(zip(self.normalisation(images).unbind(), targets.unbind(), strict=True))
