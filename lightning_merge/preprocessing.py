"""How images are preprocessed for a network: from the data module or from a checkpoint."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any
from unicodedata import normalize

from lightning_merge.errors import printable

KEY = "preprocessing"
"""Under which a checkpoint keeps it."""

NAMES = ("input_size", "mean", "std", "interpolation", "crop_pct", "label_names")


def preprocessing_of(source: object) -> dict[str, Any] | None:
    """A data module's description of its preprocessing, or that which a checkpoint records.

    A module's is a mapping `preprocessing` (`ClassificationDataModule.preprocessing`). Under timm's
    names it has `input_size` `[C, H, W]`, `mean` and `std` of each channel for pixels in [0, 1],
    `interpolation`, `crop_pct` and `label_names`, as far as they are given; there is none if size,
    mean or standard deviation is missing.
    """
    found = source.get(KEY) if isinstance(source, Mapping) else getattr(source, KEY, None)
    # A user's data module may have transforms under this name.
    if not isinstance(found, Mapping) or not {"input_size", "mean", "std"} <= found.keys():
        return None
    return {name: found[name] for name in NAMES if found.get(name) is not None}


def warn_of_other_classes(
    names: Sequence[str],
    sources: Sequence[object],
    data: object = None,
    side_by_side: bool = False,
) -> None:
    """Warns where an output stands for another class than it does in the data, or in a network.

    Networks are averaged, and their answers counted, by the places of their outputs. Sources are
    the contents of their checkpoints; the data module, if there is one, is set up, and may have no
    `class_names`. With `side_by_side` the networks' classes follow one another in one head.
    """
    prepared = [preprocessing_of(one) or {} for one in sources]
    known = {
        name: _class_names(one.get("label_names"))
        for name, one in zip(names, prepared, strict=True)
    }
    if side_by_side:
        joined = [one for own in known.values() for one in own or ()]
        known = {"the head of all": None if None in known.values() else joined}
    wanted, whose = _class_names(getattr(data, "class_names", None)), "the data"
    for name, own in known.items():
        if own is None:
            continue
        if wanted is None:
            wanted, whose = own, printable(name)
        pairs = enumerate(zip(own, wanted, strict=False))
        differing = [place for place, (one, other) in pairs if one != other]
        if differing and len(own) == len(wanted):
            place = differing[0]
            warnings.warn(
                f"output {place} is {own[place]!r} for {printable(name)} and {wanted[place]!r} for "
                f"{whose}, and outputs are compared by their places: give data modules the same "
                "classes in the same order",
                stacklevel=2,
            )


def _class_names(found: object) -> list[str] | None:
    """Names as they can be printed; None if they are none, or only numbers."""
    if not isinstance(found, Sequence) or isinstance(found, str):
        return None
    names = [printable(normalize("NFC", str(one))) for one in found]
    return None if all(name.isdecimal() for name in names) else names
