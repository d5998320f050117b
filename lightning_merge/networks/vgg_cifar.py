"""VGG11 for small images, with or without BatchNorm (Simonyan and Zisserman, arXiv:1409.1556).

Configuration A of the paper with its three linear layers replaced by global pooling and
one, as is usual on CIFAR.
"""

from typing import Any

from timm.layers import ClassifierHead
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from lightning_merge.errors import ConfigError
from lightning_merge.networks.conventions import Headed, default_cfg, kaiming_init

__all__ = ["VGGCIFAR", "vgg11_bn_cifar", "vgg11_cifar"]

default_cfgs = generate_default_cfgs(
    {name: default_cfg("features.0", "head.fc") for name in ("vgg11_cifar", "vgg11_bn_cifar")}
)

# Each row is followed by a max-pool that halves the image.
VGG11_CHANNELS = ((64,), (128,), (256, 256), (512, 512), (512, 512))


class VGGCIFAR(Headed):
    """Eight 3x3 convolutions with ReLU, five max-pools, global pooling, one linear layer.

    The max-pools round up, so that images of 8x8, 28x28 and 32x32 all come out as 1x1.
    A convolution followed by BatchNorm has no bias: the norm would subtract it.

    Args:
        batch_norm: Whether BatchNorm follows each convolution.
        width: Factor of the numbers of channels.
        num_classes: Outputs; 0 returns the pooled features.
        in_chans: Channels of the images.
        global_pool: Any of timm's poolings; `""` for none.
        drop_rate: Dropout before the classifier.

    Raises:
        ConfigError: If `width` is below 1.
    """

    def __init__(
        self,
        batch_norm: bool = False,
        width: int = 1,
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        if width < 1:
            raise ConfigError(f"width {width} is too small: choose 1 or more")
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.feature_info = []
        layers: list[nn.Module] = []
        inputs = in_chans
        for stage, row in enumerate(VGG11_CHANNELS):
            for outputs in (width * channels for channels in row):
                layers.append(nn.Conv2d(inputs, outputs, 3, padding=1, bias=not batch_norm))
                if batch_norm:
                    layers.append(nn.BatchNorm2d(outputs))
                layers.append(nn.ReLU())
                inputs = outputs
            last = f"features.{len(layers) - 1}"
            self.feature_info.append({"num_chs": inputs, "reduction": 2**stage, "module": last})
            layers.append(nn.MaxPool2d(2, ceil_mode=True))
        self.num_features = inputs
        self.features = nn.Sequential(*layers)
        self.head = ClassifierHead(self.num_features, num_classes, global_pool, drop_rate)
        self.head_hidden_size = self.num_features
        kaiming_init(self)

    def forward_features(self, x: Tensor) -> Tensor:
        """Images `(N, C, H, W)` to feature maps `(N, 512 * width, H / 32, W / 32)`."""
        return self.features(x)


@register_model
def vgg11_cifar(pretrained: bool = False, **kwargs: Any) -> VGGCIFAR:
    """VGG11 without BatchNorm: 9.2 million parameters at width 1."""
    return _build("vgg11_cifar", pretrained, batch_norm=False, **kwargs)


@register_model
def vgg11_bn_cifar(pretrained: bool = False, **kwargs: Any) -> VGGCIFAR:
    """VGG11 with BatchNorm: 9.2 million parameters at width 1."""
    return _build("vgg11_bn_cifar", pretrained, batch_norm=True, **kwargs)


def _build(variant: str, pretrained: bool, **kwargs: Any) -> VGGCIFAR:
    feature_cfg = {"flatten_sequential": True, "out_indices": (0, 1, 2, 3, 4)}
    return build_model_with_cfg(VGGCIFAR, variant, pretrained, feature_cfg=feature_cfg, **kwargs)
