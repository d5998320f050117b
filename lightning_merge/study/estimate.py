"""What a study will cost, from a short probe of each kind of piece; nothing is kept."""

import copy
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.model_helpers import is_overridden

from lightning_merge.recipe.build import Plain, build_data
from lightning_merge.study.store import Store
from lightning_merge.study.work import Session, Work, execute

TRAINED = ("start", "ingredient", "pretraining", "task")
"""The kinds of work that train a network."""


# The numbers of batches of a piece's probes, and of steps of a method that counts its own.
_FEW, _MORE = 1, 4
_FEW_STEPS, _MORE_STEPS = 2, 8
# Seconds that no import takes.
_LONG = 20.0
_STEPS = ("steps", "max_steps")


@dataclass(frozen=True)
class Estimate:
    """What is left of a study.

    Attributes:
        counts: For each kind of work how many pieces there are, and how many of them are finished.
        seconds: For each kind how long those that are left take, one after the other.
        size: How many bytes the study will add to its folder.
    """

    counts: dict[str, tuple[int, int]]
    seconds: dict[str, float]
    size: int

    @property
    def total(self) -> float:
        """How many seconds all that is left takes in one process."""
        return sum(self.seconds.values())


def estimate(works: Sequence[Work], store: Store) -> Estimate:
    """Counts what is left, and probes one piece of each kind, name and number of ingredients.

    A probe does a piece twice on a few batches of an epoch, in a temporary folder, on networks that
    were hardly trained; what a further batch costs is the difference. A training is done a third
    time for two epochs, which gives what a further epoch costs. A method with `steps` of its own
    does a few of them, and in a third probe a few more, which gives what a further step costs.
    Alignments are computed anew in every probe, where a study shares them between recipes: it can
    be faster than this.

    Args:
        works: The study's pieces, in an order in which they can be done.
        store: Has what is finished; nothing is written there.
    """
    done = {work.key for work in works if work.key in store}
    kinds = list(dict.fromkeys(work.kind for work in works))
    counts = {}
    for kind in kinds:
        of = [work for work in works if work.kind == kind]
        counts[kind] = len(of), sum(work.key in done for work in of)
    left = [work for work in works if work.key not in done]
    seconds, size = dict.fromkeys(kinds, 0.0), 0
    folder = Path(tempfile.mkdtemp(prefix="estimate-"))
    try:
        prober = _Prober(works, Store(folder))
        for work in left:
            took, wrote = prober.cost(work)
            seconds[work.kind] += took
            # A merge lies among the finished pieces, and where a user looks for it.
            size += wrote * (2 if work.kind in ("merge", "task_merge") else 1)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return Estimate(counts, seconds, size)


