"""A piece of work that can be done by itself, anywhere: its settings, and what it needs."""

import hashlib
import json
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from lightning.pytorch import LightningDataModule, seed_everything

from lightning_merge.checkpoint import StateDict
from lightning_merge.recipe.build import Plain
from lightning_merge.recipe.cache import Cache
from lightning_merge.registry import Registry
from lightning_merge.study.claims import Claims
from lightning_merge.study.same_data import data_of
from lightning_merge.study.store import SCHEMA, Store

T = TypeVar("T")


@dataclass(frozen=True)
class Work:
    """One training, merge or sweep.

    Attributes:
        key: Hash of all that determines the outcome.
        kind: Which of the registered kinds does it.
        name: What to call it.
        seed: The repetition that it belongs to.
        settings: All that determines the outcome, as plain configuration.
        needs: The keys of the pieces whose stored results it reads.
    """

    key: str
    kind: str
    name: str
    seed: int
    settings: Plain
    needs: tuple[str, ...] = ()


@dataclass
class Session:
    """What consecutive pieces of work may share; it changes no result.

    Attributes:
        progress: Whether to show progress bars.
        cache: Alignments and searches of the present repetition.
        claims: Those of the store, where long alignments are to be kept there.
        waiting: By the key of a piece that of the alignment which another process makes for it.
    """

    progress: bool = True
    cache: Cache = field(default_factory=Cache)
    claims: Claims | None = None
    waiting: dict[str, str] = field(default_factory=dict)
    _seed: int | None = None

    def begin(self, work: Work) -> None:
        """Forgets what belongs to another repetition."""
        if work.seed != self._seed:
            self.cache, self._seed = Cache(), work.seed

    def recall(self, key: tuple[Hashable, ...], make: Callable[[], T]) -> T:
        """What `make` gave for this key in the present repetition."""
        return self.cache.get(key, make).value

    def data(self, config: Plain, store: Store) -> LightningDataModule:
        """The data module of a configuration, which reads its files once."""
        return self.recall(("data", _text(config)), lambda: data_of(config, store))

    def state(self, store: Store, key: str) -> StateDict:
        """The state dict that a piece of work has stored."""
        return self.recall(("state", key), lambda: store.state(key))


Execute = Callable[[Work, Store, Session], None]

work_kinds: Registry[Execute] = Registry("work_kinds", "lightning_merge.study.kinds")


def make_work(kind: str, name: str, seed: int, settings: Plain, needs: Sequence[str] = ()) -> Work:
    """A piece of work under the key that its settings give.

    A file's path is left out of the key where its digest stands beside it.
    """
    text = _text([SCHEMA, kind, name, _without_paths(settings), list(needs)])
    key = hashlib.sha256(text.encode()).hexdigest()[:16]
    return Work(key, kind, name, seed, settings, tuple(needs))


def execute(work: Work, store: Store, session: Session | None = None) -> None:
    """Does one piece of work, and puts its result into the store.

    It depends on the work and on what is stored under the keys that it needs, on nothing
    else: in any order that respects these, in any process, it gives the same result. What earlier
    pieces in this process left to be shared is in the session.

    Raises:
        MergeError: As the kind of work does.
    """
    session = session or Session()
    session.begin(work)
    seed_everything(work.seed, verbose=False)
    work_kinds.get(work.kind).value(work, store, session)


def _without_paths(value: Any) -> Any:
    if isinstance(value, Mapping):
        left = {"path"} if "digest" in value else set()
        return {key: _without_paths(one) for key, one in value.items() if key not in left}
    return [_without_paths(one) for one in value] if isinstance(value, list | tuple) else value


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
