"""Transport plans between units with uniform marginals: soft by Sinkhorn's iteration, or exact.

Sources: Cuturi 2013, "Sinkhorn Distances"; the rounding is that of Altschuler et al. 2017,
"Near-linear time approximation algorithms for optimal transport via Sinkhorn iteration".
"""

import math

import torch
from torch import Tensor

from lightning_merge.align.matching.assignment import assign
from lightning_merge.errors import AlignmentError

_ROUNDS, _TOLERANCE = 1000, 1e-7
# An exact plan of unequal sizes assigns so many copies of units at most.
_COPIES = 8192


def transport_plan(cost: Tensor, epsilon: float) -> Tensor:
    """The plan that moves equal masses of all columns to equal masses of all rows.

    It minimises `sum(T * cost) - epsilon * mean(cost) * entropy(T)`, is `(n, m)` like the cost
    (finite, not negative), float64 and on the CPU; rows add up to `1 / n`, columns to `1 / m`. With
    an `epsilon` of 0 it is exact, of equal sizes an assignment; sizes whose least common multiple
    is too large for that are refused.
    """
    cost = cost.detach().to("cpu", torch.float64)
    return _soft(cost, epsilon) if epsilon > 0 else _exact(cost)


def _exact(cost: Tensor) -> Tensor:
    """An assignment of equal shares, as many of each unit as make both sides equal."""
    n, m = cost.shape
    copies = math.lcm(n, m)
    if n != m and copies > _COPIES:
        raise AlignmentError(
            f"an exact plan between {n} and {m} units takes {copies} shares: choose epsilon > 0"
        )
    shares = cost.repeat_interleave(copies // n, 0).repeat_interleave(copies // m, 1)
    columns = assign(-shares)[0] // (copies // m)
    rows = torch.arange(copies) // (copies // n)
    plan = torch.zeros_like(cost)
    plan.index_put_((rows, columns), plan.new_tensor(1 / copies), accumulate=True)
    return plan


def _soft(cost: Tensor, epsilon: float) -> Tensor:
    n, m = cost.shape
    width = epsilon * float(cost.mean()) or 1.0
    logits, right = -cost / width, torch.zeros(m, dtype=cost.dtype)
    for _ in range(_ROUNDS):
        left = -(logits + right).logsumexp(1) - math.log(n)
        columns = (logits + left[:, None]).logsumexp(0)
        # The columns' sums under the potentials as they are, relative to 1 / m.
        error = float(((columns + right).exp() * m - 1).abs().max())
        right = -columns - math.log(m)
        if error < _TOLERANCE:
            break
    return _rounded((logits + left[:, None] + right).exp())


def _rounded(plan: Tensor) -> Tensor:
    """A plan near this one whose marginals are uniform but for rounding errors."""
    n, m = plan.shape
    plan = plan * (1 / n / plan.sum(1, keepdim=True)).clamp(max=1)
    plan = plan * (1 / m / plan.sum(0, keepdim=True)).clamp(max=1)
    rows, columns = (1 / n - plan.sum(1)).clamp(min=0), (1 / m - plan.sum(0)).clamp(min=0)
    missing = float(rows.sum())
    return plan + rows[:, None] * columns / missing if missing > 1e-300 else plan
