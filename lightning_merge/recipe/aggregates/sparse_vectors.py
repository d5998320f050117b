"""Merges of sparse task vectors: Breadcrumbs, DELLA, SCE and Consensus."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from lightning_merge.aggregate import (
    MergedVector,
    breadcrumbs,
    consensus_vector,
    della,
    sce_vector,
    sum_vectors,
    ties_vector,
)
from lightning_merge.recipe.aggregate import aggregates
from lightning_merge.recipe.aggregates.scaled_direction import OfTaskVectors, Scale
from lightning_merge.recipe.context import Context

_NEEDS = "the pre-trained network; held-out labels where the scale is searched"


@aggregates.register(paper="Davari and Belilovsky 2024, Model Breadcrumbs", needs=_NEEDS)
@dataclass(eq=False)
class Breadcrumbs(OfTaskVectors):
    """The sum of task vectors without their largest and their small entries.

    Args:
        density: The share of each tensor's entries that stays, in (0, 1].
        outliers: The share of the largest entries that is dropped.
    """

    label = "Breadcrumbs"

    density: float = 0.1
    outliers: float = 0.01

    def direction(self, vectors: Sequence[Mapping[str, Tensor]], context: Context) -> MergedVector:
        """The sum of what stays."""
        del context
        return sum_vectors(breadcrumbs(vectors, self.density, self.outliers))


@aggregates.register(paper="Deep et al. 2024, DELLA-Merging", needs=_NEEDS)
@dataclass(eq=False)
class DELLA(OfTaskVectors):
    """Entries dropped at random, the larger ones less often; then signs elected, as in TIES.

    The context's seed determines which entries.

    Args:
        drop: The mean probability with which an entry is dropped.
        window: By how much the smallest entry's probability exceeds the largest one's.
        merge: The `mean` of the entries that agree in sign, or their `sum`.
    """

    label = "DELLA"

    drop: float = 0.7
    window: float = 0.2
    merge: Literal["mean", "sum"] = field(default="mean", kw_only=True)

    def direction(self, vectors: Sequence[Mapping[str, Tensor]], context: Context) -> MergedVector:
        """The merge of those entries that agree in sign."""
        drawn = torch.Generator().manual_seed(context.seed)
        return ties_vector(della(vectors, self.drop, self.window, drawn), 1.0, self.merge)


@aggregates.register(paper="Wan et al. 2024, FuseChat", needs=_NEEDS)
@dataclass(eq=False)
class SCE(OfTaskVectors):
    """Entries selected by variance, vectors weighted by energy, minorities' signs erased.

    Args:
        density: The share of entries that is selected by their variance, in (0, 1].
        scale: As for `TaskArithmetic`; 1, the default, is the paper's.
    """

    label = "SCE"

    density: float = 0.1
    scale: Scale = field(default=1.0, kw_only=True)

    def direction(self, vectors: Sequence[Mapping[str, Tensor]], context: Context) -> MergedVector:
        """SCE's direction."""
        del context
        return sce_vector(vectors, self.density)


@aggregates.register(paper="Wang et al. 2024, Localizing Task Information", needs=_NEEDS)
@dataclass(eq=False)
class Consensus(OfTaskVectors):
    """The sum of the task vectors where enough tasks need it, by their TALL masks.

    Args:
        threshold: How large a task's entry is beside the others' sum for its mask to keep it.
        agree: How many masks have to keep an entry.
    """

    label = "Consensus"

    threshold: float = 0.4
    agree: int = 2

    def direction(self, vectors: Sequence[Mapping[str, Tensor]], context: Context) -> MergedVector:
        """The sum of the entries that stay."""
        del context
        return consensus_vector(vectors, self.threshold, self.agree)
