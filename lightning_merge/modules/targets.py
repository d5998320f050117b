"""What a classifier's targets have to be."""

import torch
from torch import Tensor

from lightning_merge.errors import DataError
from lightning_merge.modules.per_class import Task


def check_targets(targets: Tensor, task: Task, num_classes: int) -> None:
    """Checks that every example, or every label of it, has a target.

    Neither losses nor metrics say so otherwise: binary cross entropy takes any number, cross
    entropy passes over -100, and what is not 1 would count as negative.

    Targets are classes `(N,)`, their probabilities `(N, C)`, or labels between 0 and 1.
    """
    if not targets.numel():
        return
    classes = task == "multiclass" and not targets.is_floating_point()
    largest = num_classes - 1 if classes else 1
    low, high = torch.aminmax(targets.to(torch.uint8) if targets.dtype == torch.bool else targets)
    # Not the other way around: NaN is neither.
    if not (low >= 0 and high <= largest):
        wrong = low if not low >= 0 else high
        what = "class" if task == "multiclass" else "label"
        raise DataError(
            f"a target is {wrong.item():g}, which is no {what} (0 to {largest}): leave examples "
            "without a target out, or give a module of your own whose loss and metrics ignore them"
        )


def certain(targets: Tensor, task: Task) -> Tensor:
    """The classes or labels that targets stand for, those of mixed or smoothed ones too.

    Integers: `(N,)` classes, the likeliest ones; or labels, 1 where more than a half.
    """
    if task == "multiclass" and targets.dim() == 2:
        return targets.argmax(dim=1)
    return (targets > 0.5).long() if targets.is_floating_point() else targets.long()
