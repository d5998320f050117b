"""Metrics that are means over classes, computed from raw logits: AUROC and rates of detection.

A class (or label) for which a metric is not defined is left out of its mean, and named.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

Task = Literal["multiclass", "binary", "multilabel"]
Rate = Literal["sensitivity", "specificity", "f1"]

_MOST_NAMED = 10


def exact(logits: Tensor) -> Tensor:
    """The logits in float64, where the sigmoid of a float32 does not saturate."""
    # Apple's GPUs have no float64.
    return logits.float() if logits.device.type == "mps" else logits.double()


def probabilities_of(logits: Tensor) -> Tensor:
    """Softmax of logits `(N, C)` in float64; NaN where one is NaN."""
    values = exact(logits)
    # An infinite logit leaves nothing to the others; a difference of infinities is NaN.
    largest = torch.finfo(values.dtype).max / 4
    return values.clamp(-largest, largest).softmax(dim=1)


class PerClassMetric(Metric):
    """The mean over C classes, or labels, of a number that is defined for some of them.

    The task says what targets mean, see `ImageClassifier`; C is 1 where it is binary.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    def __init__(self, task: Task, num_classes: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.task = task
        self.num_classes = num_classes

    def _truth(self, target: Tensor) -> Tensor:
        """Which classes each example has: booleans `(N, C)`."""
        if self.task == "multiclass":
            return target[:, None] == torch.arange(self.num_classes, device=target.device)
        return target.reshape(-1, self.num_classes) == 1

    def _mean(
        self,
        values: Tensor,
        defined: Tensor,
        name: str,
        examples: int,
        weights: Tensor | None = None,
    ) -> Tensor:
        left_out = (~defined).nonzero().flatten().tolist()
        if left_out and self.task == "binary":
            rank_zero_warn(f"{name} is not defined: all {examples} examples are of one class")
        elif left_out:
            noun = "labels" if self.task == "multilabel" else "classes"
            end = "" if defined.any() else "; none is left"
            rank_zero_warn(
                f"{name}: the mean leaves out {noun} that occur in none or in all of the "
                f"{examples} examples: {_listed(left_out)}{end}"
            )
        if weights is None:
            return values[defined].mean()
        shares = weights[defined].to(values.dtype)
        return (values[defined] * shares).sum() / shares.sum()


class AreaUnderROC(PerClassMetric):
    """The area under the ROC curve; of several classes the mean, each against the others.

    It is the share of pairs of a positive and a negative example in which the positive one has
    the higher score, ties counting half. Scores are the logits themselves where a class has one
    of its own, and softmax probabilities in float64 where classes exclude each other. NaN if a
    logit is NaN.
    """

    logits: list[Tensor]
    targets: list[Tensor]

    def __init__(self, task: Task, num_classes: int, **kwargs: Any) -> None:
        super().__init__(task, num_classes, **kwargs)
        self.add_state("logits", [], dist_reduce_fx="cat")
        self.add_state("targets", [], dist_reduce_fx="cat")

    def update(self, logits: Tensor, target: Tensor) -> None:
        """Takes logits `(N, C)`, or `(N,)` where the task is binary, and the targets."""
        self.logits.append(logits.detach())
        self.targets.append(target)

    def compute(self) -> Tensor:
        """The mean over the classes that some examples have, and others have not."""
        logits, truth = exact(dim_zero_cat(self.logits)), self._truth(dim_zero_cat(self.targets))
        multiclass = self.task == "multiclass"
        scores = probabilities_of(logits) if multiclass else logits.reshape(truth.shape)
        areas = [area_under_roc(*pair) for pair in zip(scores.T, truth.T, strict=True)]
        defined = truth.any(dim=0) & ~truth.all(dim=0)
        return self._mean(torch.tensor(areas, device=self.device), defined, "AUROC", len(truth))


def area_under_roc(scores: Tensor, positive: Tensor) -> float:
    """The area under the ROC curve, exactly (Mann and Whitney's U over the number of pairs).

    Scores `(N,)` are higher for what is more likely positive. NaN if a score is, or if all examples
    are of one class.
    """
    count, positives = len(scores), int(positive.sum())
    if positives in (0, count) or bool(scores.isnan().any()):
        return float("nan")
    _, places, ties = scores.unique(return_inverse=True, return_counts=True)
    # Ranks from 1, of equals their mean: twice that is an integer.
    twice_ranks = 2 * ties.cumsum(0) - ties + 1
    twice_u = int(twice_ranks[places[positive]].sum()) - positives * (positives + 1)
    return twice_u / (2 * positives * (count - positives))


class DetectionRate(PerClassMetric):
    """Sensitivity, specificity or F1; of several classes the mean, each against the others.

    Predicted are the class of the largest logit, or the labels whose logits are positive; where a
    logit is NaN it is wrong: no class, or the other answer about the label. The
    sensitivity (recall) and F1 of a class are not defined where no example has it, the
    specificity where all have it.
    """

    counts: Tensor

    def __init__(self, rate: Rate, task: Task, num_classes: int, **kwargs: Any) -> None:
        super().__init__(task, num_classes, **kwargs)
        self.rate = rate
        # By class, truth and prediction.
        zeros = torch.zeros(num_classes, 2, 2, dtype=torch.long)
        self.add_state("counts", zeros, dist_reduce_fx="sum")

    def update(self, logits: Tensor, target: Tensor) -> None:
        """Takes logits `(N, C)`, or `(N,)` where the task is binary, and the targets."""
        truth = self._truth(target)
        if self.task == "multiclass":
            found = self._truth(logits.argmax(dim=1)) & ~logits.isnan().any(dim=1, keepdim=True)
        else:
            logits = logits.reshape(truth.shape)
            found = torch.where(logits.isnan(), ~truth, logits > 0)
        for i in (0, 1):
            for j in (0, 1):
                self.counts[:, i, j] += ((truth == i) & (found == j)).sum(dim=0)

    def compute(self) -> Tensor:
        """The mean over the classes for which it is defined."""
        (tn, fp), (fn, tp) = self.counts.permute(1, 2, 0)
        numerator, denominator, needs = {
            "sensitivity": (tp, tp + fn, tp + fn),
            "specificity": (tn, tn + fp, tn + fp),
            "f1": (2 * tp, 2 * tp + fp + fn, tp + fn),
        }[self.rate]
        examples = int(self.counts[0].sum())
        return self._mean(numerator / denominator, needs > 0, self.rate, examples)


def _listed(numbers: Sequence[int]) -> str:
    more = len(numbers) - _MOST_NAMED
    named = ", ".join(map(str, numbers[:_MOST_NAMED]))
    return f"{named} and {more} more" if more > 0 else named
