"""The augmentation that is usual for CIFAR, on whole batches of uint8 images.

One crop and one flip per image are drawn from torch's global generator on the CPU, which Lightning
seeds in every worker, wherever the images are: a seed gives the same ones on every device.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def random_crop(images: Tensor, padding: int) -> Tensor:
    """Shift each image by up to `padding` pixels each way, black coming in at the edges.

    `(N, C, H, W)` of any type to the same; a padding of 0 leaves the images as they are.
    """
    if padding == 0:
        return images
    count, _, height, width = images.shape
    padded = F.pad(images, (padding,) * 4)
    # A view of every possible crop: (N, C, 2 * padding + 1, 2 * padding + 1, H, W).
    crops = padded.unfold(2, height, 1).unfold(3, width, 1)
    top, left = on_device_of(images, torch.randint(0, 2 * padding + 1, (2, count)))
    return crops[torch.arange(count, device=images.device), :, top, left]


def random_flip(images: Tensor) -> Tensor:
    """Mirror each image left to right with probability 0.5; `(N, C, H, W)` to the same."""
    mirrored = on_device_of(images, torch.rand(len(images), 1, 1, 1) < 0.5)
    return torch.where(mirrored, images.flip(-1), images)


def on_device_of(images: Tensor, numbers: Tensor) -> Tensor:
    """A few numbers on the images' device; they travel while it computes."""
    return numbers.to(images.device, non_blocking=True)
