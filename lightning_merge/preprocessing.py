"""How images were prepared for a network: by the data module, in the checkpoint, for others."""

from collections.abc import Mapping
from typing import Any

KEY = "preprocessing"
"""Under which a checkpoint keeps it."""

NAMES = ("input_size", "mean", "std", "interpolation", "crop_pct", "label_names")


def preprocessing_of(source: object) -> dict[str, Any] | None:
    """What a data module says of how it prepares images, or what a checkpoint has kept of that.

    Args:
        source: A data module with a mapping `preprocessing`
            (`ClassificationDataModule.preprocessing`), or the content of a checkpoint.

    Returns:
        By timm's names `input_size` `[C, H, W]`, `mean` and `std` for each channel of pixels in
        [0, 1], `interpolation`, `crop_pct` and `label_names`, as far as they are given; None
        where size, mean or deviation is not.
    """
    found = source.get(KEY) if isinstance(source, Mapping) else getattr(source, KEY, None)
    # A data module of somebody else may have transforms under this name.
    if not isinstance(found, Mapping) or not {"input_size", "mean", "std"} <= found.keys():
        return None
    return {name: found[name] for name in NAMES if found.get(name) is not None}
