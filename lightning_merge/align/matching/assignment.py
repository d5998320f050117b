"""Linear assignment: which unit of one network plays the part of which unit of another."""

import torch
from torch import Tensor

from lightning_merge.symmetry.unit_group import Group


def assign(scores: Tensor) -> tuple[Tensor, float]:
    """The permutation `p` that maximises `sum(scores[i, p[i]])`, and that sum, in float64.

    Scores are `(n, n)` and finite; `p` is on the CPU.
    """
    from scipy.optimize import linear_sum_assignment

    matrix = scores.detach().to("cpu", torch.float64).numpy()
    # Costs that each row and column has a zero of are solved in half the time.
    costs = matrix.max(1, keepdims=True) - matrix
    costs -= costs.min(0, keepdims=True)
    rows, columns = linear_sum_assignment(costs)
    return torch.from_numpy(columns), float(matrix[rows, columns].sum())


def assign_blocks(scores: Tensor, blocks: int) -> Tensor:
    """Like `assign`, but every unit stays inside its block of `n / blocks` units."""
    if blocks == 1:
        return assign(scores)[0]
    width = len(scores) // blocks
    rows = []
    for block in range(blocks):
        part = slice(block * width, (block + 1) * width)
        rows.append(assign(scores[part, part])[0] + block * width)
    return torch.cat(rows)


def assign_wholes(inside: list[tuple[Group, Tensor]], own: Tensor | None) -> dict[str, Tensor]:
    """Match heads as wholes together with the units inside them.

    The score of a pair of heads is that of the best assignment of the units inside them, so that
    heads are compared by what they could become, not by the order of their units; `own` adds scores
    of the heads themselves, `(heads, heads)`. The permutation of heads has the name `""`.
    """
    count = inside[0][0].blocks
    pairs = torch.zeros(count, count, dtype=torch.float64)
    if own is not None:
        pairs += own.detach().to("cpu", torch.float64)
    best: dict[tuple[int, int, str], Tensor] = {}
    for group, scores in inside:
        width = group.size // count
        grid = scores.detach().to("cpu").reshape(count, width, count, width)
        for a in range(count):
            for b in range(count):
                permutation, score = assign(grid[a, :, b])
                pairs[a, b] += score
                best[a, b, group.name] = permutation
    heads, _ = assign(pairs)
    result = {"": heads}
    for group, _ in inside:
        width = group.size // count
        rows = [best[a, int(b), group.name] + a * width for a, b in enumerate(heads)]
        result[group.name] = torch.cat(rows)
    return result
