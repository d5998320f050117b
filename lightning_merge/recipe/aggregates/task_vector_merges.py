"""Merges of task vectors: what fine-tuning changed, added to the pre-trained network."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from lightning_merge.aggregate import MergedVector, dare, sum_vectors, ties_vector
from lightning_merge.recipe.aggregate import aggregates
from lightning_merge.recipe.aggregates.scaled_direction import OfWeightedVectors
from lightning_merge.recipe.context import Context

# 0.8 to 2.5, as TIES' authors search (README of their code).
_AUTHORS = [step / 10 for step in range(8, 26)]

_NEEDS = "the pre-trained network; held-out labels where the scale is searched"


@aggregates.register(paper="Ilharco et al. 2023, Editing Models with Task Arithmetic", needs=_NEEDS)
@dataclass(eq=False)
class TaskArithmetic(OfWeightedVectors):
    """The pre-trained network plus `scale` times the sum of the task vectors."""

    label = "TaskArithmetic"

    def direction(self, vectors: Sequence[Mapping[str, Tensor]], context: Context) -> MergedVector:
        """The sum."""
        del context
        return sum_vectors(vectors, self.weights)


@aggregates.register(paper="Yadav et al. 2023, TIES-Merging", needs=_NEEDS)
@dataclass(eq=False)
class TIES(OfWeightedVectors):
    """The pre-trained network plus `scale` times the TIES merge of the task vectors.

    Args:
        density: The share of each vector that is kept, in (0, 1].
        scale: As for `TaskArithmetic`; 1 is the paper's own choice without held-out data.
        candidates: As for `TaskArithmetic`; `authors` for those of the authors' code, 0.8, 0.9,
            ..., 2.5.
        merge: `mean` of the entries that agree in sign, as in the paper, or their `sum` (the
            authors' `dis-sum`).
        weights: As for `TaskArithmetic`, from 0 on: factors of the trimmed vectors, before signs
            are elected.
    """

    label = "TIES"

    density: float = 0.2
    candidates: list[float] | Literal["authors"] | None = field(  # type: ignore[assignment]
        default=None, kw_only=True
    )
    merge: Literal["mean", "sum"] = field(default="mean", kw_only=True)

    def __post_init__(self) -> None:
        """Looks up the authors' candidates."""
        if self.candidates == "authors":
            self.candidates = _AUTHORS
        super().__post_init__()

    def direction(self, vectors: Sequence[Mapping[str, Tensor]], context: Context) -> MergedVector:
        """The disjoint mean, or sum, of the trimmed vectors."""
        del context
        return ties_vector(vectors, self.density, self.merge, self.weights)


@aggregates.register(paper="Yu et al. 2024, DARE", needs=_NEEDS)
@dataclass(eq=False)
class DARE(OfWeightedVectors):
    """Task vectors of which most entries are dropped at random, then merged.

    The context's seed determines which entries.

    Args:
        drop: The probability with which an entry is dropped, in [0, 1).
        density: The share that TIES then keeps of each vector; None for their plain sum (task
            arithmetic). After dropping, a share above `1 - drop` trims nothing.
        merge: As for `TIES`, where there is a `density`.
    """

    label = "DARE"

    drop: float = 0.9
    density: float | None = None
    merge: Literal["mean", "sum"] = field(default="mean", kw_only=True)

    def direction(self, vectors: Sequence[Mapping[str, Tensor]], context: Context) -> MergedVector:
        """The sum, or the TIES merge, of what was not dropped."""
        kept = dare(vectors, self.drop, torch.Generator().manual_seed(context.seed))
        if self.density is None:
            return sum_vectors(kept, self.weights)
        return ties_vector(kept, self.density, self.merge, self.weights)
