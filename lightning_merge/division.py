"""How a data set was divided for a network: who was trained on what is held out or tested now."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from lightning_merge import preprocessing
from lightning_merge.errors import printable

KEY = "division"
"""Under which a checkpoint keeps it."""

DIVIDING = ("held_out", "split_seed", "test_fraction", "test_seed")
"""Arguments of data modules that decide what is trained on, held out and tested."""


def division_of(source: object) -> dict[str, Any] | None:
    """A data module's division of its examples, or that which the content of a checkpoint records.

    A module's is a mapping `division` (`ClassificationDataModule.division`): `examples`, which says
    whether two modules have the same ones, and the settings.
    """
    found = source.get(KEY) if isinstance(source, Mapping) else getattr(source, KEY, None)
    if not isinstance(found, Mapping) or not isinstance(found.get("examples"), str):
        return None
    return {"examples": found["examples"], **{name: found.get(name) for name in DIVIDING}}


def records_of(data: object) -> dict[str, dict[str, Any]]:
    """What a checkpoint keeps of its data module, if that says anything, under the names there."""
    found = {preprocessing.KEY: preprocessing.preprocessing_of(data), KEY: division_of(data)}
    return {key: record for key, record in found.items() if record is not None}


def warn_of_other_divisions(names: Sequence[str], sources: Sequence[object], data: object) -> None:
    """Warns where networks were trained on another division of the same examples than `data`.

    What is held out or tested now may then be what they were trained on, and what is chosen or
    measured on it flatters them. Sources are the contents of checkpoints, or the data modules that
    networks are trained on.
    """
    recorded = {name: division_of(one) for name, one in zip(names, sources, strict=True)}
    if not any(recorded.values()) or (now := division_of(data)) is None:
        return
    for name, then in recorded.items():
        if then is None or then["examples"] != now["examples"]:
            continue
        differing = [setting for setting in DIVIDING if then[setting] != now[setting]]
        if differing:
            settings = ", ".join(f"{one} {then[one]} (now {now[one]})" for one in differing)
            warnings.warn(
                f"{printable(name)} was trained on another division of these images: {settings}; "
                "it may have seen what is held out or tested now, so give the data the same "
                "settings",
                stacklevel=2,
            )
