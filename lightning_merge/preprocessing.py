"""How images are preprocessed for a network: from the data module or from a checkpoint."""

from collections.abc import Mapping
from typing import Any

KEY = "preprocessing"
"""Under which a checkpoint keeps it."""

NAMES = ("input_size", "mean", "std", "interpolation", "crop_pct", "label_names")


def preprocessing_of(source: object) -> dict[str, Any] | None:
    """A data module's description of its preprocessing, or a checkpoint's record of it.

    Args:
        source: A data module with a mapping `preprocessing`
            (`ClassificationDataModule.preprocessing`), or the content of a checkpoint.

    Returns:
        Under timm's names: `input_size` `[C, H, W]`, `mean` and `std` of each channel for pixels
        in [0, 1], `interpolation`, `crop_pct` and `label_names`, as far as they are given; None
        if size, mean or standard deviation is missing.
    """
    found = source.get(KEY) if isinstance(source, Mapping) else getattr(source, KEY, None)
    # A user's data module may have transforms under this name.
    if not isinstance(found, Mapping) or not {"input_size", "mean", "std"} <= found.keys():
        return None
    return {name: found[name] for name in NAMES if found.get(name) is not None}
