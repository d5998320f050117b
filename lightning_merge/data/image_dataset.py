"""Images fetched, corrupted, augmented and normalised, a batch at once."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_merge.data.augment import random_crop, random_flip
from lightning_merge.data.corruptions import Corruption
from lightning_merge.data.images import LabelledImages
from lightning_merge.data.normalisation import Normalisation

# Corrupted images are kept where they take no more than this.
_KEPT_BYTES = 1 << 28


class ImageDataset(Dataset[tuple[Tensor, Tensor]]):
    """Some of the examples of a split, ready for a network.

    A `DataLoader` fetches a whole batch at once (`__getitems__`), so that the work per
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

    def under(self, corruption: Corruption, batch_size: int) -> "ImageDataset":
        """The same examples, corrupted, whatever corrupts them here.

        Args:
            corruption: What is done to each image.
            batch_size: How many are corrupted at once where that is done now, which it is
                where the images fit into memory.
        """
        twin = ImageDataset(self.source, self.normalisation, self.indices, corruption=corruption)
        first = self.source.images[self.indices[:1]]
        if len(self) * first.numel() > _KEPT_BYTES:
            return twin
        images = torch.cat(
            [
                corruption(self.source.images[chosen], chosen)
                for chosen in self.indices.split(batch_size)
            ]
        )
        return ImageDataset(LabelledImages(images, self.targets), self.normalisation)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        chosen = self.indices[torch.as_tensor(indices)]
        images = self.source.images[chosen]
        if self.corruption is not None:
            images = self.corruption(images, chosen)
        targets = self.source.targets[chosen]
        return list(zip(self.prepared(images).unbind(), targets.unbind(), strict=True))

    def prepared(self, images: Tensor) -> Tensor:
        """Uint8 images `(N, C, H, W)` augmented as they are here, and normalised to float32."""
        images = random_crop(images, self.padding)
        if self.flip:
            images = random_flip(images)
        return self.normalisation(images)
