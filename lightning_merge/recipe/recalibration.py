"""The contract of repairing a merge: what a recipe's `recalibrate` names."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar

from lightning.pytorch import LightningModule
from torch import nn

from lightning_merge.checkpoint import StateDict
from lightning_merge.recalibrate.batchnorm import tracks
from lightning_merge.registry import Registry

if TYPE_CHECKING:
    from lightning_merge.recipe.context import Context

Recalibrate = Callable[[LightningModule, Sequence[float] | None], None]
"""Recalibrates a merge in place, given the ingredients' shares in it (None for equal ones)."""


class Recalibration(ABC):
    """Repairs the statistics that averaging weights broke.

    Attributes:
        label: What figures call it, behind the alignment: `Permute + reset`.
        of_means: Whether it needs to know the ingredients' shares, and so suits weighted means
            only.
        of_functions: Whether it reads what aligned ingredients compute, and so suits matchings
            that keep it only.
    """

    label: ClassVar[str] = ""
    of_means: ClassVar[bool] = False
    of_functions: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if not cls.label:
            cls.label = cls.__name__

    def check(self, module: nn.Module, recipe: str) -> None:
        """Checks that a network has the layers that this is for, before anything is computed.

        Raises:
            ConfigError: If not; it names the recipe.
        """
        del module, recipe

    @abstractmethod
    def prepare(self, states: Sequence[StateDict], context: "Context") -> Recalibrate:
        """A function that recalibrates merges of these (aligned) ingredients, with any shares."""


recalibrations: Registry[type[Recalibration]] = Registry(
    "recalibrations", "lightning_merge.recipe.recalibrations"
)


def recalibration_of(given: "Recalibration | str | None") -> Recalibration | None:
    """The recalibration that a recipe names."""
    return recalibrations.get(given).value() if isinstance(given, str) else given


def own_recalibration(module: nn.Module) -> Recalibration:
    """The recalibration that suits a network: BatchNorm reset where there is any, else REPAIR."""
    return recalibrations.get("batchnorm" if keeps_statistics(module) else "repair").value()


def keeps_statistics(module: nn.Module) -> bool:
    """Whether a network has statistics to reset."""
    return any(tracks(layer) for layer in module.modules())


def recalibrate_with(context: "Context", states: Sequence[StateDict]) -> Recalibrate:
    """The recalibration of a context's recipe for merges of some ingredients, or no change."""
    kind = context.recalibration
    return (lambda module, weights: None) if kind is None else kind.prepare(states, context)  # noqa: ARG005
