"""A Recipe: how to align, aggregate and recalibrate, under a name."""

import time
from dataclasses import dataclass
from typing import Literal

from lightning.pytorch import LightningModule, seed_everything

from lightning_merge.align import Matching
from lightning_merge.study.aggregates import Aggregate
from lightning_merge.study.pool import Pool


@dataclass
class Recipe:
    """The choices that make one network (or an ensemble) from several.

    Attributes:
        name: What to call the result in tables and figures.
        aggregate: How aligned ingredients are combined, for example `Average` or `NPMerge`.
        align: How the others are aligned to the first one, for example
            `ActivationMatching`; None leaves them as they are.
        recalibrate: `batchnorm` resets BatchNorm statistics on the training images; None
            leaves what aggregation gave.
    """

    name: str
    aggregate: Aggregate
    align: Matching | None = None
    recalibrate: Literal["batchnorm"] | None = None

    def __call__(self, pool: Pool) -> tuple[LightningModule, float]:
        """Makes the module.

        Args:
            pool: The ingredients and their data.

        Returns:
            The module, and the seconds that all three steps took (the alignment's own
            time is counted whole where an earlier recipe of the pool had done it).
        """
        states, seconds = pool.align(self.align)
        seed_everything(pool.seed, verbose=False)
        start = time.perf_counter()
        module = self.aggregate(states, pool)
        if self.recalibrate == "batchnorm":
            pool.reset_batchnorm(module)
        return module, seconds + time.perf_counter() - start
