"""Images that stay encoded until a batch needs them."""

import copy
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, Self

import numpy as np
import torch
from torch import Tensor

from lightning_merge.data.decode import decode


class EncodedImages(ABC):
    """Images, each decoded, resized and cut when it is fetched (see `decode`).

    They are of `size` pixels each way, with 1 channel for grey or 3 for colour.
    """

    def __init__(self, size: int, channels: int) -> None:
        self.size = size
        self.channels = channels

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def open(self, positions: Tensor) -> Iterable[tuple[str | IO[bytes], str]]:
        """For each position the file, and what an error calls it."""

    def __getitem__(self, positions: Tensor) -> Tensor:
        """Uint8 `(M, C, size, size)`."""
        return torch.stack(
            [decode(file, name, self.size, self.channels) for file, name in self.open(positions)]
        )

    def decoded_as(self, size: int | None, channels: int | None) -> Self:
        """The same images at another size or of other channels; None for those here."""
        twin = copy.copy(self)
        twin.size, twin.channels = size or self.size, channels or self.channels
        return twin


class ImageFiles(EncodedImages):
    """Files of images.

    Args:
        paths: The files, in the order of their positions.
        size: Height and width of what is read, in pixels.
        channels: 1 for grey, 3 for colour.
    """

    def __init__(self, paths: Sequence[str | Path], size: int, channels: int) -> None:
        super().__init__(size, channels)
        # One array, not a list: loading processes share it instead of copying a million names.
        self.paths = np.array([os.fsencode(path) for path in paths])

    def __len__(self) -> int:
        return len(self.paths)

    def open(self, positions: Tensor) -> Iterable[tuple[str, str]]:
        """The paths, twice."""
        for path in map(os.fsdecode, self.paths[positions.numpy()]):
            yield path, path
