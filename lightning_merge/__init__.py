"""lightning_merge: train, align and merge image classifiers.

Every public name is importable from here; what it needs is imported when it is first used.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "align": (
        "ActivationMatching",
        "CCAMatching",
        "Matching",
        "PermutationSpec",
        "WeightMatching",
    ),
    "aggregate": (
        "average",
        "greedy_soup",
        "interpolate",
        "select_dpp",
        "task_arithmetic",
        "task_vector",
        "ties",
    ),
    "callbacks": (
        "AlphaMonitor",
        "BatchNormReset",
        "FreezeBatchNorm",
        "GreedySoup",
        "LastEpochsSoup",
    ),
    "data": (
        "CIFARDataModule",
        "CelebADataModule",
        "ChestXrayDataModule",
        "ClassificationDataModule",
        "Corruption",
        "DigitsDataModule",
        "HuggingFaceDataModule",
        "ImageFolderDataModule",
        "MNISTDataModule",
        "MedMNISTDataModule",
        "TinyImageNetDataModule",
        "USPSDataModule",
        "VisionTaskDataModule",
    ),
    "errors": ("MergeError",),
    "modules": (
        "CLIPClassifier",
        "EnsembleModule",
        "FeatureEnsembleModule",
        "ImageClassifier",
        "MergeModule",
    ),
    "recalibrate": ("repair", "reset_batchnorm"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME)
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
