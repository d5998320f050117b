"""SVC: singular values of a merge of task vectors, corrected for what the tasks share.

Li et al. 2026, singular value calibration (arXiv 2602.05536): directions that several tasks have in
common are counted several times in a merge; each is scaled back to what the tasks themselves have.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lightning_merge.aggregate.inputs import State, checked, opened, wide
from lightning_merge.aggregate.matrix_merges import as_matrix, is_matrix
from lightning_merge.aggregate.singular_triples import Triples, leading_triples
from lightning_merge.aggregate.vector_arithmetic import check_start, check_vectors
from lightning_merge.errors import ConfigError
from lightning_merge.state_dicts import StateDict, check_finite, table_of

_NOTHING = 1e-12


def svc(
    pretrained: State, vectors: Sequence[State], merged: State, alpha: float = 0.1
) -> StateDict:
    """A merge of task vectors with calibrated singular values.

    Per matrix, `merged - pretrained = D = U S V^T`, `(m, n)`. For each left direction `u_r`,
    `a = u_r^T D` and `a_t = u_r^T D_t`; `s_rt = <a, a_t> / |a_t|^2` says how many times the merge
    has what task t has there, and `S_r` is divided by `eta_r = mean_t max(s_rt, alpha)`. A task
    that has nothing in a direction counts `alpha`. What is no matrix stays as `merged` has it.

    Args:
        pretrained: The state dict that the vectors start from, or the path of its file.
        vectors: T task vectors, or paths of their files.
        merged: The merge: the result of `task_arithmetic`, `ties`, `tsv_merge`, ..., or a path.
        alpha: The smallest factor, above 0; the authors use 0.1 to 1.

    Returns:
        A new state dict, in the merge's types. The order of the tasks changes only roundings.

    Raises:
        ConfigError: If there is no vector, or `alpha` is not above 0.
        ArchitectureMismatchError: If names, shapes or kinds of numbers differ.
        NonFiniteError: If an entry is NaN or infinite, or the result is beyond its type's range.
    """
    if not alpha > 0:
        raise ConfigError(f"SVC: alpha {alpha} is not above 0; choose 0.1 to 1")
    found, start, result = check_vectors(vectors), opened(pretrained), opened(merged)
    table = table_of(found[0])
    for network in (start, result):
        check_start(table, table_of(network))
    calibrated: StateDict = {}
    for name, value in result.items():
        value = value.detach()
        if name in table and is_matrix(name, table[name]):
            check_finite(f"the merge: '{name}'", value, [start[name]])
            calibrated[name] = checked(name, _calibrated(name, start, value, found, alpha), value)
        else:
            calibrated[name] = value.clone()
    return calibrated


def _calibrated(
    name: str,
    start: Mapping[str, Tensor],
    merged: Tensor,
    vectors: Sequence[Mapping[str, Tensor]],
    alpha: float,
) -> Tensor:
    origin = start[name].detach().to(merged.device, wide(merged))
    end = merged.to(origin)
    # A mask's infinities do not move.
    step = as_matrix(torch.where(end == origin, 0, end - origin))
    triples = leading_triples(step, min(step.shape))
    tasks = []
    for vector in vectors:
        value = vector[name].detach()
        check_finite(f"task vectors: '{name}'", value, [])
        tasks.append(as_matrix(value.to(origin)))
    calibrated = triples._replace(values=triples.values / _factors(triples, tasks, alpha))
    return origin.add(calibrated.product().view_as(origin)).to(merged.dtype)


def _factors(triples: Triples, tasks: Sequence[Tensor], alpha: float) -> Tensor:
    """`eta`, `(r,)`."""
    total = torch.zeros_like(triples.values)
    for task in tasks:
        own = triples.left.mT @ task  # (r, n)
        # u_r^T of the merge is its singular value times v_r.
        products = triples.values * (own * triples.right.mT).sum(dim=1)
        squares = own.square().sum(dim=1)
        # A part that is rounding alone has a ratio that is anything.
        times = torch.where(squares > _NOTHING * squares.sum(), products / squares, 0)
        total += times.clamp(min=alpha)
    return total / len(tasks)
