"""What a study will cost, from a short probe of each kind of piece; nothing is kept."""

import copy
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.data import sized_len
from lightning.pytorch import LightningDataModule

from lightning_merge.errors import ConfigError
from lightning_merge.loaders import loaders_in
from lightning_merge.orders import in_random_order
from lightning_merge.recipe.build import Plain, build_data
from lightning_merge.recipe.held_out import validation_loaders
from lightning_merge.study.store import Store
from lightning_merge.study.work import Session, Work, execute

TRAINED = ("start", "ingredient", "pretraining", "task")
"""The kinds of work that train a network."""

_STEPS = ("steps", "max_steps")
# Along a line, or on each side of a triangle.
_POINTS = 2
# What a longer probe of a training adds has to take so many seconds, for it is multiplied by much.
_SEEN = 0.5
# Seconds next to which imports do not count.
_LONG = 5.0


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
    """Counts what is left, and probes one piece of each sort and number of ingredients.

    A probe does a piece in a temporary folder, on networks that were hardly trained, with one batch
    to train on and one to test on, a few examples for statistics, and a few steps of a method that
    counts its own; then again with more of one of these at a time. What a further one costs is the
    difference; a training's further epoch likewise. Alignments are shared between recipes as they
    are in a study. Pieces are in an order in which they can be done; nothing is written to the
    store.
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


@dataclass(frozen=True)
class _Amounts:
    """How much a piece reads and does.

    Attributes:
        train: Batches of an epoch.
        test: Batches of the largest loader that is tested on.
        statistics: Training examples that statistics are read from; 0 where they cannot be
            drawn, or none are read.
        steps: Steps of a method that counts its own.
    """

    train: int = 1
    test: int = 1
    statistics: int = 64
    steps: int = 2

    def within(self, whole: "_Amounts") -> "_Amounts":
        """These, but no more than there are."""
        return _Amounts(*(min(own, vars(whole)[name]) for name, own in vars(self).items()))


class _Prober:
    """Probes one piece of each sort, and knows then what the others of that sort cost."""

    def __init__(self, works: Sequence[Work], store: Store) -> None:
        self.works = {work.key: work for work in works}
        self.store = store
        self.session = Session(progress=False)
        self.read: dict[str, _Amounts] = {}
        self.known: dict[str, tuple[float, int]] = {}
        self.warm: set[str] = set()

    def cost(self, work: Work) -> tuple[float, int]:
        """Seconds and bytes of a piece."""
        # Networks that are trained alike are one sort, whatever they are called.
        alike = {"seed": 0, "data": str(self._whole(work))} if work.kind in TRAINED else {}
        name = "" if alike else work.name
        sort = repr((work.kind, name, len(work.needs), {**work.settings, **alike} if alike else ""))
        if sort not in self.known:
            for key in work.needs:
                self._make(self.works[key])
            self.known[sort] = self._probe(work)
        return self.known[sort]

    def _make(self, work: Work) -> None:
        """Makes something for a piece that others need: a network that is hardly trained."""
        if work.key not in self.store:
            for key in work.needs:
                self._make(self.works[key])
            self._execute(work, _Amounts().within(self._whole(work)))

    def _probe(self, work: Work) -> tuple[float, int]:
        whole = self._whole(work)
        few = _Amounts().within(whole)
        first = self._execute(work, few)
        if work.kind not in self.warm and first < _LONG:
            # Most of that can have been imports.
            first = self._execute(work, few, session=Session(progress=False))
        self.warm.add(work.kind)
        # Without what is cached by now.
        again = self._execute(work, few)
        total, each = again, {}
        for name, most in vars(whole).items():
            each[name] = self._slope(work, few, name, first if name == "steps" else again, most)
            total += (most - vars(few)[name]) * each[name]
        further = _epochs(work, max(1, whole.train)) - 1
        if further:
            longer = self._execute(work, few, epochs=2)
            # What an epoch has beside its batches, such as a validation.
            rest = max(0.0, longer - again - few.train * each["train"])
            total += further * (whole.train * each["train"] + rest)
        size = sum(path.stat().st_size for path in (self.store.folder / work.key).iterdir())
        return max(0.0, first - again + total * _longer(work.settings)), size

    def _slope(self, work: Work, few: _Amounts, name: str, least: float, most: int) -> float:
        """What a further one of something costs; in trainings from as many as can be seen."""
        start = count = vars(few)[name]
        took = least
        while count < most and (count == start or (work.kind in TRAINED and took - least < _SEEN)):
            count = min(most, 4 * count)
            took = self._execute(work, replace(few, **{name: count}))
        return max(0.0, took - least) / max(1, count - start)

    def _execute(
        self, work: Work, amounts: _Amounts, epochs: int = 1, session: Session | None = None
    ) -> float:
        """How long a piece with so much of everything takes."""
        start = time.perf_counter()
        execute(_shortened(work, amounts, epochs), self.store, session or self.session)
        return time.perf_counter() - start

    def _whole(self, work: Work) -> _Amounts:
        """How much the piece will read and do."""
        limits, steps = _arguments(work), _most_steps(work.settings)
        configs = _data_of(work.settings)
        # A network of a task is tested by other pieces.
        tested = work.kind != "task"
        key = repr((tested, configs))
        if key not in self.read:
            counts = [_lengths(config, tested) for config in configs] or [(1, 1, 0)]
            self.read[key] = _Amounts(*(max(column) for column in zip(*counts, strict=True)))
        read = self.read[key]
        examples = work.settings.get("statistics_examples")
        drawn = min(read.statistics, read.statistics if examples is None else examples)
        return _Amounts(
            1 if work.kind == "sweep" else _limited(read.train, limits.get("limit_train_batches")),
            _limited(read.test, limits.get("limit_test_batches")),
            drawn if "statistics_examples" in work.settings else 0,
            steps,
        )


def _limited(count: int, limit: float | None) -> int:
    if limit is None:
        return count
    return min(count, limit) if isinstance(limit, int) else int(count * limit)


def _data_of(settings: Plain) -> list[Plain]:
    if "data" in settings:
        return [settings["data"]]
    return [task["data"] for task in settings.get("tasks", [])]


def _lengths(config: Plain, tested: bool) -> tuple[int, int, int]:
    """How many batches there are to train on and to test on, and examples for statistics."""
    data = build_data(config)
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    train = data.train_dataloader()
    batches = _most_batches(loaders_in(train), data)
    try:
        in_random_order(train, 0, 2)
        examples = batches * (getattr(train, "batch_size", None) or 0)
    except ConfigError:
        examples = 0
    others = [*loaders_in(data.test_dataloader()), *validation_loaders(data)] if tested else []
    return batches, _most_batches(others, data), examples


def _most_batches(loaders: Sequence[Any], data: LightningDataModule) -> int:
    counts = [sized_len(loader) for loader in loaders]
    known = [count for count in counts if count is not None]
    if len(known) < len(counts):
        raise ConfigError(
            f"--dry_run counts batches, and a loader of {type(data).__name__} does not say how "
            "many it has: give its data set a `__len__`, or leave --dry_run out"
        )
    return max(known, default=0)


def _shortened(work: Work, amounts: _Amounts, epochs: int) -> Work:
    """The same piece with so much of everything."""
    settings = copy.deepcopy(work.settings)
    for method in _methods(settings):
        method |= {
            name: min(method[name], amounts.steps) for name in _STEPS if _counts(method, name)
        }
    few: Plain = {"limit_train_batches": amounts.train, "limit_test_batches": amounts.test}
    if work.kind in TRAINED:
        few |= {"max_epochs": epochs, "max_steps": -1}
    for name in ("trainer", "training"):
        if settings.get(name) is not None:
            settings[name] |= few
    if _has_points(settings):
        settings["of"]["points"] = min(_POINTS, settings["of"]["points"])
    if amounts.statistics:
        settings["statistics_examples"] = amounts.statistics
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


def _has_points(settings: Plain) -> bool:
    return isinstance(settings.get("of"), dict) and "points" in settings["of"]


def _longer(settings: Plain) -> float:
    """How much longer a sweep takes on all of its points than on the few of a probe."""
    points = settings["of"]["points"] if _has_points(settings) else 0
    if points <= _POINTS:
        return 1.0
    ratio: float = points / _POINTS
    return ratio * (points + 1) / (_POINTS + 1) if settings["sweep"] == "triangle" else ratio


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
