"""What torchmetrics is given in place of a classifier's raw logits."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import MulticlassCalibrationError
from torchmetrics.wrappers.transformations import MetricInputTransformer

from lightning_merge.modules.per_class import Task, exact, probabilities_of


class FromLogits(MetricInputTransformer):
    """A metric that is given what `transform` makes of logits.

    An example (or a label) with a logit of NaN counts as surely wrong, whatever the largest of its
    other logits is.
    """

    def __init__(self, metric: Metric, transform: Callable[[Tensor], Tensor], task: Task) -> None:
        super().__init__(metric)
        self.transform, self.task = transform, task

    def update(self, *args: Tensor, **kwargs: Any) -> None:
        """Takes logits `(N, C)`, or `(N,)` where the task is binary, and the targets."""
        logits, target = args
        # Whoever wants no look at targets wants none at logits, for which a GPU waits.
        if getattr(self.wrapped_metric, "validate_args", True):
            logits = _wrong_if_nan(logits, target, self.task)
        self.wrapped_metric.update(self.transform(logits), target, **kwargs)


def _wrong_if_nan(logits: Tensor, target: Tensor, task: Task) -> Tensor:
    nan = logits.isnan()
    if not bool(nan.any()):
        return logits
    if task == "multiclass":
        classes = torch.arange(logits.shape[1], device=logits.device)
        # The class after the right one is the likeliest, and the right one the least likely.
        wrong = -((classes - target[:, None] - 1) % logits.shape[1])
        return wrong.to(logits.dtype).where(nan.any(dim=1, keepdim=True), logits)
    return torch.where(nan, torch.inf * (1 - 2 * target.to(logits.dtype)), logits)


class CalibrationError(MulticlassCalibrationError):
    """torchmetrics' own, in float64, whose float32 sums lose their last digits."""

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Takes probabilities `(N, C)` and classes `(N,)`."""
        super().update(preds, target)
        kept = torch.ones_like(target, dtype=torch.bool)
        if self.ignore_index is not None:
            kept = target != self.ignore_index
        confidences, predicted = preds[kept].max(dim=1)
        self.confidences[-1] = below_one(confidences)
        self.accuracies[-1] = (predicted == target[kept]).to(confidences.dtype)


def below_one(probabilities: Tensor) -> Tensor:
    """Probabilities, of which none is in a bin of its own that begins at 1."""
    return probabilities.clamp(max=1 - torch.finfo(probabilities.dtype).eps / 2)


def calibrated(logits: Tensor) -> Tensor:
    """Probabilities in float64, none of them 1."""
    return below_one(sigmoid(logits))


def identity(logits: Tensor) -> Tensor:
    """The logits themselves."""
    return logits


def softmax(logits: Tensor) -> Tensor:
    """Probabilities in float64; all 0 where they are not defined."""
    return probabilities_of(logits).nan_to_num(nan=0.0)


def sigmoid(logits: Tensor) -> Tensor:
    """Probabilities in float64; 0.5, which predicts nothing, where they are not defined."""
    return exact(logits).sigmoid().nan_to_num(nan=0.5)


def increasing(logits: Tensor) -> Tensor:
    """Numbers in [0, 1] in the order of the logits, none equal that differ; 0.5 for NaN."""
    values = exact(logits)
    return (
        (values / (2 * (1 + values.abs())) + 0.5)
        .where(values.isfinite(), values.sign() / 2 + 0.5)
        .nan_to_num(nan=0.5)
    )