class _Prober:
    """Probes one piece of each sort, and knows then what the others of that sort cost."""

    def __init__(self, works: Sequence[Work], store: Store) -> None:
        self.works = {work.key: work for work in works}
        self.store = store
        self.batches: dict[str, int] = {}
        self.coarser = 1
        self.known: dict[tuple[str, str, int], tuple[float, int]] = {}
        self.warm: set[str] = set()

    def cost(self, work: Work) -> tuple[float, int]:
        """Seconds and bytes of a piece."""
        sort = work.kind, work.name, len(work.needs)
        if sort not in self.known:
            self.known[sort] = self._by_what_there_is(work)
        return self.known[sort]

    def _by_what_there_is(self, work: Work) -> tuple[float, int]:
        """Probes a piece, on larger shares where a loader has too few batches for a small one."""
        while True:
            try:
                for key in work.needs:
                    self._make(self.works[key])
                return self._probe(work)
            except MisconfigurationException as error:
                if "Please increase the `limit_" not in str(error) or self._batches(work) == 1:
                    raise
                self.coarser *= 2

    def _make(self, work: Work) -> None:
        """Makes something for a piece that others need: a network that is hardly trained."""
        if work.key not in self.store:
            for key in work.needs:
                self._make(self.works[key])
            self._execute(work, 1)

    def _probe(self, work: Work) -> tuple[float, int]:
        whole = self._batches(work)
        few, more = min(_FEW, whole), min(_MORE, whole)
        # A line takes two points. What a kind imports would outweigh a few batches: where none of
        # it was done before, a short one is done again.
        cold = work.kind not in self.warm
        first = self._execute(work, few)
        again = self._execute(work, few) if cold and first < _LONG else first
        took = {few: again, more: self._execute(work, more) if more > few else again}
        written = (self.store.folder / work.key).iterdir()
        size = sum(path.stat().st_size for path in written)
        epochs = _epochs(work, self._counted(work))
        if epochs == 1.0:
            steps = _most_steps(work.settings)
            step = 0.0
            if steps > _FEW_STEPS:
                several = min(steps, _MORE_STEPS)
                longer = self._execute(work, few, steps=several)
                step = max(0.0, longer - took[few]) / (several - _FEW_STEPS)
            return _line(took, whole) + max(0, steps - _FEW_STEPS) * step, size
        # A further epoch is batches and little else; the rest, such as testing, is done once.
        batch = max(0.0, self._execute(work, more, epochs=2) - took[more]) / more
        rest = {count: max(0.0, seconds - count * batch) for count, seconds in took.items()}
        return _line(rest, whole) + epochs * whole * batch, size

    def _execute(self, work: Work, batches: int, epochs: int = 1, steps: int = _FEW_STEPS) -> float:
        """How long a piece takes on so many batches of an epoch."""
        # A little more, so that a share of the batches is not rounded to fewer.
        share = min(1.0, (batches + 0.01) / self._batches(work))
        start = time.perf_counter()
        execute(_shortened(work, share, epochs, steps), self.store, Session(progress=False))
        self.warm.add(work.kind)
        return time.perf_counter() - start

    def _batches(self, work: Work) -> int:
        """Into how many parts an epoch can be divided, so that every loader has a batch in each."""
        return max(1, self._counted(work) // self.coarser)

    def _counted(self, work: Work) -> int:
        """How many batches the smallest one of the data has that the piece reads.

        It is 1 where the Trainer has a limit of its own: then a probe is a whole epoch.
        """
        if {"limit_train_batches", "limit_test_batches"} & _arguments(work).keys():
            return 1
        configs = _data_of(work.settings)
        # A network of a task is tested by other pieces.
        tested = work.kind != "task"
        key = repr((tested, configs))
        if key not in self.batches:
            counts = [count for config in configs for count in _lengths(config, tested)]
            self.batches[key] = min(counts, default=1)
        return max(1, self.batches[key])


def _data_of(settings: Plain) -> list[Plain]:
    if "data" in settings:
        return [settings["data"]]
    return [task["data"] for task in settings.get("tasks", [])]


def _lengths(config: Plain, tested: bool) -> list[int]:
    """How many batches the training data have, and the test and held-out data where wanted."""
    data = build_data(config)
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    loaders = [data.train_dataloader()]
    if tested:
        loaders.append(data.test_dataloader())
        if is_overridden("val_dataloader", data, LightningDataModule):
            loaders.append(data.val_dataloader())
    return [len(loader) for loader in loaders if loader]


def _line(took: dict[int, float], batches: int) -> float:
    """Seconds on so many batches, by the line through those on few and on more."""
    few, more = min(took), max(took)
    each = max(0.0, (took[more] - took[few]) / max(1, more - few))
    return max(0.0, took[more] - each * more) + each * batches


def _shortened(work: Work, share: float, epochs: int, steps: int) -> Work:
    """The same piece over a share of so many epochs, and so many steps of its methods."""
    settings = copy.deepcopy(work.settings)
    for method in _methods(settings):
        method |= {name: min(method[name], steps) for name in _STEPS if _counts(method, name)}
    few: Plain = {}
    if share < 1.0:
        few = {"limit_train_batches": share, "limit_test_batches": share}
    if work.kind in TRAINED:
        few |= {"max_epochs": epochs, "max_steps": -1}
    for name in ("trainer", "training"):
        if settings.get(name) is not None:
            settings[name] |= few
    return Work(work.key, work.kind, work.name, work.seed, settings, work.needs)


def _methods(settings: Plain) -> list[Plain]:
    """Every mapping in the recipes of a piece's settings."""
    left: list[Any] = [settings.get("recipe"), settings.get("of")]
    found: list[Plain] = []
    while left:
        item = left.pop()
        if isinstance(item, dict):
            found.append(item)
        left += list(item.values()) if isinstance(item, dict) else []
        left += item if isinstance(item, list | tuple) else []
    return found


def _counts(method: Plain, name: str) -> bool:
    return type(method.get(name)) is int and method[name] > 0


def _most_steps(settings: Plain) -> int:
    found = [m[name] for m in _methods(settings) for name in _STEPS if _counts(m, name)]
    return max(found, default=0)


def _epochs(work: Work, batches: int) -> float:
    """How many epochs a training lasts; 1 for what is no training, whose probes have all theirs."""
    trained = work.kind in TRAINED and work.settings.get("training", True) is not None
    if not trained or "file" in work.settings:
        return 1.0
    arguments = _arguments(work)
    steps, epochs = arguments.get("max_steps") or -1, arguments.get("max_epochs")
    if steps > 0:
        return steps / batches
    # Lightning's own default.
    return float(1000 if epochs is None else epochs)


def _arguments(work: Work) -> Plain:
    """The Trainer's arguments of a piece that are set."""
    given = {**(work.settings.get("trainer") or {}), **(work.settings.get("training") or {})}
    return {name: value for name, value in given.items() if value is not None}
