"""torchmetrics' means over classes, without the classes for which a metric is not defined."""

import warnings
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_merge.modules.per_class import PerClassMetric, Task

# What is counted among predictions is defined for a class that no example has, too.
_OF_PREDICTIONS = ("Precision", "NegativePredictiveValue", "Specificity")
# Of several labels each is right or wrong for every example; of several classes only its own are.
_OF_EXAMPLES = ("MultilabelAccuracy", "MultilabelHammingDistance")
_OF_PAIRS = ("AUROC", "LogAUC", "EER")


class MeanOfOccurring(PerClassMetric):
    """The mean of a metric over the classes, or labels, that occur.

    Args:
        metric: Gives a number for each class (`average="none"`), from logits and targets.
        named: Its name in warnings, which also says what it needs: AUROC examples with and
            without a class, specificity some without, precision neither.
        task: As for `PerClassMetric`, like the number of classes.
        num_classes: See there.
        ignored: The target that counts as none, if there is one.
        weighted: Whether classes count by how many examples have them.
    """

    occurring: Tensor
    examples: Tensor

    def __init__(
        self,
        metric: Metric,
        named: str,
        task: Task,
        num_classes: int,
        ignored: int | None = None,
        weighted: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(task, num_classes, **kwargs)
        self.metric = metric
        self.named = named
        self.ignored = ignored
        self.weighted = weighted
        zeros = torch.zeros(num_classes, dtype=torch.long)
        self.add_state("occurring", zeros, dist_reduce_fx="sum")
        self.add_state("examples", zeros.clone(), dist_reduce_fx="sum")

    def update(self, logits: Tensor, target: Tensor) -> None:
        """Takes logits `(N, C)` and the targets."""
        self.metric.update(logits, target)
        counts = self._counted(target)
        self.occurring += (self._truth(target) & counts).sum(dim=0)
        self.examples += counts.sum(dim=0)

    def compute(self) -> Tensor:
        """The mean over the classes for which it is defined."""
        with warnings.catch_warnings():
            # torchmetrics' own words about classes that are left out here.
            warnings.simplefilter("ignore")
            values = self.metric.compute()
        defined = torch.ones_like(self.occurring, dtype=torch.bool)
        always = (*_OF_PREDICTIONS, *_OF_EXAMPLES)
        if not self.named.endswith(always) or self.named.endswith("AveragePrecision"):
            defined &= self.occurring > 0
        if self.named.endswith((*_OF_PAIRS, "Specificity")):
            defined &= self.occurring < self.examples
        weights = self.occurring if self.weighted else None
        return self._mean(values, defined, self.named, int(self.examples.max()), weights)

    def reset(self) -> None:
        """Forgets all examples."""
        super().reset()
        self.metric.reset()

    def _counted(self, target: Tensor) -> Tensor:
        shape = (len(target), 1) if self.task == "multiclass" else (-1, self.num_classes)
        kept = torch.ones_like(target, dtype=torch.bool)
        if self.ignored is not None:
            kept = target != self.ignored
        return kept.reshape(shape).expand(-1, self.num_classes)
