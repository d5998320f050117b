"""LightningModules: a classifier, merges of several modules, ensembles of many."""

from lightning_merge.modules.ada_merging import AdaMerging
from lightning_merge.modules.classifier import ImageClassifier
from lightning_merge.modules.clip import CLIPClassifier
from lightning_merge.modules.ensemble import EnsembleModule, FeatureEnsembleModule
from lightning_merge.modules.merge import MergeModule
from lightning_merge.modules.successive import merge_in_pairs, successive_pairs

__all__ = [
    "AdaMerging",
    "CLIPClassifier",
    "EnsembleModule",
    "FeatureEnsembleModule",
    "ImageClassifier",
    "MergeModule",
    "merge_in_pairs",
    "successive_pairs",
]
