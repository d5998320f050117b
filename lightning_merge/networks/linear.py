"""The single linear classifier: every pixel is a feature."""

from math import prod
from typing import Any

from timm.layers import to_2tuple
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from lightning_merge.networks.conventions import default_cfg, kaiming_init

__all__ = ["LinearClassifier", "linear_classifier"]

default_cfgs = generate_default_cfgs(
    {"linear_classifier": default_cfg(None, "head", fixed_input_size=True)}
)


class LinearClassifier(nn.Module):
    """Flatten, then one linear layer: its weights are one template image per class.

    Args:
        img_size: Height and width of the images; one number for square images.
        in_chans: Channels of the images.
        num_classes: Outputs; 0 returns the flattened image.
        drop_rate: Dropout before the classifier.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 32,
        in_chans: int = 3,
        num_classes: int = 10,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.num_features = self.head_hidden_size = in_chans * prod(to_2tuple(img_size))
        self.feature_info = [{"num_chs": self.num_features, "reduction": 1, "module": "flatten"}]
        self.flatten = nn.Flatten()
        self.drop = nn.Dropout(drop_rate)
        self.reset_classifier(num_classes)

    def get_classifier(self) -> nn.Module:
        """The linear layer, or an identity where there are no classes."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:  # noqa: ARG002
        """Replace the linear layer; `global_pool` is ignored, as there is no pooling."""
        self.num_classes = num_classes
        self.head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        kaiming_init(self.head)

    def forward_features(self, x: Tensor) -> Tensor:
        """Images `(N, C, H, W)` to pixels `(N, C * H * W)`."""
        return self.flatten(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pixels to logits `(N, num_classes)`, or only dropout if `pre_logits`."""
        x = self.drop(x)
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        """Images `(N, C, H, W)` to logits `(N, num_classes)`."""
        return self.forward_head(self.forward_features(x))


@register_model
def linear_classifier(pretrained: bool = False, **kwargs: Any) -> LinearClassifier:
    """One linear layer over the pixels; needs the images' `img_size` and `in_chans`.

    Args:
        pretrained: There are no pretrained weights; True makes timm report that.
        **kwargs: Arguments of `LinearClassifier`; timm's `global_pool` is accepted and ignored.
    """
    kwargs.pop("global_pool", None)
    return build_model_with_cfg(LinearClassifier, "linear_classifier", pretrained, **kwargs)
