"""Several folders of one study, put together into one."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_merge.checkpoint import digest
from lightning_merge.errors import ConfigError, OutputExistsError
from lightning_merge.recipe.build import Plain
from lightning_merge.study.folder import StudyFolder, unite
from lightning_merge.study.same_data import take_notes
from lightning_merge.study.store import Store


def study_of(folders: Sequence[Path], names: Sequence[str]) -> str:
    """Which of several files says what the study in the folders is: the same in all of them."""
    found = {}
    for folder in folders:
        found[folder] = next((name for name in names if (folder / name).is_file()), None)
        if found[folder] is None:
            listed = " or ".join(names)
            raise ConfigError(f"{folder} holds no study: it has no {listed}; leave it out")
    first = found[folders[0]]
    for folder, name in found.items():
        if name != first:
            raise ConfigError(f"{folders[0]} has {first}, and {folder} has {name}: join like ones")
    assert first is not None
    return first


def joined_config(folders: Sequence[StudyFolder]) -> Plain:
    """The study that does what those of all folders do.

    They may differ in seeds, recipes, pool sizes and ingredients only.
    """
    config = folders[0].stored()
    for folder in folders[1:]:
        stored = folder.stored()
        both = unite(config, stored, folder.shown)
        if both is None:
            raise OutputExistsError(
                f"{folder.folder} holds another study than {folders[0].folder}: join folders whose "
                "model, data and training are the same"
            )
        _name_replaced(config, stored, folder)
        config = both
    return config


def _name_replaced(config: Plain, stored: Plain, folder: StudyFolder) -> None:
    """Warns of recipes that those of a later folder take the places of."""
    earlier = {recipe["name"]: recipe for recipe in config["recipes"]}
    for recipe in stored["recipes"]:
        if earlier.get(recipe["name"], recipe) != recipe:
            warnings.warn(
                f"recipe {recipe['name']!r} has other settings in {folder.folder} than in the "
                "folders before it, whose results of it are left out: rename one to keep both",
                stacklevel=4,
            )


def gather(sources: Sequence[Store], target: Store) -> int:
    """Copies finished pieces, with how they were made, into one store, and counts them.

    What does not match its digest is left out, with a warning. Where two folders have a piece with
    different results the first one's stays, and a warning names it.

    Raises:
        DataError: If the data of two folders differ.
    """
    copied = 0
    for source in sources:
        source.check_schema()
        take_notes(source, target)
        for path in sorted(source.folder.glob("*/result.json")):
            key = path.parent.name
            damage = source.damage(key)
            if damage != "":
                said = damage or "was not finished"
                warnings.warn(f"{path.parent}: {said}; it is left out", stacklevel=2)
            elif key not in target:
                target.take(source, key)
                copied += 1
            elif _essence(source, key) != _essence(target, key):
                warnings.warn(
                    f"{path.parent} and {target.folder / key} are the same piece of work with "
                    "different results: the latter is kept",
                    stacklevel=2,
                )
    return copied


def _essence(store: Store, key: str) -> Any:
    """A piece's result without times, and the digest of its tensors."""
    tensors = digest(store.state(key)) if store.weights(key).is_file() else None
    return _timeless(store.result(key)), tensors


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _timeless(one) for name, one in value.items() if "seconds" not in name}
    return [_timeless(one) for one in value] if isinstance(value, list) else value
