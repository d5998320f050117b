"""Counting the examples that a Trainer's loop really goes through."""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lightning_merge.batches import inputs_of


class ExampleCounter(Callback):
    """Counts the examples of a loop, of a training those of its first epoch.

    `counts` are those of each of several loaders, by its number; `example` is the input of the last
    batch's first one.
    """

    count: int = 0
    example: Tensor | None = None

    def __init__(self) -> None:
        self.counts: Counter[int] = Counter()

    def state_dict(self) -> dict[str, int]:
        """The count, for a training that goes on after its first epoch."""
        return {"count": self.count}

    def load_state_dict(self, state_dict: Mapping[str, int]) -> None:
        """Takes what `state_dict` gave."""
        self.count = state_dict["count"]

    def _add(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        del pl_module, outputs, batch_idx
        if trainer.training and trainer.current_epoch > 0:
            return
        inputs = inputs_of(batch)
        self.count += len(inputs)
        self.counts[dataloader_idx] += len(inputs)
        self.example = inputs[:1]

    on_train_batch_end = on_validation_batch_end = on_test_batch_end = _add


@contextmanager
def counting(trainer: Trainer) -> Iterator[ExampleCounter]:
    """Counts the examples that a Trainer goes through meanwhile."""
    counter = ExampleCounter()
    trainer.callbacks.append(counter)  # type: ignore[attr-defined]
    yield counter
    trainer.callbacks.remove(counter)  # type: ignore[attr-defined]
