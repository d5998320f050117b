"""What all alignments share: the one method by which a pipeline calls them."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar

from torch import Tensor, nn

from lightning_merge.align.spec import PermutationSpec


class Matching(ABC):
    """A way to bring ingredient b into the basin of ingredient a.

    Attributes:
        needs_data: Whether `align` reads `batches`.
    """

    needs_data: ClassVar[bool] = True

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
