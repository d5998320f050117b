"""Several fits in turn on one device: each runs alone until it meets the others."""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_merge.errors import ConfigError
from lightning_merge.randomness import random_state, set_random_state


class Population:
    """Fits of one process that wait for each other at meetings; one runs at a time.

    Each has random numbers of its own, so that it trains as it would alone.

    Example:
        `Population().train([fit_first, fit_second])`, where each fit calls `Trainer.fit` with a
        `PopulationAverage(population=population)` of its own.
    """

    def __init__(self) -> None:
        self._turns = threading.Condition()
        self._own = threading.local()
        self._live: list[int] = []
        self._met: dict[int, Sequence[Tensor]] = {}
        self._turn = 0
        self._error: BaseException | None = None

    def train(self, fits: Sequence[Callable[[], Any]]) -> None:
        """Runs all fits, in turn, until the last one has ended.

        Args:
            fits: Functions that train a member each.

        Raises:
            ConfigError: If there are fewer than two.
            Exception: What a fit raised; the others are then ended at their next meeting.
        """
        if len(fits) < 2:
            raise ConfigError(f"a population of {len(fits)} has nobody to meet; give two fits")
        self._live, self._met, self._turn, self._error = list(range(len(fits))), {}, 0, None
        if torch.cuda.is_available():
            # Before that a GPU has no state that could be kept.
            torch.cuda.init()
        start = random_state()
        threads = [
            threading.Thread(target=self._run, args=(index, fit, start), daemon=True)
            for index, fit in enumerate(fits)
        ]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        except BaseException as error:
            self._stop(error)
            raise
        set_random_state(start)
        if self._error is not None:
            raise self._error

    def meet(
        self, tensors: Sequence[Tensor], pull: Callable[[Sequence[Sequence[Tensor]]], None]
    ) -> None:
        """Waits until all members that still train have come, and goes on after the pull.

        Args:
            tensors: This member's weights.
            pull: Called once, by the last one to come, with everybody's weights in their order.

        Raises:
            ConfigError: If this is no fit of a population that is being trained.
        """
        index = getattr(self._own, "index", None)
        if index is None:
            raise ConfigError("PopulationAverage: fit the members by `population.train([...])`")
        # Before the next one's turn, in which other numbers are drawn.
        state = random_state()
        with self._turns:
            self._met[index] = tensors
            self._pull = pull
            self._advance()
        self._wait(index, state)

    def _run(self, index: int, fit: Callable[[], Any], start: dict[str, Any]) -> None:
        self._own.index = index
        try:
            self._wait(index, start)
            fit()
        except _Stopped:
            pass
        except BaseException as error:
            self._stop(error)
        finally:
            with self._turns:
                self._live.remove(index)
                self._advance()

    def _advance(self) -> None:
        """Gives the turn to the next who has not come yet; where all have, the meeting is over."""
        if self._live and all(index in self._met for index in self._live):
            if self._error is None:
                self._pull([self._met[index] for index in self._live])
            self._met.clear()
        waited_for = [index for index in self._live if index not in self._met]
        self._turn = waited_for[0] if waited_for else -1
        self._turns.notify_all()

    def _wait(self, index: int, state: dict[str, Any]) -> None:
        with self._turns:
            self._turns.wait_for(lambda: self._turn == index or self._error is not None)
            if self._error is not None:
                raise _Stopped
        set_random_state(state)

    def _stop(self, error: BaseException) -> None:
        with self._turns:
            self._error = self._error or error
            self._turns.notify_all()


class _Stopped(BaseException):
    """Another member failed."""
