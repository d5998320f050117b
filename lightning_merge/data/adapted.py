"""Images of any data set, brought to one size and one number of channels."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_merge.data.image_files import EncodedImages
from lightning_merge.data.images import Images, LabelledImages, OfficialSplits

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


def adapted(official: OfficialSplits, size: int | None, channels: int | None) -> OfficialSplits:
    """All splits at one size and of one number of channels; None leaves either as it is.

    Encoded images are decoded at that size, so that they are resized once.
    """
    if size is None and channels is None:
        return official

    def adapt(split: LabelledImages) -> LabelledImages:
        if isinstance(split.images, EncodedImages):
            return LabelledImages(split.images.decoded_as(size, channels), split.targets)
        return LabelledImages(AdaptedImages(split.images, size, channels), split.targets)

    val = None if official.val is None else adapt(official.val)
    return OfficialSplits(adapt(official.train), adapt(official.test), val)


def _to_uint8(values: Tensor) -> Tensor:
    return values.round_().clamp_(0, 255).to(torch.uint8)
