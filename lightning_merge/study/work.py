"""Going through the work of a study, of which some may be done already."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar

from lightning.pytorch import Trainer

from lightning_merge.study.build import changed_trainer, trainer_maker
from lightning_merge.study.plan import Task
from lightning_merge.study.store import Store

S = TypeVar("S")
Report = Callable[[Task, dict[str, Any], bool], None]


class Maker(ABC, Generic[S]):
    """Does the work of a study.

    Args:
        study: The study.
        work: The work, in an order in which it can be done.
        store: Holds what is finished.
        trainer: The Trainer's arguments, with callbacks made.
        progress: Whether to show progress bars.
    """

    def __init__(
        self,
        study: S,
        work: Sequence[Task],
        store: Store,
        trainer: Mapping[str, Any] | None,
        progress: bool,
    ) -> None:
        self.study = study
        self.work = work
        self.store = store
        self.trainer = dict(trainer or {})
        self.progress = progress

    @abstractmethod
    def do(self, work: Task) -> None:
        """Does one piece, and puts its result into the store at once."""

    def do_missing(self, on_done: Report | None = None) -> None:
        """Does what the store does not hold.

        Args:
            on_done: Called with each piece, its result and whether that had been stored before.
        """
        for one in self.work:
            stored = one.key in self.store
            if not stored:
                self.do(one)
            if on_done is not None:
                on_done(one, self.store.result(one.key), stored)

    def make_trainer(self, changes: Mapping[str, Any] | None = None) -> Callable[..., Trainer]:
        """A function that makes Trainers, for a purpose whose arguments are others."""
        return trainer_maker(changed_trainer(self.trainer, changes or {}), self.progress)
