"""The accuracy of always giving the most frequent answer, which a network has to exceed."""

from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from numpy.typing import NDArray


def majority(data: LightningDataModule, targets: NDArray[np.int64] | None) -> float | None:
    """The share of test examples that the most frequent training class is right for.

    Args:
        data: Its training labels determine the class, where its data set says them without
            reading images (`targets`, `labels`, or a `TensorDataset`); else the test labels do.
        targets: The test examples' classes `(N,)`, or labels `(N, L)`, each of which is then
            answered by its own most frequent value; None if they are not known.

    Returns:
        None if targets are not known, or one is negative, which is no class: a test that leaves
        such examples out says nothing of them.
    """
    if targets is None or targets.min(initial=0) < 0:
        return None
    rows = targets.reshape(len(targets), -1)
    known = _training_targets(data)
    if known is None or known.shape[1] != rows.shape[1]:
        known = rows
    answer = [int(np.bincount(column).argmax()) for column in known.T]
    return float((rows == answer).mean())


def _training_targets(data: LightningDataModule) -> NDArray[np.int64] | None:
    """The training examples' classes `(N, 1)`, or labels `(N, L)`."""
    try:
        array = _targets(data.train_dataloader().dataset)
    except (AttributeError, MisconfigurationException):
        return None
    if array is None or array.ndim not in (1, 2) or not array.size:
        return None
    array = array.reshape(len(array), -1)
    # Labels of zeros and ones are floating-point numbers, for the loss.
    labels = bool(np.isin(array, (0, 1)).all())
    whole = array.dtype.kind in "iub" and array.min() >= 0
    return array.astype(np.int64) if labels or whole else None


def _targets(dataset: Any) -> NDArray[Any] | None:
    if isinstance(dataset, torch.utils.data.Subset):
        found = _targets(dataset.dataset)
        return None if found is None else found[np.asarray(dataset.indices)]
    if isinstance(dataset, torch.utils.data.TensorDataset):
        return _array(dataset.tensors[1]) if len(dataset.tensors) > 1 else None
    if getattr(dataset, "target_transform", None) is not None:
        # Torchvision's sets keep what the files say, and give what is made of it.
        return None
    return _array(getattr(dataset, "targets", getattr(dataset, "labels", None)))


def _array(found: Any) -> NDArray[Any] | None:
    """Targets as an array; None where they are no table, such as lists of several lengths."""
    try:
        return np.asarray(found.detach().cpu() if isinstance(found, torch.Tensor) else found)
    except (TypeError, ValueError):
        return None
