"""Repairing a merge in the way that a recipe names: BatchNorm reset or REPAIR."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from lightning.pytorch import LightningModule
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_merge.checkpoint import StateDict
from lightning_merge.errors import ConfigError
from lightning_merge.recalibrate import Repair

if TYPE_CHECKING:
    from lightning_merge.study.pool import Pool

Kind = Literal["batchnorm", "repair"]


def check_recalibration(kind: Kind | None, module: nn.Module, name: str) -> None:
    """Checks that a network has the layers that a recalibration is for.

    Args:
        kind: The recalibration.
        module: The network.
        name: The recipe's name, for the message.

    Raises:
        ConfigError: If REPAIR is to renormalise a network with BatchNorm, or statistics are
            to be reset in one without.
    """
    norms = [layer for layer in module.modules() if isinstance(layer, _BatchNorm)]
    if kind == "repair" and norms:
        raise ConfigError(
            f"recipe '{name}': `recalibrate: repair` is for networks without BatchNorm, and this "
            "one has some: write `recalibrate: batchnorm`"
        )
    if kind == "batchnorm" and not any(norm.track_running_stats for norm in norms):
        raise ConfigError(
            f"recipe '{name}': `recalibrate: batchnorm` has nothing to reset, this network has no "
            "BatchNorm statistics: write `recalibrate: repair`, or leave it out"
        )


class Recalibration:
    """One recalibration, for merges of the same ingredients with any weights.

    REPAIR measures the ingredients once, when it is first needed.

    Args:
        kind: `batchnorm`, `repair`, or None, which does nothing.
        states: The ingredients as they are merged, aligned.
        pool: What they came from.
        name: The recipe's name, for messages.
    """

    def __init__(
        self, kind: Kind | None, states: Sequence[StateDict], pool: "Pool", name: str
    ) -> None:
        check_recalibration(kind, pool.module, name)
        self.kind = kind
        self.states = states
        self.pool = pool
        self.name = name
        self._repair: Repair | None = None

    def __call__(self, module: LightningModule, weights: Sequence[float] | None = None) -> None:
        """Recalibrates a merge, in place.

        Args:
            module: The merge.
            weights: The ingredients' shares in it; equal if not given.

        Raises:
            ConfigError: If REPAIR would add biases to layers that have none.
        """
        if self.kind == "batchnorm":
            self.pool.reset_batchnorm(module)
        elif self.kind == "repair":
            if self._repair is None:
                self._repair = self._measured()
            self._repair(module.to(self.pool.device), weights, self.pool.progress)

    def _measured(self) -> Repair:
        pool = self.pool
        parents = (pool.build(state).to(pool.device) for state in self.states)
        repair = Repair(parents, pool.statistics(), pool.progress)
        lacking = repair.without_bias
        if lacking:
            more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
            raise ConfigError(
                f"recipe '{self.name}': REPAIR shifts units by their layer's bias, and "
                f"'{lacking[0]}'{more} has none, so the merge would not load into "
                f"{type(pool.module).__name__}: give these layers a bias, or leave `recalibrate` "
                "out"
            )
        return repair


def own_recalibration(module: nn.Module) -> Kind:
    """The recalibration that suits a network: BatchNorm reset where there is any."""
    has = any(isinstance(m, _BatchNorm) and m.track_running_stats for m in module.modules())
    return "batchnorm" if has else "repair"
