"""A Recipe: how to align, aggregate and recalibrate, under a name."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from lightning.pytorch import LightningModule, seed_everything

from lightning_merge.align import Matching
from lightning_merge.checkpoint import StateDict
from lightning_merge.errors import ConfigError
from lightning_merge.study.aggregates import Aggregate, Average
from lightning_merge.study.pool import Pool
from lightning_merge.study.recalibration import Kind, Recalibration, check_recalibration
from lightning_merge.study.select import Select, merge_selected


@dataclass
class Recipe:
    """The choices that make one network (or an ensemble) from several.

    Attributes:
        name: What to call the result in tables and figures.
        aggregate: How aligned ingredients are combined, for example `Average` or `NPMerge`.
        align: How the others are aligned to the first one, for example
            `ActivationMatching`; None leaves them as they are.
        recalibrate: `batchnorm` resets BatchNorm statistics on the training images; `repair`
            (REPAIR, for an `Average` of networks without BatchNorm) gives the units the
            means and deviations that they have in the ingredients; None leaves what
            aggregation gave.
        select: Which ingredients are aggregated, for example `DPP`; None takes all of them.
    """

    name: str
    aggregate: Aggregate
    align: Matching | None = None
    recalibrate: Kind | None = None
    select: Select | None = None

    def __post_init__(self) -> None:
        self.aggregate.recalibrate = self.recalibrate

    def check(self, module: LightningModule) -> None:
        """Checks that the recipe suits a network, before anything is computed.

        Args:
            module: The ingredients' module; its weights do not matter.

        Raises:
            ConfigError: If the recalibration does not go with the network, or alignment,
                recalibration or selection with how the recipe aggregates.
        """
        check_recalibration(self.recalibrate, module, self.name)
        if self.recalibrate == "repair" and not isinstance(self.aggregate, Average):
            raise ConfigError(
                f"recipe '{self.name}': `recalibrate: repair` aims at the ingredients' statistics, "
                f"weighted as their average is, and {type(self.aggregate).__name__} has no such "
                "weights: use `aggregate: Average`, or leave `recalibrate` out"
            )
        if self.aggregate.from_pretrained and self.align is not None:
            raise ConfigError(
                f"recipe '{self.name}': {type(self.aggregate).__name__} goes from the pre-trained "
                "network, whose units aligned ingredients no longer follow: leave `align` out"
            )
        if self.select is not None and getattr(self.aggregate, "weights", None) is not None:
            raise ConfigError(
                f"recipe '{self.name}': `weights` are one for each ingredient, and `select` leaves "
                "some out: give one of the two"
            )

    def check_pool(self, pool: Pool) -> None:
        """Checks that the recipe suits a pool's network and data.

        Raises:
            ConfigError: If not.
        """
        self.check(pool.module)
        pool.check(self.align)
        self.aggregate.check(pool)
        if self.select is None:
            self.aggregate.check_count(len(pool.states))
        else:
            self.select.check(pool)

    def __call__(self, pool: Pool) -> tuple[LightningModule, float]:
        """Makes the module.

        Args:
            pool: The ingredients and their data.

        Returns:
            The module, and the seconds that all steps took (an alignment
            or greedy search counts whole where an earlier recipe of the pool had done it).

        Raises:
            ConfigError: If the recipe does not suit the network or the data.
        """
        self.check_pool(pool)
        states, seconds = pool.align(self.align)
        seed_everything(pool.seed, verbose=False)
        pool.reused_seconds = 0.0
        start = time.perf_counter()
        if self.select is None:
            module = self._merge(states, pool)
        else:
            learns = self.aggregate.learns
            module = merge_selected(self.select, self._merge, states, pool, learns)
        seconds += time.perf_counter() - start + pool.reused_seconds
        return module, seconds

    def _merge(self, states: Sequence[StateDict], pool: Pool) -> LightningModule:
        module = self.aggregate(states, pool)
        weights = self.aggregate.weights if isinstance(self.aggregate, Average) else None
        Recalibration(self.recalibrate, states, pool, self.name)(module, weights)
        return module
