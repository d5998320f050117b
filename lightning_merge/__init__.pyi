from .aggregate import (
    average as average,
)
from .aggregate import (
    cart as cart,
)
from .aggregate import (
    consensus as consensus,
)
from .aggregate import (
    greedy_soup as greedy_soup,
)
from .aggregate import (
    interpolate as interpolate,
)
from .aggregate import (
    iso_c as iso_c,
)
from .aggregate import (
    iso_cts as iso_cts,
)
from .aggregate import (
    karcher_mean as karcher_mean,
)
from .aggregate import (
    load_task as load_task,
)
from .aggregate import (
    select_dpp as select_dpp,
)
from .aggregate import (
    slerp as slerp,
)
from .aggregate import (
    svc as svc,
)
from .aggregate import (
    tall_masks as tall_masks,
)
from .aggregate import (
    task_arithmetic as task_arithmetic,
)
from .aggregate import (
    task_vector as task_vector,
)
from .aggregate import (
    ties as ties,
)
from .aggregate import (
    tsv_merge as tsv_merge,
)
from .align import (
    ActivationMatching as ActivationMatching,
)
from .align import (
    CCAMatching as CCAMatching,
)
from .align import (
    LearnedMatching as LearnedMatching,
)
from .align import (
    Matching as Matching,
)
from .align import (
    PermutationSpec as PermutationSpec,
)
from .align import (
    WeightMatching as WeightMatching,
)
from .align import (
    zip_it as zip_it,
)
from .callbacks import (
    AlphaMonitor as AlphaMonitor,
)
from .callbacks import (
    BatchNormReset as BatchNormReset,
)
from .callbacks import (
    FreezeBatchNorm as FreezeBatchNorm,
)
from .callbacks import (
    GreedySoup as GreedySoup,
)
from .callbacks import (
    InModelMerging as InModelMerging,
)
from .callbacks import (
    LastEpochsSoup as LastEpochsSoup,
)
from .callbacks import (
    Population as Population,
)
from .callbacks import (
    PopulationAverage as PopulationAverage,
)
from .data import (
    CelebADataModule as CelebADataModule,
)
from .data import (
    ChestXrayDataModule as ChestXrayDataModule,
)
from .data import (
    CIFARDataModule as CIFARDataModule,
)
from .data import (
    ClassificationDataModule as ClassificationDataModule,
)
from .data import (
    Corruption as Corruption,
)
from .data import (
    DigitsDataModule as DigitsDataModule,
)
from .data import (
    HuggingFaceDataModule as HuggingFaceDataModule,
)
from .data import (
    ImageFolderDataModule as ImageFolderDataModule,
)
from .data import (
    MedMNISTDataModule as MedMNISTDataModule,
)
from .data import (
    MNISTDataModule as MNISTDataModule,
)
from .data import (
    TinyImageNetDataModule as TinyImageNetDataModule,
)
from .data import (
    USPSDataModule as USPSDataModule,
)
from .data import (
    VisionTaskDataModule as VisionTaskDataModule,
)
from .errors import MergeError as MergeError
from .measure.folder_predictions import predict_folder as predict_folder
from .measure.sweep import Sweep as Sweep
from .modules import (
    CLIPClassifier as CLIPClassifier,
)
from .modules import (
    EnsembleModule as EnsembleModule,
)
from .modules import (
    FeatureEnsembleModule as FeatureEnsembleModule,
)
from .modules import (
    ImageClassifier as ImageClassifier,
)
from .modules import (
    MergeModule as MergeModule,
)
from .modules import (
    SurgeryModule as SurgeryModule,
)
from .modules import (
    ZippedModule as ZippedModule,
)
from .recalibrate import LeastSquares as LeastSquares
from .recalibrate import repair as repair
from .recalibrate import reset_batchnorm as reset_batchnorm
from .recipe.aggregate import Aggregate as Aggregate
from .recipe.aggregate import Merged as Merged
from .recipe.aggregates import (
    CART as CART,
)
from .recipe.aggregates import (
    DARE as DARE,
)
from .recipe.aggregates import (
    DELLA as DELLA,
)
from .recipe.aggregates import (
    SCE as SCE,
)
from .recipe.aggregates import (
    SVC as SVC,
)
from .recipe.aggregates import (
    TIES as TIES,
)
from .recipe.aggregates import (
    AdaMerging as AdaMerging,
)
from .recipe.aggregates import (
    Average as Average,
)
from .recipe.aggregates import (
    Breadcrumbs as Breadcrumbs,
)
from .recipe.aggregates import (
    Consensus as Consensus,
)
from .recipe.aggregates import (
    FeaturesEnsemble as FeaturesEnsemble,
)
from .recipe.aggregates import (
    FineTune as FineTune,
)
from .recipe.aggregates import (
    Fisher as Fisher,
)
from .recipe.aggregates import (
    GreedyFeaturesEnsemble as GreedyFeaturesEnsemble,
)
from .recipe.aggregates import (
    GreedyLogitsEnsemble as GreedyLogitsEnsemble,
)
from .recipe.aggregates import (
    IsoC as IsoC,
)
from .recipe.aggregates import (
    IsoCTS as IsoCTS,
)
from .recipe.aggregates import (
    KarcherMean as KarcherMean,
)
from .recipe.aggregates import (
    LearnedSoup as LearnedSoup,
)
from .recipe.aggregates import (
    LogitsEnsemble as LogitsEnsemble,
)
from .recipe.aggregates import (
    ModelStock as ModelStock,
)
from .recipe.aggregates import (
    NPMerge as NPMerge,
)
from .recipe.aggregates import (
    NPMergePairs as NPMergePairs,
)
from .recipe.aggregates import (
    PartialZipIt as PartialZipIt,
)
from .recipe.aggregates import (
    RegMean as RegMean,
)
from .recipe.aggregates import (
    RepresentationSurgery as RepresentationSurgery,
)
from .recipe.aggregates import (
    Slerp as Slerp,
)
from .recipe.aggregates import (
    TaskArithmetic as TaskArithmetic,
)
from .recipe.aggregates import (
    TSVMerge as TSVMerge,
)
from .recipe.aggregates import (
    ZipIt as ZipIt,
)
from .recipe.context import Context as Context
from .recipe.recalibration import Recalibration as Recalibration
from .recipe.recipe import Recipe as Recipe
from .recipe.selection import Proposal as Proposal
from .recipe.selection import Selection as Selection
from .recipe.selections import DPP as DPP
from .report.leader_table import leader_table as leader_table
from .study.plan import Study as Study
from .study.task_plan import TaskStudy as TaskStudy
from .study_verbs import run_study as run_study
from .study_verbs import run_tasks as run_tasks
from .verbs import compare as compare
from .verbs import merge as merge

__version__: str
