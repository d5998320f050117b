"""Merges that take gradients: NP Merge, learned soups, fine-tuning of the average."""

from collections.abc import Sequence

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import OptimizerCallable

from lightning_merge.aggregate import average
from lightning_merge.checkpoint import StateDict
from lightning_merge.modules import Granularity, MergeModule
from lightning_merge.study.aggregates.aggregate import Aggregate
from lightning_merge.study.measure import fit
from lightning_merge.study.pool import Pool


class FineTune(Aggregate):
    """The average, trained further in the whole space of weights (NP Merge, Sec. III-D).

    Args:
        max_epochs: How many epochs over the pool's training data.
        optimizer: Called with the parameters.
    """

    learns = True

    def __init__(
        self, max_epochs: int = 10, optimizer: OptimizerCallable = torch.optim.Adam
    ) -> None:
        self.max_epochs = max_epochs
        self.optimizer = optimizer

    def __call__(self, states: Sequence[StateDict], pool: Pool) -> LightningModule:
        """A module with the fine-tuned weights."""
        module = pool.build(average(states))
        setattr(module, "configure_optimizers", lambda: self.optimizer(module.parameters()))  # noqa: B010
        _fit(module, self.max_epochs, pool)
        del module.__dict__["configure_optimizers"]
        return module


class NPMerge(Aggregate):
    """One learned alpha for each parameter (NP Merge, Eq. 2); fewer give a learned soup.

    More than two ingredients are merged jointly: each has an alpha, and a softmax over them is
    in the sigmoid's place.

    Args:
        granularity: One alpha for the `model`, one a `layer`, `channel` or `parameter`.
        max_epochs: How many epochs over the pool's training data.
        alpha: The initial share of the first ingredient; all have the same if not given.
        optimizer: Called with the alphas' logits.
    """

    learns = True

    def __init__(
        self,
        granularity: Granularity = "parameter",
        max_epochs: int = 10,
        alpha: float | None = None,
        optimizer: OptimizerCallable = lambda logits: torch.optim.Adam(logits, lr=0.01),
    ) -> None:
        self.granularity = granularity
        self.max_epochs = max_epochs
        self.alpha = alpha
        self.optimizer = optimizer

    def __call__(self, states: Sequence[StateDict], pool: Pool) -> LightningModule:
        """A module with the merged weights, and `alphas()`."""
        module = MergeModule(
            pool.build(states[0]),
            states,
            granularity=self.granularity,
            alpha=self.alpha,
            optimizer=self.optimizer,
        )
        _fit(module, self.max_epochs, pool)
        return module


def _fit(module: LightningModule, max_epochs: int, pool: Pool) -> None:
    pool.learned_from = fit(module, pool.data, pool.trainer(max_epochs=max_epochs))
    module.eval()
