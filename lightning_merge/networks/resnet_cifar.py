"""ResNet20 for small images, of any width (He et al., arXiv:1512.03385, Sec. 4.2)."""

from typing import Any, Literal

import torch.nn.functional as F
from timm.layers import ClassifierHead
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from lightning_merge.errors import ConfigError
from lightning_merge.networks.conventions import Headed, default_cfg, kaiming_init

__all__ = ["ResNetCIFAR", "resnet20_cifar"]

default_cfgs = generate_default_cfgs({"resnet20_cifar": default_cfg("conv1", "head.fc")})


class ResNetCIFAR(Headed):
    """Three stages of basic blocks over 16, 32 and 64 channels, times the width.

    Args:
        depth: Blocks in each stage; 3 make ResNet20.
        width: Factor of the numbers of channels.
        shortcut: Where a stage changes the shape: `"conv"` is a 1x1 convolution with
            BatchNorm (option B of the paper), `"pad"` takes every second pixel and appends
            channels of zeros (option A, without parameters).
        num_classes: Outputs; 0 returns the pooled features.
        in_chans: Channels of the images.
        global_pool: Any of timm's poolings; `""` for none.
        drop_rate: Dropout before the classifier.

    Raises:
        ConfigError: If `shortcut` is unknown or `width` is below 1.
    """

    def __init__(
        self,
        depth: int = 3,
        width: int = 1,
        shortcut: Literal["conv", "pad"] = "conv",
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        if shortcut not in ("conv", "pad"):
            raise ConfigError(f"shortcut {shortcut!r} is unknown: choose 'conv' or 'pad'")
        if width < 1:
            raise ConfigError(f"width {width} is too small: choose 1 or more")
        channels = [16 * width, 32 * width, 64 * width]
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.num_features = channels[-1]
        self.conv1 = nn.Conv2d(in_chans, channels[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels[0])
        self.act1 = nn.ReLU()
        self.layer1 = _stage(channels[0], channels[0], depth, 1, shortcut)
        self.layer2 = _stage(channels[0], channels[1], depth, 2, shortcut)
        self.layer3 = _stage(channels[1], channels[2], depth, 2, shortcut)
        self.head = ClassifierHead(self.num_features, num_classes, global_pool, drop_rate)
        self.head_hidden_size = self.num_features
        self.feature_info = [
            {"num_chs": channels[0], "reduction": 1, "module": "layer1"},
            {"num_chs": channels[1], "reduction": 2, "module": "layer2"},
            {"num_chs": channels[2], "reduction": 4, "module": "layer3"},
        ]
        kaiming_init(self)

    def forward_features(self, x: Tensor) -> Tensor:
        """Images `(N, C, H, W)` to feature maps `(N, 64 * width, H / 4, W / 4)`."""
        x = self.act1(self.bn1(self.conv1(x)))
        return self.layer3(self.layer2(self.layer1(x)))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm, added to the block's own input."""

    def __init__(self, inputs: int, outputs: int, stride: int, shortcut: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.act1 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.act2 = nn.ReLU()
        self.shortcut: nn.Module
        if inputs == outputs and stride == 1:
            self.shortcut = nn.Identity()
        elif shortcut == "conv":
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False),
                nn.BatchNorm2d(outputs),
            )
        else:
            self.shortcut = PadShortcut(outputs - inputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        """`(N, inputs, H, W)` to `(N, outputs, H / stride, W / stride)`."""
        residual = self.act1(self.bn1(self.conv1(x)))
        residual = self.bn2(self.conv2(residual))
        return self.act2(residual + self.shortcut(x))


class PadShortcut(nn.Module):
    """Every `stride`-th pixel, with channels of zeros appended to the existing ones."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.channels = channels
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """`(N, C, H, W)` to `(N, C + channels, H / stride, W / stride)`."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.channels))


def _stage(inputs: int, outputs: int, depth: int, stride: int, shortcut: str) -> nn.Sequential:
    first = BasicBlock(inputs, outputs, stride, shortcut)
    return nn.Sequential(
        first, *(BasicBlock(outputs, outputs, 1, shortcut) for _ in range(1, depth))
    )


@register_model
def resnet20_cifar(pretrained: bool = False, **kwargs: Any) -> ResNetCIFAR:
    """ResNet20: 0.27 million parameters at width 1.

    Args:
        pretrained: There are no pretrained weights; True makes timm report that.
        **kwargs: Arguments of `ResNetCIFAR`.
    """
    return build_model_with_cfg(
        ResNetCIFAR,
        "resnet20_cifar",
        pretrained,
        feature_cfg={"out_indices": (0, 1, 2)},
        **kwargs,
    )
