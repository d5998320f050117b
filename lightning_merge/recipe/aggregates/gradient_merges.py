"""Merges that learn from training data: NP Merge, fine-tuning of the average."""

from collections.abc import Sequence

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import OptimizerCallable

from lightning_merge.aggregate import average
from lightning_merge.checkpoint import StateDict
from lightning_merge.modules import Granularity, MergeModule
from lightning_merge.recipe.aggregate import Aggregate, Merged, aggregates
from lightning_merge.recipe.context import Context
from lightning_merge.recipe.fitting import fit


@aggregates.register(paper="NP Merge, Sec. III-D", needs="labelled training data")
class FineTune(Aggregate):
    """The average, with all of its weights trained further (NP Merge, Sec. III-D).

    Args:
        max_epochs: How many epochs over the training data.
        optimizer: Called with the parameters.
    """

    learns = True

    def __init__(
        self, max_epochs: int = 10, optimizer: OptimizerCallable = torch.optim.Adam
    ) -> None:
        self.max_epochs = max_epochs
        self.optimizer = optimizer

    def __call__(self, states: Sequence[StateDict], context: Context) -> Merged:
        """A module with the fine-tuned weights."""
        module = context.build(average(states))
        setattr(module, "configure_optimizers", lambda: self.optimizer(module.parameters()))  # noqa: B010
        made = fit_quietly(module, self.max_epochs, context)
        del module.__dict__["configure_optimizers"]
        return made


@aggregates.register(paper="Orozco Camacho et al. 2024, NP Merge", needs="labelled training data")
class NPMerge(Aggregate):
    """One learned alpha for each parameter (NP Merge, Eq. 2), or for each layer or model.

    More than two ingredients are merged jointly: each has an alpha, and a softmax over them is
    in the sigmoid's place; `NPMergePairs` merges them two at a time, as the paper does. With one
    alpha for the model or a layer this has the parameters of a learned soup, learned from
    training data; its authors' own way, on held-out data, is `LearnedSoup`.

    Args:
        granularity: One alpha for the `model`, one a `layer`, `channel` or `parameter`.
        max_epochs: How many epochs over the training data.
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

    def __call__(self, states: Sequence[StateDict], context: Context) -> Merged:
        """A module with the merged weights, and `alphas()`."""
        module = MergeModule(
            context.build(states[0]),
            states,
            granularity=self.granularity,
            alpha=self.alpha,
            optimizer=self.optimizer,
        )
        return fit_quietly(module, self.max_epochs, context)


def fit_quietly(module: LightningModule, max_epochs: int, context: Context) -> Merged:
    """A module fitted on the context's training data, which count as labelled examples."""
    examples = fit(module, context.data, context.trainer(max_epochs=max_epochs))
    return Merged(module.eval(), labelled_examples=examples)
