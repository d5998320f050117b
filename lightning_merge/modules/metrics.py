"""The metrics of a classifier: all of them take raw logits, so that none guesses what they are.

torchmetrics decides for each batch whether its values are probabilities already, and its float32
sigmoid saturates: the same logits would give other numbers in other batches.
"""

import inspect
import math
import warnings
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any, get_args

import torch
import torchmetrics.classification
from torch import Tensor
from torchmetrics import Accuracy, Metric, MetricCollection
from torchmetrics.classification import BinaryCalibrationError, MulticlassCalibrationError

from lightning_merge.errors import ConfigError, one_line
from lightning_merge.modules.classes_that_occur import MeanOfOccurring
from lightning_merge.modules.from_logits import (
    CalibrationError,
    FromLogits,
    calibrated,
    identity,
    increasing,
    sigmoid,
    softmax,
)
from lightning_merge.modules.per_class import AreaUnderROC, DetectionRate, Rate, Task

MetricChoice = str | dict[str, Any]

# Metrics that depend only on the order of the scores, unless they have thresholds.
_OF_RANKS = ("AUROC", "AveragePrecision", "LogAUC", "EER", "RankingLoss", "CoverageError")

_RATES: dict[str, Rate] = {rate: rate for rate in get_args(Rate)}
MEDICAL = (*_RATES, "calibration_error")

# A checkpoint's hyper-parameters name metrics: nothing else is looked up because a file says so.
_ROOMS = ("", "torchmetrics", "torchmetrics.classification")


def classification_metrics(
    task: Task, num_classes: int, chosen: Sequence[MetricChoice] | None = None
) -> MetricCollection:
    """The metrics of a classifier, whose `update` takes logits and targets.

    Args:
        task: What the targets mean, see `ImageClassifier`.
        num_classes: How many classes C; 1 for `binary`.
        chosen: Words (`accuracy`, `top5`, `auroc`, `sensitivity`, `specificity`, `f1`,
            `calibration_error`, or `medical` for the last four), or classes of
            `torchmetrics.classification`, as `class_path`, `init_args` and, if it is not to be the
            class's own, `name`. None for accuracy, with `top5` from six classes on, with `auroc`
            where the task is not multiclass.

    Returns:
        The collection: logits `(N, C)`, or `(N,)` where the task is binary, of any floating-point
        type. Means over classes leave out those that do not occur in the data, and name them in a
        warning. An example with a logit of NaN (of several labels, that label) counts as wrong;
        AUROC is NaN then.
    """
    if chosen is None:
        chosen = ["accuracy"]
        chosen += ["auroc"] if task != "multiclass" else ["top5"] if num_classes > 5 else []
    words = [one for name in chosen for one in (MEDICAL if name == "medical" else (name,))]
    made: dict[str, Metric | MetricCollection] = dict(
        _made(one, task, num_classes) for one in words
    )
    # Groups are of metrics that agree on the first batch: one example may do for top 1 and top 5.
    return MetricCollection(made, compute_groups=False)


def _made(chosen: MetricChoice, task: Task, num_classes: int) -> tuple[str, Metric]:
    if not isinstance(chosen, str):
        return _of_torchmetrics(chosen, task, num_classes)
    size = _size(task, num_classes)
    if chosen == "accuracy":
        return chosen, _on_logits(Accuracy(**size, average="micro"), task)
    if chosen == "top5" and task == "multiclass" and num_classes > 5:
        return chosen, _on_logits(Accuracy(**size, average="micro", top_k=5), task)
    if chosen == "auroc":
        return chosen, AreaUnderROC(task, num_classes)
    if chosen in _RATES:
        return chosen, DetectionRate(_RATES[chosen], task, num_classes)
    if chosen == "calibration_error":
        several = task == "multiclass"
        error = CalibrationError(num_classes) if several else BinaryCalibrationError()
        return chosen, _on_logits(error, task)
    raise ConfigError(
        f"metric '{chosen}' does not fit a {task} task of {num_classes} classes: choose accuracy, "
        f"auroc, medical, {', '.join(MEDICAL)}, (multiclass, six classes or more) top5, or a "
        "class_path of torchmetrics.classification"
    )


def _on_logits(metric: Metric, task: Task) -> Metric:
    """A metric that is given probabilities where it would take logits for what they are not."""
    if task == "multiclass":
        # It compares an example's own logits, and probabilities may be too small to differ.
        own = hasattr(metric, "top_k")
        return FromLogits(metric, identity if own else softmax, task)
    if isinstance(metric, BinaryCalibrationError):
        return FromLogits(metric, calibrated, task)
    ranks = type(metric).__name__.endswith(_OF_RANKS)
    ranks = ranks and getattr(metric, "thresholds", None) is None
    return FromLogits(metric, increasing if ranks else sigmoid, task)


def _size(task: Task, num_classes: int) -> dict[str, Any]:
    sizes = {"multiclass": {"num_classes": num_classes}, "multilabel": {"num_labels": num_classes}}
    return {"task": task, **sizes.get(task, {})}


def _of_torchmetrics(chosen: Mapping[str, Any], task: Task, num_classes: int) -> tuple[str, Metric]:
    path = str(chosen.get("class_path") if isinstance(chosen, Mapping) else chosen)
    room, _, name = path.rpartition(".")
    kind: Any = getattr(torchmetrics.classification, name, None) if room in _ROOMS else None
    if not (isinstance(kind, type) and issubclass(kind, Metric)):
        near = get_close_matches(name, torchmetrics.classification.__all__, n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise ConfigError(f"metric '{path}' is no class of torchmetrics.classification{hint}")
    known = [*inspect.signature(kind.__init__).parameters, *inspect.signature(kind).parameters]
    size = {k: v for k, v in _size(task, num_classes).items() if k in known}
    try:
        given: dict[str, Any] = {**size, **(chosen.get("init_args") or {})}
        own = inspect.signature(kind).parameters.get("average")
        average = None if own is None else given.get("average", own.default)
        by_class = average in ("macro", "weighted")
        plain: Metric = kind(**{**given, **({"average": "none"} if by_class else {})})
        called = type(plain).__name__
        if isinstance(plain, MulticlassCalibrationError):
            plain = CalibrationError(**given)
        metric = _on_logits(plain, task)
        if by_class and task != "binary":
            ignored = given.get("ignore_index")
            weighted = average == "weighted"
            metric = MeanOfOccurring(metric, called, task, num_classes, ignored, weighted)
        _try(metric.clone(), task, num_classes)
    except (TypeError, ValueError, RuntimeError, IndexError) as error:
        raise ConfigError(
            f"metric '{path}' does not fit a {task} task of {num_classes} classes "
            f"({one_line(error)}): choose another one, or other init_args"
        ) from error
    return str(chosen.get("name", called)), metric


def _try(metric: Metric, task: Task, num_classes: int) -> None:
    if task == "multiclass":
        target, shape = torch.arange(2 * num_classes) % num_classes, (2 * num_classes, num_classes)
    else:
        shape = (4, num_classes)
        target = torch.arange(4 * num_classes).reshape(shape) % 2
    logits = torch.linspace(-1, 1, math.prod(shape)).reshape(shape)
    if task == "binary":
        logits, target = logits.flatten(), target.flatten()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        metric.update(logits, target)
        found = metric.compute()
    if not isinstance(found, Tensor) or found.numel() != 1:
        raise ValueError("it gives more than one number")
