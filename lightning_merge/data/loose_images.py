"""Images that belong to no split, each prepared for a network or known as unreadable."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_merge.data.decode import UnreadableImageError, decode
from lightning_merge.data.normalisation import Normalisation
from lightning_merge.errors import ConfigError, one_line

Item = tuple[int, Tensor | str]
Batch = tuple[list[int], Tensor | None, dict[int, str]]


class LooseImages(Dataset[Item]):
    """Files of images, prepared as a checkpoint records it.

    `prepared` has `input_size` `[C, H, W]`, `mean` and `std`, and `interpolation` and `crop_pct`
    where they are not `bilinear` and 1 (`lightning_merge.preprocessing`).
    """

    def __init__(self, paths: Sequence[str], prepared: Mapping[str, Any]) -> None:
        self.paths = list(paths)
        try:
            channels, height, width = map(int, prepared["input_size"])
            mean, std = (tuple(map(float, prepared[name])) for name in ("mean", "std"))
            self.crop_pct = float(prepared.get("crop_pct", 1.0))
        except (TypeError, ValueError) as error:
            raise ConfigError(f"how images are prepared is damaged ({error}): state it") from error
        fits = len(mean) == len(std) == channels and channels in (1, 3) and all(std)
        if height != width or height < 1 or not fits or not 0 < self.crop_pct <= 1:
            raise ConfigError(
                f"images of size {list(prepared['input_size'])} with mean {list(mean)}, std "
                f"{list(std)} and crop_pct {self.crop_pct} cannot be prepared: square ones of 1 "
                "or 3 channels can, with a mean and a std for each"
            )
        self.size, self.channels = height, channels
        self.normalisation = Normalisation(mean, std)
        self.interpolation = str(prepared.get("interpolation", "bilinear"))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Item:
        """The position, and the image `(C, H, W)`, or why it cannot be read."""
        path = self.paths[index]
        try:
            # Of a folder of strangers' files each warning of Pillow's would break the progress.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                pixels = decode(
                    path, path, self.size, self.channels, self.interpolation, self.crop_pct
                )
        except UnreadableImageError as error:
            return index, one_line(error.__cause__ or error)
        return index, self.normalisation(pixels.unsqueeze(0))[0]

    @staticmethod
    def collate(items: Sequence[Item]) -> Batch:
        """The positions of what can be read, those images `(N, C, H, W)`, and what is wrong."""
        readable = [(index, image) for index, image in items if isinstance(image, Tensor)]
        broken = {index: why for index, why in items if isinstance(why, str)}
        images = torch.stack([image for _, image in readable]) if readable else None
        return [index for index, _ in readable], images, broken
