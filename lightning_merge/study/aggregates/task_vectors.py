"""Merges of task vectors: what fine-tuning changed, added to the pre-trained network."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from lightning_merge.aggregate import LazyTaskVector, MergedVector, dare, sum_vectors, ties_vector
from lightning_merge.checkpoint import StateDict
from lightning_merge.errors import ConfigError
from lightning_merge.study.aggregates.aggregate import Aggregate
from lightning_merge.study.pool import Pool
from lightning_merge.study.pretrained import check_pretrained, pretrained_state, without
from lightning_merge.study.recalibration import Recalibration
from lightning_merge.study.scale import choose_scale
from lightning_merge.study.task_held_out import held_out_of

Scale = float | Literal["search"]

# 0.0 to 1.0, as in "Quality and Diversity Both Matters When Merging Models".
_CANDIDATES = [step / 10 for step in range(11)]


class _OfTaskVectors(Aggregate):
    from_pretrained = True

    def __init__(
        self,
        pretrained: str | None = None,
        scale: Scale = "search",
        candidates: list[float] | None = None,
        metric: str | None = None,
        mode: Literal["max", "min"] = "max",
    ) -> None:
        self.pretrained = pretrained
        self.scale = scale
        self.candidates = _CANDIDATES if candidates is None else candidates
        if not self.candidates:
            raise ConfigError(f"{type(self).__name__}: there are no candidates; give some numbers")
        self.metric = metric
        self.sign = 1.0 if mode == "max" else -1.0

    def check(self, pool: Pool) -> None:
        """Checks that the pre-trained network is known, and held-out data there to search on.

        Raises:
            ConfigError: If not.
        """
        check_pretrained(self.pretrained, pool, type(self).__name__)
        if self.scale == "search":
            held_out_of(pool)

    def __call__(self, states: Sequence[StateDict], pool: Pool) -> LightningModule:
        """A module with the merged weights.

        Raises:
            MergeError: If the pre-trained network is not given, or is of another architecture.
        """
        pretrained = pretrained_state(self.pretrained, pool, type(self).__name__)
        (start,) = without(pool.heads, [pretrained])
        vectors = [LazyTaskVector(state, start) for state in without(pool.heads, states)]
        direction = self.direction(vectors, pool)
        if self.scale != "search":
            return pool.build(direction.at(pretrained, self.scale))
        recalibrate = Recalibration(self.recalibrate, states, pool, type(self).__name__)

        def build(state: StateDict) -> LightningModule:
            module = pool.build(state)
            recalibrate(module)
            return module

        held_out = held_out_of(pool)
        choice = choose_scale(
            direction, pretrained, self.candidates, build, held_out, self.metric, self.sign
        )
        pool.learned_from = held_out.size
        pool.selected = [choice]
        return pool.build(direction.at(pretrained, choice.scale))

    @abstractmethod
    def direction(self, vectors: Sequence[Mapping[str, Tensor]], pool: Pool) -> MergedVector:
        """What the task vectors are merged to."""


class TaskArithmetic(_OfTaskVectors):
    """The pre-trained network plus `scale` times the sum of the task vectors.

    Ilharco et al. 2023, "Editing Models with Task Arithmetic".

    Args:
        pretrained: The checkpoint that the ingredients were fine-tuned from; where several
            tasks are merged, or the study has a `start`, it is known (None, or `start`).
        scale: The coefficient of the sum, or `search`: the one with the best held-out metric.
        candidates: Those among which to search; 0.0, 0.1, ..., 1.0 if not given.
        metric: What the search compares: accuracy if not given; otherwise the name of a metric
            that the module's validation logs (`val_auroc`).
        mode: Whether more (`max`) or less (`min`) of `metric` is better.
    """

    def direction(self, vectors: Sequence[Mapping[str, Tensor]], pool: Pool) -> MergedVector:
        """The sum."""
        del pool
        return sum_vectors(vectors)


class TIES(_OfTaskVectors):
    """The pre-trained network plus `scale` times the TIES merge of the task vectors.

    Yadav et al. 2023, "TIES-Merging: Resolving Interference When Merging Models".

    Args:
        pretrained: As for `TaskArithmetic`.
        density: The share of each vector that is kept, in (0, 1].
        scale: As for `TaskArithmetic`; 1 is the paper's own choice without held-out data.
        candidates: As for `TaskArithmetic`.
        metric: As for `TaskArithmetic`.
        mode: As for `TaskArithmetic`.
    """

    def __init__(
        self,
        pretrained: str | None = None,
        density: float = 0.2,
        scale: Scale = "search",
        candidates: list[float] | None = None,
        metric: str | None = None,
        mode: Literal["max", "min"] = "max",
    ) -> None:
        super().__init__(pretrained, scale, candidates, metric, mode)
        self.density = density

    def direction(self, vectors: Sequence[Mapping[str, Tensor]], pool: Pool) -> MergedVector:
        """The disjoint mean of the trimmed vectors."""
        del pool
        return ties_vector(vectors, self.density)


class DARE(_OfTaskVectors):
    """Task vectors of which most entries are dropped at random, then merged.

    Yu et al. 2024, "Language Models are Super Mario". The pool's seed says which entries.

    Args:
        pretrained: As for `TaskArithmetic`.
        drop: The probability with which an entry is dropped, in [0, 1).
        density: The share that TIES then keeps of each vector; None for their plain sum (task
            arithmetic). After dropping, a share above `1 - drop` trims nothing.
        scale: As for `TaskArithmetic`.
        candidates: As for `TaskArithmetic`.
        metric: As for `TaskArithmetic`.
        mode: As for `TaskArithmetic`.
    """

    def __init__(
        self,
        pretrained: str | None = None,
        drop: float = 0.9,
        density: float | None = None,
        scale: Scale = "search",
        candidates: list[float] | None = None,
        metric: str | None = None,
        mode: Literal["max", "min"] = "max",
    ) -> None:
        super().__init__(pretrained, scale, candidates, metric, mode)
        self.drop = drop
        self.density = density

    def direction(self, vectors: Sequence[Mapping[str, Tensor]], pool: Pool) -> MergedVector:
        """The sum, or the TIES merge, of what was not dropped."""
        kept = dare(vectors, self.drop, torch.Generator().manual_seed(pool.seed))
        return sum_vectors(kept) if self.density is None else ties_vector(kept, self.density)
