"""LightningModules: a classifier, merges of several modules, ensembles of many."""

from lightning_merge.modules.classifier import ImageClassifier
from lightning_merge.modules.clip import CLIPClassifier
from lightning_merge.modules.ensemble import EnsembleModule, FeatureEnsembleModule
from lightning_merge.modules.merging.ada_merging_module import AdaMergingModule
from lightning_merge.modules.merging.matching_module import LearnedMatchingModule
from lightning_merge.modules.merging.merge_module import Granularity, MergeModule
from lightning_merge.modules.merging.successive_pairs import merge_in_pairs, successive_pairs
from lightning_merge.modules.surgery import SurgeryModule
from lightning_merge.modules.zipped import ZippedModule

# What configurations of `fit` may name.
AdaMerging = AdaMergingModule

__all__ = [
    "AdaMerging",
    "AdaMergingModule",
    "CLIPClassifier",
    "EnsembleModule",
    "FeatureEnsembleModule",
    "Granularity",
    "ImageClassifier",
    "LearnedMatchingModule",
    "MergeModule",
    "SurgeryModule",
    "ZippedModule",
    "merge_in_pairs",
    "successive_pairs",
]
