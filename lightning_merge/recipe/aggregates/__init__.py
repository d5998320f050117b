"""The ways of making one module from aligned ingredients that a recipe can name."""

from lightning_merge.recipe.aggregate import Aggregate
from lightning_merge.recipe.aggregates.corrected_features import RepresentationSurgery
from lightning_merge.recipe.aggregates.data_weighted import Fisher, RegMean
from lightning_merge.recipe.aggregates.entropy_coefficients import AdaMerging
from lightning_merge.recipe.aggregates.gradient_merges import FineTune, NPMerge
from lightning_merge.recipe.aggregates.greedy_members import GreedySoup
from lightning_merge.recipe.aggregates.output_ensembles import (
    FeaturesEnsemble,
    GreedyFeaturesEnsemble,
    GreedyLogitsEnsemble,
    LogitsEnsemble,
)
from lightning_merge.recipe.aggregates.pairwise_merges import NPMergePairs
from lightning_merge.recipe.aggregates.soup_on_held_out import LearnedSoup
from lightning_merge.recipe.aggregates.sparse_vectors import DELLA, SCE, Breadcrumbs, Consensus
from lightning_merge.recipe.aggregates.spectral_merges import CART, SVC, IsoC, IsoCTS, TSVMerge
from lightning_merge.recipe.aggregates.spherical_means import KarcherMean, Slerp
from lightning_merge.recipe.aggregates.stock_average import ModelStock
from lightning_merge.recipe.aggregates.task_vector_merges import DARE, TIES, TaskArithmetic
from lightning_merge.recipe.aggregates.weighted_average import Average
from lightning_merge.recipe.aggregates.zipped_networks import PartialZipIt, ZipIt

__all__ = [
    "CART",
    "DARE",
    "DELLA",
    "SCE",
    "SVC",
    "TIES",
    "AdaMerging",
    "Aggregate",
    "Average",
    "Breadcrumbs",
    "Consensus",
    "FeaturesEnsemble",
    "FineTune",
    "Fisher",
    "GreedyFeaturesEnsemble",
    "GreedyLogitsEnsemble",
    "GreedySoup",
    "IsoC",
    "IsoCTS",
    "KarcherMean",
    "LearnedSoup",
    "LogitsEnsemble",
    "ModelStock",
    "NPMerge",
    "NPMergePairs",
    "PartialZipIt",
    "RegMean",
    "RepresentationSurgery",
    "Slerp",
    "TSVMerge",
    "TaskArithmetic",
    "ZipIt",
]
