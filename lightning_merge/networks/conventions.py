"""Shared by the small networks: timm's description and methods, and He's initialisation."""

from typing import Any

from timm.layers import ClassifierHead
from torch import Tensor, nn

# The statistics of CIFAR-10's training images, for which these networks were designed.
CIFAR_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR_STD = (0.2470, 0.2435, 0.2616)


def default_cfg(first_conv: str | None, classifier: str, **overrides: Any) -> dict[str, Any]:
    """Timm's description of a network that has no pretrained weights.

    `first_conv` names the layer that reads the image, where it is a convolution, `classifier` the
    last linear layer; further entries replace or extend the common ones.
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


class Headed(nn.Module):
    """A network with a `ClassifierHead` on the feature maps that its `forward_features` gives."""

    num_classes: int
    head: ClassifierHead

    def get_classifier(self) -> nn.Module:
        """The last linear layer, or an identity where there are no classes."""
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the last linear layer, and the pooling where one is named."""
        self.num_classes = num_classes
        self.head.reset(num_classes, global_pool)
        kaiming_init(self.head)

    def forward_features(self, x: Tensor) -> Tensor:
        """Images `(N, C, H, W)` to feature maps."""
        raise NotImplementedError

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Feature maps to logits `(N, num_classes)`, or to pooled features."""
        return self.head(x, pre_logits=pre_logits)

    def forward(self, x: Tensor) -> Tensor:
        """Images `(N, C, H, W)` to logits `(N, num_classes)`."""
        return self.forward_head(self.forward_features(x))
