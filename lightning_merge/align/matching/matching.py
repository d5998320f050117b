"""The contract of every matching: the methods by which a pipeline calls it."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from lightning_merge.errors import AlignmentError
from lightning_merge.registry import Registry
from lightning_merge.symmetry.spec import Network, PermutationSpec, Symmetries

Score = Callable[[dict[str, Tensor]], float]
"""Scores the state dict of the aligned b, higher is better."""


@dataclass(frozen=True)
class Aligned:
    """The result of an alignment.

    Attributes:
        state: The state dict of b, aligned to a.
        choice: What the matching chose on the way, as JSON can hold it; None if nothing.
    """

    state: dict[str, Tensor]
    choice: dict[str, Any] | None = None


class Matching(ABC):
    """A way to bring ingredient b into the basin of ingredient a.

    A subclass has to define `align` only. One that has something to choose sets `chooses`,
    chooses by `score` where there is one, takes a default that it documents where there is
    none, and reports its choice by `aligned`.

    Attributes:
        needs_data: Whether `align` reads `batches`.
        joint: Whether more than two networks are aligned at once, by `align_many`, in place of each
            to the first one alone.
        keeps_function: Whether the aligned b computes what b does.
        symmetries: Which symmetries the spec that `align` is given has to have.
        label: What figures and tables call it; the name of the class unless it sets another.
    """

    needs_data: ClassVar[bool] = True
    joint: ClassVar[bool] = False
    keeps_function: ClassVar[bool] = True
    symmetries: Symmetries = "permutation"
    label: ClassVar[str] = "Matching"

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.label in {base.__name__ for base in cls.__mro__}:
            cls.label = cls.__name__

    @property
    def chooses(self) -> bool:
        """Whether `align` has something to choose by `score`."""
        return False

    @abstractmethod
    def align(
        self,
        spec: PermutationSpec,
        model_a: nn.Module,
        model_b: nn.Module,
        batches: Iterable[Any],
        *,
        score: Score | None = None,
        progress: bool = False,
    ) -> dict[str, Tensor]:
        """The state dict of b, aligned to a; neither model is changed.

        Args:
            spec: The spec of their architecture.
            model_a: The network that stays as it is.
            model_b: The network to align.
            batches: Batches as the loader gives them; read once at most. A `Share` has those
                of this rank: what is taken from it has to be summed over the ranks.
            score: Scores the state dict of the aligned b, higher is better. What a matching
                has to choose it chooses by this, or by its default where there is none.
            progress: Whether to show a progress bar.
        """

    def align_many(
        self, spec: PermutationSpec, networks: Sequence[Network], progress: bool = False
    ) -> list[dict[str, Tensor]]:
        """The state dicts of all networks, aligned at once, by a matching that is `joint`.

        Raises:
            AlignmentError: It is not.
        """
        del spec, networks, progress
        raise AlignmentError(
            f"{type(self).__name__} aligns pairs only: use all_to_one, or a joint matching"
        )

    def aligned(
        self,
        spec: PermutationSpec,
        model_a: nn.Module,
        model_b: nn.Module,
        batches: Iterable[Any],
        *,
        score: Score | None = None,
        progress: bool = False,
    ) -> Aligned:
        """What `align` gives, with what was chosen on the way; the arguments are the same."""
        return Aligned(self.align(spec, model_a, model_b, batches, score=score, progress=progress))


matchings: Registry[type[Matching]] = Registry("matchings", "lightning_merge.align.matching")


def nothing_to_align(spec: PermutationSpec) -> bool:
    """Whether a spec has no groups, with a warning that names the reasons if so.

    No error, because the result is right: a network without units that could be exchanged
    (a linear classifier) is aligned as it is, and studies compare it with others that are not.
    """
    if spec.groups:
        return False
    reasons = "; ".join(spec.frozen[:3]) or "it has no hidden units"
    warnings.warn(
        f"there is nothing to align, the spec has no groups ({reasons}): the network is "
        "left as it is",
        stacklevel=3,
    )
    return True
