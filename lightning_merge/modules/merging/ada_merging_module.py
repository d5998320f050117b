"""AdaMerging: coefficients of task vectors learned without labels, from predictions' entropy.

Yang et al. 2024, "AdaMerging: Adaptive Model Merging for Multi-Task Learning".
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from lightning_merge.batches import INPUT_KEYS, inputs_of
from lightning_merge.errors import ConfigError
from lightning_merge.logit_answers import are_independent, log_probabilities
from lightning_merge.modules.merging.flat_task_vectors import FlatTaskVectors
from lightning_merge.modules.merging.learned_weights import LearnedWeights
from lightning_merge.modules.merging.read_ingredients import check_automatic, read_ingredients


def mean_entropy(logits: Tensor, independent: bool = False) -> Tensor:
    """The mean entropy, in nats, of the predictions that logits `(B, C)` stand for.

    They are of classes that exclude each other, or of a single yes or no; `independent` ones are
    each that of a yes of its own (multi-label).
    """
    log_probability = log_probabilities(logits, independent)
    return -(log_probability.exp() * log_probability).sum(dim=(-2, -1)).mean()


class AdaMergingModule(LearnedWeights):
    """Learns a coefficient for each task vector so that the merge is sure of its predictions.

    With the pre-trained weights P and K fine-tuned ones the merge is
    `P + sum_k coefficient_k * (W_k - P)`, one coefficient for each task (`model`: the paper's
    task-wise AdaMerging) or for each task and tensor (`layer`: layer-wise), each of them in
    [0, 1]. `alpha_logits` are the coefficients. Gradients are those of the predictions' entropy
    on the training inputs; labels in a batch are not read. Give it held-out or unlabelled
    images: on the images that the ingredients learned from, they are sure already.

    Trained heads that all ingredients have alike stay as they are. Running statistics are
    averaged over all K + 1 networks at the start, as `MergeModule` does.

    A module with several heads is used as it stands: batches that are a dict by task (a
    `CombinedLoader`'s) go to its `forward` as `{task: inputs}`, which gives `{task: logits}`,
    and the tasks' entropies are added. Predictions are of classes that exclude each other, of yes
    and no where there is one logit, and of yes and no for each logit where the module's `task` is
    `multilabel`; of several heads, where the module's `independent` has the task.

    Args:
        module: Any LightningModule with automatic optimization; its weights are replaced.
        pretrained: The weights that all were fine-tuned from: a path, or a state dict.
        checkpoints: The fine-tuned ingredients, likewise.
        granularity: `model` or `layer`.
        coefficient: The initial coefficient of each task vector, between 0 and 1; the default
            is the paper's.
        optimizer: Called with the list that holds `alpha_logits`; Adam with the paper's
            learning rate of 0.001 if not given.
        lr_scheduler: As for `MergeModule`.
        keep_a: As for `MergeModule`; the first ingredient is the pre-trained network.

    Raises:
        ConfigError: If the granularity is another one, or the coefficient is not in between.
        MergeError: As `MergeModule` does.
    """

    def __init__(
        self,
        module: LightningModule,
        pretrained: str | Path | Mapping[str, Tensor],
        checkpoints: Sequence[str | Path | Mapping[str, Tensor] | nn.Module],
        granularity: Literal["model", "layer"] = "layer",
        coefficient: float = 0.3,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
        keep_a: str | None = None,
    ) -> None:
        check_coefficients(granularity, coefficient)
        read = read_ingredients([pretrained, *checkpoints], module, (keep_a,))
        check_automatic(module)
        super().__init__(
            module,
            read,
            FlatTaskVectors(read.merged, read.states, granularity),
            coefficient,
            optimizer or (lambda logits: torch.optim.Adam(logits, lr=0.001)),
            lr_scheduler,
        )

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The entropy of the predictions; logs it as `train_entropy`."""
        del batch_idx
        self.trace()
        if isinstance(batch, Mapping) and not any(key in batch for key in INPUT_KEYS):
            logits = self({task: inputs_of(part) for task, part in batch.items()})
            several = getattr(self, "independent", ())
            entropies = [mean_entropy(logits[task], task in several) for task in batch]
            loss = torch.stack(entropies).sum()
        else:
            loss = mean_entropy(self(inputs_of(batch)), are_independent(self))
        self.log("train_entropy", loss, on_step=False, on_epoch=True, batch_size=1, sync_dist=True)
        return loss

    def coefficients(self) -> Tensor:
        """The coefficients: `(K, 1)` for `model`, `(K, tensors)` for `layer`."""
        return self.alpha_logits.detach().clamp(0, 1)


def check_coefficients(granularity: str, coefficient: float) -> None:
    """Checks the settings of AdaMerging; a `ConfigError` if they are out of range."""
    if granularity not in ("model", "layer"):
        raise ConfigError(
            f"AdaMerging: granularity '{granularity}' is none of its own: choose model or layer"
        )
    if not 0 < coefficient < 1:
        raise ConfigError(
            f"AdaMerging: coefficient is {coefficient}: choose a number between 0 and 1"
        )
