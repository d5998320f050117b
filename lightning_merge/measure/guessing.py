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
    """
    if targets is None:
        return None
    known = _training_targets(data)
    if known is None or known.shape[1:] != targets.shape[1:]:
        known = targets
    columns = known.reshape(len(known), -1).T
    answer = [int(np.bincount(column).argmax()) for column in columns]
    return float((targets.reshape(len(targets), -1) == answer).mean())


def _training_targets(data: LightningDataModule) -> NDArray[np.int64] | None:
    try:
        found = _targets(data.train_dataloader().dataset)
    except (AttributeError, MisconfigurationException):
        return None
    if found is None:
        return None
    array = np.asarray(found)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    whole = array.ndim in (1, 2) and len(array) and array.dtype.kind in "iub" and array.min() >= 0
    return array.astype(np.int64) if whole else None


def _targets(dataset: Any) -> Any:
    if isinstance(dataset, torch.utils.data.Subset):
        found = _targets(dataset.dataset)
        return None if found is None else np.asarray(found)[np.asarray(dataset.indices)]
    if isinstance(dataset, torch.utils.data.TensorDataset):
        return dataset.tensors[1] if len(dataset.tensors) > 1 else None
    return getattr(dataset, "targets", getattr(dataset, "labels", None))
