"""Small networks for small images, registered with timm by importing this package.

`timm.create_model("resnet20_cifar", width=4, num_classes=100)` works afterwards, as do
`vgg11_cifar`, `vgg11_bn_cifar` and `linear_classifier`.
"""

from lightning_merge.networks.linear import LinearClassifier, linear_classifier
from lightning_merge.networks.resnet_cifar import ResNetCIFAR, resnet20_cifar
from lightning_merge.networks.vgg_cifar import VGGCIFAR, vgg11_bn_cifar, vgg11_cifar

__all__ = [
    "VGGCIFAR",
    "LinearClassifier",
    "ResNetCIFAR",
    "linear_classifier",
    "resnet20_cifar",
    "vgg11_bn_cifar",
    "vgg11_cifar",
]
