"""Images of any data set, brought to one size and one number of channels."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_merge.data.images import Images, Normalisation

# ITU-R BT.601, as Pillow's grey images are made.
_LUMINANCE = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class AdaptedImages:
    """Another collection's images, resized and recoloured whenever they are fetched.

    Args:
        images: The images.
        size: Pixels each way, by bilinear interpolation with antialiasing; None for their own.
        channels: 3 repeats grey images in each channel, 1 takes colour images' luminance;
            None leaves them as they are.
    """

    images: Images
    size: int | None = None
    channels: int | None = None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, positions: Tensor, /) -> Tensor:
        """Uint8 `(M, C, H, W)` for positions `(M,)`."""
        found = self.images[positions]
        if self.channels == 1 and found.shape[1] == 3:
            weights = torch.tensor(_LUMINANCE).view(-1, 1, 1)
            found = _to_uint8((found.float() * weights).sum(1, keepdim=True))
        if self.size is not None and found.shape[-2:] != (self.size, self.size):
            resized = F.interpolate(
                found.float(), (self.size, self.size), mode="bilinear", antialias=True
            )
            found = _to_uint8(resized)
        if self.channels == 3 and found.shape[1] == 1:
            found = found.expand(-1, 3, -1, -1).contiguous()
        return found


def adapted_normalisation(
    published: Normalisation | None, native: int, channels: int
) -> Normalisation | None:
    """Published statistics for images whose number of channels was changed.

    Args:
        published: The statistics of the images as they were.
        native: Their channels.
        channels: The channels now.

    Returns:
        Those of grey images repeated, or None where colour became grey: the deviation of
        the luminance does not follow from those of the channels.
    """
    if published is None or native == channels:
        return published
    if native == 1:
        return Normalisation(published.mean * channels, published.std * channels)
    return None


def _to_uint8(values: Tensor) -> Tensor:
    return values.round_().clamp_(0, 255).to(torch.uint8)
