"""Merges by singular values of task matrices: TSV-M, Iso-C, Iso-CTS, CART, and SVC after any."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from lightning_merge.aggregate import (
    MergedVector,
    average,
    cart_vector,
    iso_c_vector,
    iso_cts_vector,
    svc,
    tsv_vector,
)
from lightning_merge.checkpoint import StateDict
from lightning_merge.errors import ConfigError
from lightning_merge.recipe.aggregate import Aggregate, Merged, aggregates
from lightning_merge.recipe.aggregates.scaled_direction import (
    WIDER,
    OfTaskVectors,
    Scale,
    ScaledDirection,
)
from lightning_merge.recipe.context import Context
from lightning_merge.recipe.pretrained import (
    check_pretrained,
    pretrained_state,
    task_vectors,
    without,
)

_SEARCH = "held-out labels where the scale is searched"
_NEEDS = f"the pre-trained network; {_SEARCH}"


@aggregates.register(paper="Gargiulo et al. 2025, Task Singular Vectors", needs=_NEEDS)
@dataclass(eq=False)
class TSVMerge(OfTaskVectors):
    """The leading singular vectors of each task, made orthogonal to those of the others (TSV-M).

    Args:
        scale: As for `TaskArithmetic`; 1, the default, is the paper's own choice.
    """

    label = "TSV-M"
    tried = WIDER

    scale: Scale = field(default=1.0, kw_only=True)

    def direction(self, vectors: Sequence[Mapping[str, Tensor]], context: Context) -> MergedVector:
        """TSV-M's direction."""
        del context
        return tsv_vector(vectors)


@aggregates.register(paper="Marczak et al. 2025, No Task Left Behind", needs=_NEEDS)
@dataclass(eq=False)
class IsoC(OfTaskVectors):
    """The sum of the task vectors with all singular values of a matrix replaced by their mean."""

    label = "Iso-C"
    tried = WIDER

    def direction(self, vectors: Sequence[Mapping[str, Tensor]], context: Context) -> MergedVector:
        """Iso-C's direction."""
        del context
        return iso_c_vector(vectors)


@aggregates.register(paper="Marczak et al. 2025, No Task Left Behind", needs=_NEEDS)
@dataclass(eq=False)
class IsoCTS(IsoC):
    """Iso-C in a common subspace, with directions of each task in the place of the last ones.

    Args:
        common: The share of the rank that is common, in [0, 1].
    """

    label = "Iso-CTS"

    common: float = 0.8

    def direction(self, vectors: Sequence[Mapping[str, Tensor]], context: Context) -> MergedVector:
        """Iso-CTS's direction."""
        del context
        return iso_cts_vector(vectors, self.common)


@aggregates.register(paper="Choi et al. 2024, Revisiting Weight Averaging", needs=_SEARCH)
@dataclass(eq=False)
class CART(ScaledDirection):
    """The average plus `scale` times the low-rank parts of what distinguishes each from it.

    No pre-trained network is needed: the average is the centre.

    Args:
        rank: The share of a matrix' rank that is kept of each difference, in (0, 1].
    """

    label = "CART"
    tried = WIDER

    rank: float = 0.08

    def line(self, states: Sequence[StateDict], context: Context) -> tuple[StateDict, MergedVector]:
        """The average, and the sum of the truncated differences from it."""
        return average(states), cart_vector(without(context.heads, states), self.rank)


@aggregates.register(
    paper="Li et al. 2026, singular value calibration (arXiv 2602.05536)",
    needs="the pre-trained network; what the aggregate needs",
)
class SVC(Aggregate):
    """Another merge of task vectors, its singular values corrected for what the tasks share.

    A scale that the other aggregate searches is searched before.

    Args:
        aggregate: The merge of task vectors to be corrected.
        alpha: The smallest factor, above 0; the authors use 0.1 to 1.
        pretrained: As for `TaskArithmetic`.
    """

    label = "SVC"
    from_pretrained = True

    def __init__(
        self, aggregate: Aggregate, alpha: float = 0.1, pretrained: str | None = None
    ) -> None:
        if aggregate.is_ensemble or aggregate.corrects_tasks:
            raise ConfigError(
                f"SVC: {type(aggregate).__name__} gives several networks; choose a merge into one"
            )
        self.aggregate = aggregate
        self.alpha = alpha
        self.pretrained = pretrained
        self.learns = aggregate.learns  # type: ignore[misc]

    def check(self, context: Context) -> None:
        """Checks that the pre-trained network is known, and what the other aggregate needs."""
        check_pretrained(self.pretrained, context, "SVC")
        self.aggregate.check(context)

    def check_count(self, count: int) -> None:
        """Checks that the other aggregate can combine so many."""
        self.aggregate.check_count(count)

    @property
    def fits_any_count(self) -> bool:
        """Whether the other aggregate does."""
        return self.aggregate.fits_any_count

    def __call__(self, states: Sequence[StateDict], context: Context) -> Merged:
        """A module with the corrected weights."""
        merged = self.aggregate(states, context)
        pretrained = pretrained_state(self.pretrained, context, "SVC")
        vectors = task_vectors(pretrained, states, context)
        state = svc(pretrained, vectors, merged.module.state_dict(), self.alpha)
        return replace(merged, module=context.build(state))
