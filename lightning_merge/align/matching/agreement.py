"""How well the weights of several networks agree: what matching many of them maximises."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lightning_merge.align.matching.weight_similarity import check_finite_weights, moved_parameters
from lightning_merge.checkpoint import state_of
from lightning_merge.errors import AlignmentError
from lightning_merge.symmetry.index_maps import Permutation
from lightning_merge.symmetry.spec import Network, PermutationSpec


def agreement(spec: PermutationSpec, networks: Sequence[Network]) -> float:
    """The inner products of all pairs' parameters, summed, in float64: what is maximised here.

    Only parameters that some group moves count; of two networks it is weight matching's
    objective.

    Args:
        spec: The spec of their architecture.
        networks: The networks, their state dicts or files; buffers are not needed.
    """
    states = [state_of(network) for network in networks]
    total = 0.0
    for name in moved_parameters(spec):
        tensors = [state[name].detach().double() for state in states]
        together = torch.stack(tensors).sum(0).square().sum()
        total += float(together - sum(tensor.square().sum() for tensor in tensors)) / 2
    return total


def to_first(spec: PermutationSpec, permutations: Sequence[Permutation]) -> list[Permutation]:
    """The same agreement of all with all, in the order of the first network."""
    back = spec.inverse(permutations[0])
    return [spec.identity()] + [spec.compose(p, back) for p in permutations[1:]]


def states_of(spec: PermutationSpec, networks: Sequence[Network]) -> list[Mapping[str, Tensor]]:
    """The state dicts of two networks or more, of the spec's architecture, their weights finite."""
    if len(networks) < 2:
        raise AlignmentError(f"aligning needs two networks or more, there are {len(networks)}")
    states = [spec.state_of(network) for network in networks]
    check_finite_weights(spec, states)
    return states
