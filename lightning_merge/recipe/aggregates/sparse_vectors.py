"""Merges of sparse task vectors: Breadcrumbs, DELLA, SCE and Consensus."""

from collections.abc import Mapping, Sequence
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
class Breadcrumbs(OfTaskVectors):
    """The sum of task vectors without their largest and their small entries.

    Davari and Belilovsky 2024, "Model Breadcrumbs".

    Args:
        pretrained: As for `TaskArithmetic`.
        density: The share of each tensor's entries that stays, in (0, 1].
        outliers: The share of the largest entries that is dropped.
        scale: As for `TaskArithmetic`.
        candidates: As for `TaskArithmetic`.
        metric: As for `TaskArithmetic`.
        mode: As for `TaskArithmetic`.
    """

    label = "Breadcrumbs"

    def __init__(
        self,
        pretrained: str | None = None,
        density: float = 0.1,
        outliers: float = 0.01,
        scale: Scale = "search",
        candidates: list[float] | None = None,
        metric: str | None = None,
        mode: Literal["max", "min"] = "max",
    ) -> None:
        super().__init__(pretrained, scale, candidates, metric, mode)
        self.density = density
        self.outliers = outliers

    def direction(self, vectors: Sequence[Mapping[str, Tensor]], context: Context) -> MergedVector:
        """The sum of what stays."""
        del context
        return sum_vectors(breadcrumbs(vectors, self.density, self.outliers))


@aggregates.register(paper="Deep et al. 2024, DELLA-Merging", needs=_NEEDS)
class DELLA(OfTaskVectors):
    """Entries dropped at random, the larger ones less often; then signs elected, as in TIES.

    Deep et al. 2024, "DELLA-Merging". The context's seed determines which entries.

    Args:
        pretrained: As for `TaskArithmetic`.
        drop: The mean probability with which an entry is dropped.
        window: By how much the smallest entry's probability exceeds the largest one's.
        scale: As for `TaskArithmetic`.
        candidates: As for `TaskArithmetic`.
        metric: As for `TaskArithmetic`.
        mode: As for `TaskArithmetic`.
        merge: The `mean` of the entries that agree in sign, or their `sum`.
    """

    label = "DELLA"

    def __init__(
        self,
        pretrained: str | None = None,
        drop: float = 0.7,
        window: float = 0.2,
        scale: Scale = "search",
        candidates: list[float] | None = None,
        metric: str | None = None,
        mode: Literal["max", "min"] = "max",
        merge: Literal["mean", "sum"] = "mean",
    ) -> None:
        super().__init__(pretrained, scale, candidates, metric, mode)
        self.drop = drop
        self.window = window
        self.merge = merge

    def direction(self, vectors: Sequence[Mapping[str, Tensor]], context: Context) -> MergedVector:
        """The merge of those entries that agree in sign."""
        drawn = torch.Generator().manual_seed(context.seed)
        return ties_vector(della(vectors, self.drop, self.window, drawn), 1.0, self.merge)


@aggregates.register(paper="Wan et al. 2024, FuseChat", needs=_NEEDS)
class SCE(OfTaskVectors):
    """Entries selected by variance, vectors weighted by energy, minorities' signs erased.

    Wan et al. 2024, "FuseChat: Knowledge Fusion of Chat Models".

    Args:
        pretrained: As for `TaskArithmetic`.
        density: The share of entries that is selected by their variance, in (0, 1].
        scale: As for `TaskArithmetic`; 1, the default, is the paper's.
        candidates: As for `TaskArithmetic`.
        metric: As for `TaskArithmetic`.
        mode: As for `TaskArithmetic`.
    """

    label = "SCE"

    def __init__(
        self,
        pretrained: str | None = None,
        density: float = 0.1,
        scale: Scale = 1.0,
        candidates: list[float] | None = None,
        metric: str | None = None,
        mode: Literal["max", "min"] = "max",
    ) -> None:
        super().__init__(pretrained, scale, candidates, metric, mode)
        self.density = density

    def direction(self, vectors: Sequence[Mapping[str, Tensor]], context: Context) -> MergedVector:
        """SCE's direction."""
        del context
        return sce_vector(vectors, self.density)


@aggregates.register(paper="Wang et al. 2024, Localizing Task Information", needs=_NEEDS)
class Consensus(OfTaskVectors):
    """The sum of the task vectors where enough tasks need it, by their TALL masks.

    Wang et al. 2024, "Localizing Task Information for Improved Model Merging and Compression".

    Args:
        pretrained: As for `TaskArithmetic`.
        threshold: How large a task's entry is beside the others' sum for its mask to keep it.
        agree: How many masks have to keep an entry.
        scale: As for `TaskArithmetic`.
        candidates: As for `TaskArithmetic`.
        metric: As for `TaskArithmetic`.
        mode: As for `TaskArithmetic`.
    """

    label = "Consensus"

    def __init__(
        self,
        pretrained: str | None = None,
        threshold: float = 0.4,
        agree: int = 2,
        scale: Scale = "search",
        candidates: list[float] | None = None,
        metric: str | None = None,
        mode: Literal["max", "min"] = "max",
    ) -> None:
        super().__init__(pretrained, scale, candidates, metric, mode)
        self.threshold = threshold
        self.agree = agree

    def direction(self, vectors: Sequence[Mapping[str, Tensor]], context: Context) -> MergedVector:
        """The sum of the entries that stay."""
        del context
        return consensus_vector(vectors, self.threshold, self.agree)
