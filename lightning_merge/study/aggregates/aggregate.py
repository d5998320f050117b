"""What every way of aggregating is."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from lightning.pytorch import LightningModule

from lightning_merge.checkpoint import StateDict

if TYPE_CHECKING:
    from lightning_merge.study.pool import Pool
    from lightning_merge.study.recalibration import Kind


class Aggregate(ABC):
    """Makes a module from aligned ingredients.

    Attributes:
        learns: Whether it takes gradients on the pool's labelled training data.
        from_pretrained: Whether it goes from the network that the ingredients were fine-tuned
            from: they are then in its order, and not to be aligned.
        merges: Whether the result is one network, whose weights can be stored as such.
        recalibrate: How the recipe is going to recalibrate the result: a search tries its
            candidates in that state. The recipe sets it.
    """

    learns: ClassVar[bool] = False
    from_pretrained: ClassVar[bool] = False
    merges: ClassVar[bool] = True
    recalibrate: "Kind | None" = None

    def check(self, pool: "Pool") -> None:
        """Checks that the pool has what is needed, before anything is computed."""
        del pool

    def check_count(self, count: int) -> None:
        """Checks that so many ingredients can be combined, before anything is computed."""
        del count

    @abstractmethod
    def __call__(self, states: Sequence[StateDict], pool: "Pool") -> LightningModule:
        """Makes the module.

        Args:
            states: The aligned ingredients.
            pool: What they came from: architecture, data, Trainer, seed.

        Returns:
            A module that `Trainer.test` takes.
        """
