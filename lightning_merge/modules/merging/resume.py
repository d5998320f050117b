"""Going on within an epoch: the same order, the same batches left, the same random numbers.

Lightning counts the batches that a stopped epoch has seen, but draws a new order and begins
it anew. Here the epoch's order is drawn again as it was, the batches already seen are
fetched and passed over, and then the random numbers go on where the last step left them.
"""

import warnings
from typing import Any

import torch
from lightning.fabric.utilities.types import _Stateful
from lightning.pytorch import Trainer
from lightning.pytorch.loops.fetchers import _DataFetcher, _DataLoaderIterDataFetcher
from torch import Tensor

from lightning_merge.distributed import gather_over_ranks
from lightning_merge.modules.merging.random_state import RandomState, random_state, set_random_state
from lightning_merge.progress import tracked


class RunState:
    """The random numbers of a training run, and its place in the epoch.

    Training's random numbers are those of its steps: what validation draws between two of
    them is undone, since a resumed run may not validate again.

    Attributes:
        start: When fitting started, before the loaders were made.
        epoch: When the running epoch's iterator was made; None in the first epoch, whose
            iterator is made right after the loaders.
        order: Before the running epoch's first batch was fetched.
    """

    def __init__(self) -> None:
        self.start: RandomState | None = None
        self.epoch: RandomState | None = None
        self.order: RandomState | None = None
        self._settled: Tensor | None = None
        self._ended: RandomState | None = None
        self._resumed: RandomState | None = None

    def on_fit_start(self) -> None:
        """Before the loaders are made: they are made as in the run that is resumed."""
        self._settled = self._ended = None
        if self._resumed is None:
            self.epoch = self.order = None
            self.start = random_state()
        elif self.start is not None:
            set_random_state(self.start)

    def on_train_start(self, trainer: Trainer) -> None:
        """Takes a resumed run to where it was; the batches follow when the first is fetched."""
        if self._resumed is None:
            return
        set_random_state(self._resumed, _loaders(trainer))
        self._settled = self._resumed["torch"]
        self._resumed = None
        fetcher = trainer.fit_loop._data_fetcher
        keeps_its_place = any(isinstance(loader, _Stateful) for loader in _loaders(trainer))
        if fetcher is None or keeps_its_place or isinstance(fetcher, _DataLoaderIterDataFetcher):
            return
        # Lightning's advice for loaders whose place nobody restores.
        warnings.filterwarnings("ignore", "You're resuming from a checkpoint that ended before")
        _resume_at_first_batch(fetcher, trainer, self)

    def on_train_epoch_start(self, trainer: Trainer) -> None:
        """Before the epoch's iterator is made, but for the first epoch."""
        self.order = random_state(_loaders(trainer))
        self.epoch = self.order if trainer.current_epoch > 0 else None
        self._settled = self.order["torch"]

    def on_train_batch_end(self) -> None:
        """After each step."""
        self._settled = torch.get_rng_state()

    def on_train_end(self, trainer: Trainer) -> None:
        """After the last step: what the caller draws from here on is not the run's."""
        self._ended = random_state(_loaders(trainer))

    def undo_draws(self) -> None:
        """After validation, and before an epoch: what was drawn since the last step."""
        if self._settled is not None:
            torch.set_rng_state(self._settled)

    def state_dict(self, trainer: Trainer) -> dict[str, list[RandomState | None]]:
        """What a resumed run needs, of every rank; a collective where there are several."""
        now = self._ended or random_state(_loaders(trainer))
        batches: Any = trainer.fit_loop.epoch_loop.batch_progress.current
        within_hooks_of_a_batch = batches.processed > batches.completed
        if self._settled is not None and not within_hooks_of_a_batch:
            now["torch"] = self._settled
        own = {"now": now, "start": self.start, "epoch": self.epoch, "order": self.order}
        ranks = gather_over_ranks(own)
        return {name: [rank[name] for rank in ranks] for name in own}

    def load_state_dict(self, state: dict[str, list[RandomState | None]], rank: int) -> None:
        """Takes them back, when fitting starts; a rank that is new draws its own numbers."""
        if rank < len(state["now"]):
            self._resumed = state["now"][rank]
            self.start = state["start"][rank]
            self.epoch = state["epoch"][rank]
            self.order = state["order"][rank]


def _resume_at_first_batch(fetcher: _DataFetcher, trainer: Trainer, run: RunState) -> None:
    # Only when Lightning fetches the first batch has it settled how many of the epoch it
    # has seen. A class of its own, since Python looks for `__next__` there.
    plain = type(fetcher)
    epoch, order = run.epoch, run.order

    def begin(self: Any) -> Any:
        self.__class__ = plain
        return iter(self)

    def proceed(self: Any) -> Any:
        self.__class__ = plain
        if trainer.fit_loop.epoch_loop.batch_progress.current.ready:
            # By number of steps Lightning goes on with a stopped epoch under a new number.
            run.epoch, run.order = epoch, order
        _take_place(self, trainer, run)
        return next(self)

    fetcher.__class__ = type(plain.__name__, (plain,), {"__iter__": begin, "__next__": proceed})


def _take_place(fetcher: Any, trainer: Trainer, run: RunState) -> None:
    loaders = _loaders(trainer)
    batches = trainer.fit_loop.epoch_loop.batch_progress
    if batches.is_last_batch:
        # Where no loader knows its length, Lightning would have an epoch without batches.
        batches.reset_on_run()
    seen = batches.current.ready
    # Validation that is not run again draws all the same.
    run.undo_draws()
    now = random_state(loaders)
    if seen == 0:
        run.epoch = run.order = now
        iter(fetcher)
        return
    if run.epoch is not None:
        set_random_state(run.epoch, loaders)
        iter(fetcher)
    else:
        if run.order is not None:
            set_random_state(run.order, loaders)
        fetcher.fetched -= seen
    steps = tracked(range(seen), "Passing over batches already seen")
    for _ in steps:
        next(fetcher)
    set_random_state(now, loaders)


def _loaders(trainer: Trainer) -> list[Any]:
    combined = trainer.fit_loop._combined_loader
    return [] if combined is None else list(combined.flattened)
