"""The folder of a study, in which work that was stopped is resumed."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_merge.errors import OutputExistsError
from lightning_merge.files import claim_folder, read_json, sweep, write_json
from lightning_merge.folder_lock import lock_folder
from lightning_merge.recipe.build import Plain
from lightning_merge.study.plan import determining
from lightning_merge.study.store import Store

# A study with more of these resumes one with fewer.
_GROWS = ("seeds", "recipes", "pool_sizes")


@dataclass(frozen=True)
class StudyFolder:
    """An output folder, and the store of finished work in it.

    Attributes:
        folder: The folder.
        name: Of the file that describes the study in it.
        shown: Options that change what is shown or added, and nothing that is stored.
    """

    folder: Path
    name: str
    shown: Sequence[str]

    @property
    def store(self) -> Store:
        """Where finished work lies."""
        return Store(self.folder / "runs")

    @contextmanager
    def alone(self) -> Iterator[None]:
        """While no other process works in the folder; what killed ones left half written goes.

        Raises:
            OutputExistsError: If another process works there.
        """
        with lock_folder(self.folder):
            merges = self.folder / "merges"
            for folder in (*self.store.folder.glob("*/"), merges, *merges.rglob("*/")):
                sweep(folder)
            sweep(self.store.folder)
            sweep(self.folder)
            yield

    def claim(self, config: Plain, results: Sequence[str], overwrite: bool) -> None:
        """Takes the folder for a study.

        The same study, or one that does more, is resumed in its folder; another one would write
        over its tables.

        Args:
            config: The study's options.
            results: What is written into the folder.
            overwrite: Whether another study's results there may be written over.

        Raises:
            OutputExistsError: If another study is in the folder and is not to be overwritten, or
                work in another version's format.
        """
        self.store.check_schema()
        kept = self.folder / self.name
        before = None if overwrite or not kept.is_file() else self._before(kept)
        if before is not None and not goes_on(before, config, self.shown):
            raise OutputExistsError(
                f"{self.folder} holds another study: choose another --output, or add --overwrite "
                "(what both studies share is not computed again)"
            )
        claim_folder(self.folder, () if kept.is_file() else results, overwrite)
        write_json(kept, config)

    def _before(self, kept: Path) -> Plain:
        try:
            found = read_json(kept)
        except (OSError, ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise OutputExistsError(
                f"{kept} is damaged, so that it does not say which study the folder holds: choose "
                "another --output, or add --overwrite (finished work is not computed again)"
            )
        return found


def goes_on(before: Plain, now: Plain, shown: Sequence[str]) -> bool:
    """Whether a study does all that an earlier one did, whose results are then its own, too."""
    before, now = ({**one, "trainer": _determining(one.get("trainer"))} for one in (before, now))
    same = all(before.get(key) == now[key] for key in now if key not in (*_GROWS, *shown))
    more = (key for key in _GROWS if key in now)
    return same and all(item in now[key] for key in more for item in _listed(before.get(key)))


def _determining(trainer: Any) -> Any:
    return determining(trainer) if isinstance(trainer, Mapping) else (trainer or {})


def _listed(value: Any) -> list[Any]:
    # What is no list was not written here, and is in no list either.
    return value if isinstance(value, list) else [value] if value else []
