"""The folder of a study, in which work that was stopped is resumed."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_merge.errors import OutputExistsError
from lightning_merge.files import as_json, claim_folder, read_json, sweep, write_json
from lightning_merge.folder_lock import FolderLock, lock_folder, turn_in_folder
from lightning_merge.recipe.build import Plain
from lightning_merge.study.claims import Claims
from lightning_merge.study.plan import determining
from lightning_merge.study.store import Store
from lightning_merge.study.work import Work

# What a folder's study takes in from every command that works there.
_GROWS = ("seeds", "recipes", "pool_sizes", "ingredients")


@dataclass(frozen=True)
class StudyFolder:
    """An output folder, and the store of finished work in it.

    The file called `name` describes the study there. Options that are `shown` change what is shown
    or added, and nothing that is stored.
    """

    folder: Path
    name: str
    shown: Sequence[str]

    @property
    def store(self) -> Store:
        """Where finished work lies."""
        return Store(self.folder / "runs")

    @contextmanager
    def entered(self) -> Iterator[FolderLock]:
        """While this process works in the folder, with others that work on the same study.

        What killed processes left half written goes. Refused if another process has the folder
        alone.
        """
        with lock_folder(self.folder, shared=True) as lock:
            merges = self.folder / "merges"
            for folder in (*self.store.folder.glob("*/"), merges, *merges.rglob("*/")):
                sweep(folder)
            sweep(self.store.folder)
            sweep(self.folder)
            yield lock

    def turn(self) -> AbstractContextManager[None]:
        """While this process alone plans or publishes; others wait for their turn."""
        return turn_in_folder(self.folder)

    def tidy(self, works: Sequence[Work]) -> None:
        """Removes what killed processes left: beside finished pieces, and of another study."""
        store, claims = self.store, Claims(self.store.folder)
        for work in works:
            claims.clear(work.key)
            store.end_training(work.key)
        claims.sweep()

    def united(self, config: Plain, overwrite: bool = False) -> Plain:
        """A study together with that of the folder, if there is one that is not to be overwritten.

        The seeds, recipes, pool sizes and ingredients are those of both; of two recipes with one
        name the new one stays. Title and sweeps are the new study's. What differs in more is
        refused.
        """
        kept = self.folder / self.name
        if overwrite or not kept.is_file() or self.has(config):
            return config
        both = unite(self.stored(), config, self.shown)
        if both is None:
            raise OutputExistsError(
                f"{self.folder} holds another study: choose another --output, or add --overwrite "
                "(what both studies share is not computed again)"
            )
        return both

    def claim(
        self, config: Plain, results: Sequence[str], overwrite: bool, lock: FolderLock | None = None
    ) -> None:
        """Takes the folder for a study as `united` returns it, new or grown.

        Refused are results of something else that are not to be overwritten and work in another
        version's format; with the lock of `entered` also writing over what others work on.
        """
        self.store.check_schema()
        kept = self.folder / self.name
        there = kept.is_file()
        if there:
            try:
                before = self.stored()
            except OutputExistsError:
                if not overwrite:
                    raise
                before = None
            if before == as_json(config):
                return
            if lock is not None and (before is None or unite(before, config, self.shown) != config):
                lock.check_alone()
        claim_folder(self.folder, () if there else results, overwrite)
        write_json(kept, config)

    def has(self, config: Plain) -> bool:
        """Whether the folder's study is this one, no more and no less."""
        return self.stored() == as_json(config)

    def stored(self) -> Plain:
        """The options of the folder's study; an `OutputExistsError` if they cannot be read."""
        kept = self.folder / self.name
        try:
            found = read_json(kept)
        except (OSError, ValueError, RecursionError):
            found = None
        if not isinstance(found, dict) or not all(
            _is_sound(found.get(name), name) for name in _GROWS
        ):
            raise OutputExistsError(
                f"{kept} is damaged, so that it does not say which study the folder holds: choose "
                "another --output, or add --overwrite (finished work is not computed again)"
            )
        return found


def unite(before: Plain, now: Plain, shown: Sequence[str]) -> Plain | None:
    """One study that does all that two do; None where they differ in what every piece depends on.

    The later one has the last word, and they may differ in the options that are only `shown`.
    """
    plain = [{**one, "trainer": _determining(one.get("trainer"))} for one in (before, now)]
    same = (plain[0].get(key) == plain[1][key] for key in now if key not in (*_GROWS, *shown))
    if not all(same):
        return None
    both = dict(now)
    for key in ("seeds", "pool_sizes"):
        if key in now:
            both[key] = list(dict.fromkeys([*(before.get(key) or []), *now[key]]))
    by_name = {one["name"]: one for one in before.get("recipes") or []}
    both["recipes"] = list({**by_name, **{one["name"]: one for one in now["recipes"]}}.values())
    if "ingredients" in now:
        fewer, more = sorted((before.get("ingredients") or [], now["ingredients"]), key=len)
        if more[: len(fewer)] != fewer:
            return None
        both["ingredients"] = more
    return both


def _is_sound(value: Any, name: str) -> bool:
    """Whether an option that grows, if it is there, is as it was written."""
    if value is None:
        return True
    if not isinstance(value, list):
        return False
    if name == "recipes":
        return all(isinstance(one, Mapping) and isinstance(one.get("name"), str) for one in value)
    return all(isinstance(one, Mapping if name == "ingredients" else int) for one in value)


def _determining(trainer: Any) -> Any:
    return determining(trainer) if isinstance(trainer, Mapping) else (trainer or {})
