"""Images that live on a device as bytes, where a whole batch is made at once."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lightning_merge.data.augment import on_device_of
from lightning_merge.data.image_dataset import ImageDataset
from lightning_merge.data.images import LabelledImages
from lightning_merge.errors import ConfigError
from lightning_merge.progress import tracked

Batch = tuple[Tensor, Tensor]

# Images read at once.
_PIECE = 1024


class ResidentImages(Dataset[Batch]):
    """The examples of an `ImageDataset`, each batch of them made on the device that they are on.

    A `DataLoader` in the main process is to fetch whole batches, with `whole` as its `collate_fn`:
    its sampler draws their indices, as it does for any data set. Indices and the numbers that
    augmentation draws are all that travels; a seed gives the batches that it gives on the CPU.

    The source has all of their split's images and targets, on one device (`resident`), without what
    corrupts those of `data`.
    """

    def __init__(self, data: ImageDataset, source: LabelledImages) -> None:
        self.data = data
        self.source = source

    @property
    def targets(self) -> Tensor:
        """The labels of the examples, on the CPU: `(M,)` or `(M, L)`."""
        return self.data.targets

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Batch:
        images, targets = self.__getitems__([index])
        return images[0], targets[0]

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        chosen = self.data.indices[torch.as_tensor(indices)]
        positions = on_device_of(self.source.targets, chosen)
        images = self.data.prepared(self.source.images[positions])
        return images, self.source.targets[positions]


def whole(batch: Any) -> Any:
    """The `collate_fn` for `ResidentImages`, whose batches are whole."""
    return batch


def resident(data: ImageDataset, device: torch.device) -> LabelledImages:
    """All of a split as bytes on a device, resized and corrupted as the examples are."""
    images, targets = data.source.images, data.source.targets.to(device)
    try:
        if isinstance(images, Tensor) and data.corruption is None:
            return LabelledImages(images.to(device), targets)
        first = images[torch.zeros(1, dtype=torch.long)]
        stored = first.new_empty((len(targets), *first.shape[1:]), device=device)
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise ConfigError(
            f"on_device: {device} has no room for {len(targets)} images: leave on_device out"
        ) from error
    pieces = torch.arange(len(targets)).split(_PIECE)
    for piece in tracked(pieces, "Reading images"):
        read = images[piece]
        if data.corruption is not None:
            read = data.corruption(read, piece)
        stored[piece.to(device)] = read.to(device)
    return LabelledImages(stored, targets)


def default_device() -> torch.device:
    """The machine's accelerator, the current one of several; the CPU where there is none."""
    found = torch.accelerator.current_accelerator(check_available=True)
    if found is None:
        return torch.device("cpu")
    return torch.device(found.type, torch.accelerator.current_device_index())


def resident_loader(
    data: ImageDataset, source: LabelledImages, batch_size: int, shuffle: bool, drop_last: bool
) -> DataLoader[Batch]:
    """A loader of whole batches of examples on the device of their split, `source`."""
    return DataLoader(
        ResidentImages(data, source),
        batch_size=batch_size,
        shuffle=shuffle,
        drop_last=drop_last,
        collate_fn=whole,
    )
