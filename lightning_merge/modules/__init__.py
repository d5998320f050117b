"""LightningModules: a classifier, merges of several modules, ensembles of many."""

from lightning_merge.modules.classifier import ImageClassifier
from lightning_merge.modules.clip import CLIPClassifier
from lightning_merge.modules.ensemble import EnsembleModule, FeatureEnsembleModule
from lightning_merge.modules.merging.ada_merging_module import AdaMerging
from lightning_merge.modules.merging.merge_module import MergeModule
from lightning_merge.modules.merging.successive_pairs import merge_in_pairs, successive_pairs

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
