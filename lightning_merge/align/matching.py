"""What all alignments share: the one method by which a pipeline calls them."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from lightning_merge.align.spec import PermutationSpec
from lightning_merge.registry import Registry


@dataclass(frozen=True)
class Aligned:
    """An aligned state dict, and what was chosen on the way (None for nothing)."""

    state: dict[str, Tensor]
    choice: dict[str, Any] | None = None


class Matching(ABC):
    """A way to bring ingredient b into the basin of ingredient a.

    Attributes:
        needs_data: Whether `align` reads `batches`.
    """

    needs_data: ClassVar[bool] = True
    chooses = False

    @property
    def label(self) -> str:
        """What figures call it."""
        return type(self).__name__

    def aligned(
        self,
        spec: PermutationSpec,
        model_a: nn.Module,
        model_b: nn.Module,
        batches: Iterable[Any],
        *,
        score: Callable[[dict[str, Tensor]], float] | None = None,
        progress: bool = False,
    ) -> Aligned:
        """Aligns, and reports what was chosen."""
        del score
        return Aligned(self.align(spec, model_a, model_b, batches, progress=progress))

    @abstractmethod
    def align(
        self,
        spec: PermutationSpec,
        model_a: nn.Module,
        model_b: nn.Module,
        batches: Iterable[Any],
        progress: bool = False,
    ) -> dict[str, Tensor]:
        """The state dict of b, aligned to a; neither model is changed.

        Args:
            spec: The spec of their architecture.
            model_a: The network that stays as it is.
            model_b: The network to align.
            batches: Batches as the loader gives them; read once at most. A `Share` holds those
                of this rank: what is taken from it has to be summed up over the ranks.
            progress: Whether to show a progress bar.
        """


matchings: Registry[type[Matching]] = Registry("matchings", "lightning_merge.align")
