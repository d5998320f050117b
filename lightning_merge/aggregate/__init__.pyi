from .averaging import (
    average as average,
)
from .averaging import (
    interpolate as interpolate,
)
from .calibrated_spectrum import svc as svc
from .cart_merging import cart as cart
from .cart_merging import cart_vector as cart_vector
from .dpp import (
    exact_map as exact_map,
)
from .dpp import (
    greedy_order as greedy_order,
)
from .dpp import (
    sample_kdpp as sample_kdpp,
)
from .dpp import (
    select_dpp as select_dpp,
)
from .dropping import dare as dare
from .fisher import (
    diagonal_fisher as diagonal_fisher,
)
from .fisher import (
    fisher_average as fisher_average,
)
from .greedy_search import (
    Trial as Trial,
)
from .greedy_search import (
    greedy_soup as greedy_soup,
)
from .greedy_search import (
    greedy_soup_by_counts as greedy_soup_by_counts,
)
from .isotropic import iso_c as iso_c
from .isotropic import iso_c_vector as iso_c_vector
from .isotropic import iso_cts as iso_cts
from .isotropic import iso_cts_vector as iso_cts_vector
from .kernel import (
    cosine_similarity_matrix as cosine_similarity_matrix,
)
from .kernel import (
    dpp_kernel as dpp_kernel,
)
from .kernel import (
    relative_gain_quality as relative_gain_quality,
)
from .localised import consensus as consensus
from .localised import consensus_vector as consensus_vector
from .localised import tall_masks as tall_masks
from .magnitude_masks import breadcrumbs as breadcrumbs
from .magnitude_masks import della as della
from .masked_tasks import load_task as load_task
from .masked_tasks import write_masked as write_masked
from .on_disk import (
    SafetensorsState as SafetensorsState,
)
from .on_disk import (
    StateOnDisk as StateOnDisk,
)
from .regression_mean import (
    gram_matrices as gram_matrices,
)
from .regression_mean import (
    regmean as regmean,
)
from .select_calculate_erase import sce_vector as sce_vector
from .spherical import karcher_mean as karcher_mean
from .spherical import slerp as slerp
from .stock import model_stock as model_stock
from .task_singular_vectors import tsv_merge as tsv_merge
from .task_singular_vectors import tsv_vector as tsv_vector
from .ties_merging import (
    ties as ties,
)
from .ties_merging import (
    ties_vector as ties_vector,
)
from .vector_arithmetic import (
    MergedVector as MergedVector,
)
from .vector_arithmetic import (
    sum_vectors as sum_vectors,
)
from .vector_arithmetic import (
    task_arithmetic as task_arithmetic,
)
from .vector_difference import (
    LazyTaskVector as LazyTaskVector,
)
from .vector_difference import (
    task_vector as task_vector,
)
