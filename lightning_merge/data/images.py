"""Labelled images, in memory or on disk, fetched, augmented and normalised by batch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_merge.data.augment import random_crop, random_flip
from lightning_merge.data.corruptions import Corruption
from lightning_merge.progress import tracked


class Images(Protocol):
    """Images that are fetched by their positions: a tensor is one, `ImageFiles` another.

    `images[positions]` takes long `(M,)` and gives uint8 `(M, C, H, W)`.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, positions: Tensor, /) -> Tensor: ...


@dataclass(frozen=True)
class LabelledImages:
    """One official split of a data set.

    Attributes:
        images: N images of uint8: a tensor `(N, C, H, W)`, or what reads them when asked.
        targets: Classes `(N,)`, long; or `(N, L)`, float zeros and ones (multi-label).
    """

    images: Images
    targets: Tensor


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
        mean = torch.tensor(self.mean).view(-1, 1, 1)
        std = torch.tensor(self.std).view(-1, 1, 1)
        return images.float().div_(255).sub_(mean).div_(std)


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
        corruption: What is done to every image first, by its position in the source.
    """

    def __init__(
        self,
        source: LabelledImages,
        normalisation: Normalisation,
        indices: Tensor | None = None,
        padding: int = 0,
        flip: bool = False,
        corruption: Corruption | None = None,
    ) -> None:
        self.source = source
        self.normalisation = normalisation
        self.indices = torch.arange(len(source.targets)) if indices is None else indices
        self.padding = padding
        self.flip = flip
        self.corruption = corruption

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
        images = self.source.images[chosen]
        if self.corruption is not None:
            images = self.corruption(images, chosen)
        images = random_crop(images, self.padding)
        if self.flip:
            images = random_flip(images)
        targets = self.source.targets[chosen]
        return list(zip(self.normalisation(images).unbind(), targets.unbind(), strict=True))
