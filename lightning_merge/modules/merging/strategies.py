"""Which of Lightning's strategies and callbacks a MergeModule can be trained with."""

from collections.abc import Iterable

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.strategies import (
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    Strategy,
)
from lightning.pytorch.strategies.launchers.multiprocessing import _MultiProcessingLauncher

from lightning_merge.errors import ConfigError


def refuse_sharding(strategy: Strategy) -> None:
    """Refuses, by a `ConfigError`, a strategy that splits parameters over devices."""
    if isinstance(strategy, FSDPStrategy | DeepSpeedStrategy | ModelParallelStrategy):
        raise ConfigError(
            f"MergeModule: {type(strategy).__name__} splits the parameters, which here lie in one "
            "buffer; choose one device, or strategy ddp"
        )


def refuse_spawning(strategy: Strategy) -> None:
    """Refuses, by a `ConfigError`, a strategy whose processes end with the fit."""
    if isinstance(strategy.launcher, _MultiProcessingLauncher):
        raise ConfigError(
            "MergeModule: a strategy that spawns or forks cannot hand the alphas back; choose "
            "strategy ddp"
        )


def refuse_averaging(module: object, callbacks: Iterable[Callback]) -> None:
    """Refuses, by a `ConfigError`, callbacks that average weights learned through alphas or maps.

    Checkpoints of a `WeightAveraging` would hold other weights than it validates, beside alphas or
    maps of neither.
    """
    for callback in callbacks:
        if isinstance(callback, WeightAveraging):
            raise ConfigError(
                f"{type(module).__name__}: {type(callback).__name__} averages weights, which here "
                "follow from what is learned; leave it out, or use it where the ingredients are "
                "trained"
            )
