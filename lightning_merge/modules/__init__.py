"""LightningModules: a classifier, the merge of two modules, the ensemble of many."""

from lightning_merge.modules.classifier import ImageClassifier
from lightning_merge.modules.ensemble import EnsembleModule
from lightning_merge.modules.merge import MergeModule

__all__ = ["EnsembleModule", "ImageClassifier", "MergeModule"]
