"""Shared by the small networks: timm's description of a model, and He's initialisation."""

from typing import Any

from torch import nn

# The statistics of CIFAR-10's training images, for which these networks were designed.
CIFAR_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR_STD = (0.2470, 0.2435, 0.2616)


def default_cfg(first_conv: str | None, classifier: str, **overrides: Any) -> dict[str, Any]:
    """Timm's description of a network that has no pretrained weights.

    Args:
        first_conv: Name of the layer that reads the image, where it is a convolution.
        classifier: Name of the last linear layer.
        **overrides: Entries that replace or extend the common ones.
    """
    return {
        "url": "",
        "num_classes": 10,
        "input_size": (3, 32, 32),
        "crop_pct": 1.0,
        "interpolation": "bilinear",
        "mean": CIFAR_MEAN,
        "std": CIFAR_STD,
        "first_conv": first_conv,
        "classifier": classifier,
        **overrides,
    }


def kaiming_init(network: nn.Module) -> None:
    """Initialise every convolution and linear layer after He et al. (arXiv:1502.01852).

    The gain is that of the ReLU for convolutions and 1 for linear layers, which are all
    classifiers here. Biases start at zero; norm layers keep their own initial values (1 and 0).
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)
