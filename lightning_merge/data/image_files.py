"""Images that stay on disk until a batch asks for them."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from lightning_merge.errors import ConfigError, DataError


class ImageFiles:
    """Files of images, each decoded, cut and resized when it is asked for (see `decode`).

    Args:
        paths: The files, in the order of their positions.
        size: Height and width of what is read, in pixels.
        channels: 1 for grey, 3 for colour.
    """

    def __init__(self, paths: Sequence[str | Path], size: int, channels: int) -> None:
        # One array, not a list: loading processes share it instead of copying a million names.
        self.paths = np.array([os.fsencode(path) for path in paths])
        self.size = size
        self.channels = channels

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, positions: Tensor) -> Tensor:
        """Uint8 `(M, C, size, size)`.

        Raises:
            DataError: If a file is missing or damaged.
        """
        chosen = [os.fsdecode(path) for path in self.paths[positions.numpy()]]
        return torch.stack([decode(path, path, self.size, self.channels) for path in chosen])


def decode(file: str | IO[bytes], name: str, size: int, channels: int) -> Tensor:
    """Read one image: the largest central square of it, resized (bilinear, antialiased).

    Args:
        file: A path or an open file, in any format that Pillow reads.
        name: What an error calls it.
        size: Height and width of the result, in pixels.
        channels: 1 for grey, 3 for colour, whatever the file holds.

    Returns:
        `(channels, size, size)`, uint8.

    Raises:
        DataError: If the file is missing, or no image.
    """
    from PIL import Image

    try:
        with Image.open(file) as opened:
            image = opened.convert("L" if channels == 1 else "RGB")
    except FileNotFoundError as error:
        raise DataError(f"{name} is missing: unpack the data set again") from error
    # Pillow raises SyntaxError where a PNG is broken.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"{name} is damaged ({reason}): replace it, or unpack the data set again"
        ) from error
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    pixels = torch.from_numpy(np.array(square.resize((size, size), Image.Resampling.BILINEAR)))
    return pixels.unsqueeze(0) if channels == 1 else pixels.permute(2, 0, 1)


def check_images(size: int, channels: int) -> None:
    """Refuse what `decode` could not make.

    Raises:
        ConfigError: With the reason.
    """
    if size < 1:
        raise ConfigError(f"image_size is {size}: choose 1 or more pixels")
    if channels not in (1, 3):
        raise ConfigError(f"in_chans is {channels}: choose 1 (grey) or 3 (colour)")
