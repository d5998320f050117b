"""RegMean: the weights whose outputs are nearest to every network's own, layer by layer.

Jin et al. 2023, "Dataless Knowledge Fusion by Merging Weights of Language Models". A linear
layer's merge is a least-squares problem that the inputs' Gram matrices solve in closed form;
a convolution is a linear layer on patches.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lightning_merge.aggregate.averaging import average
from lightning_merge.aggregate.inputs import (
    State,
    check_finite_over_data,
    checked,
    checked_tensors,
    opened_all,
)
from lightning_merge.batches import inputs_in, to_device_of
from lightning_merge.errors import ConfigError
from lightning_merge.linear_layers import Linear, input_rows, is_plain
from lightning_merge.modes import as_written, evaluation
from lightning_merge.state_dicts import StateDict
from lightning_merge.watched_layers import watch_input

# Relative to the mean of the Gram matrix's diagonal: too small to move a well-determined
# weight, enough to make the factorisation succeed.
_RIDGE = 1e-10


def regmean(
    states: Sequence[State],
    grams: Sequence[Mapping[str, Tensor]],
    scaling: float = 0.9,
) -> StateDict:
    """Merges linear and convolutional weights by regression, everything else by averaging.

    For each weight with Gram matrices, `(sum_k G_k)^-1 sum_k G_k W_k`, after the entries of
    each `G_k` off the diagonal were multiplied by `scaling`. Directions in which no network
    had any input keep the plain average. Biases are averaged, as in the paper. Integers and
    booleans are those of the first state.

    Args:
        states: K state dicts with the same names and shapes, or paths of files of weights.
        grams: K sets of Gram matrices by weight name, as `gram_matrices` gives them.
        scaling: What is left of the off-diagonal entries, in [0, 1]; the paper's alpha, which
            it advises at 0.9. Below 1 it guards against Gram matrices from few examples.

    Returns:
        A new state dict, computed in float64, in the widest type that an ingredient has.

    Raises:
        ConfigError: If the numbers of states and Gram matrices differ, a matrix does not fit
            its weight, or `scaling` is out of range.
        MergeError: If the states do not fit each other, or hold NaN.
    """
    if not len(states) or len(states) != len(grams):
        raise ConfigError(
            f"RegMean: {len(states)} states and {len(grams)} sets of Gram matrices; give one of "
            "each for every network"
        )
    if not 0 <= scaling <= 1:
        raise ConfigError(f"RegMean: scaling {scaling} is out of range; choose one in [0, 1]")
    found, called = opened_all(states)
    merged = average(found)
    for name in grams[0]:
        if any(name not in gram for gram in grams) or name not in merged:
            raise ConfigError(
                f"RegMean: '{name}' is not in every network and set of Gram matrices; take them "
                "from networks of one architecture"
            )
        weights = checked_tensors(found, called, name)
        if weights[0].is_complex():
            raise ConfigError(f"RegMean: '{name}' is complex; its regression is for real weights")
        solved = _regress(name, weights, [gram[name] for gram in grams], scaling)
        merged[name] = checked(name, solved.to(merged[name].dtype))
    return merged


def _regress(name: str, weights: list[Tensor], grams: list[Tensor], scaling: float) -> Tensor:
    first = weights[0]
    groups, size = grams[0].shape[0], grams[0].shape[-1]
    if groups == 0 or first.shape[0] % groups or first[0].numel() != size:
        raise ConfigError(
            f"RegMean: a Gram matrix of shape {tuple(grams[0].shape)} does not fit '{name}' of "
            f"shape {tuple(first.shape)}; take both from one network"
        )
    # (K, groups, inputs, outputs): the layout in which a layer is x @ W
    columns = torch.stack(
        [w.to(first.device, torch.float64).reshape(groups, -1, size).mT for w in weights]
    )
    mean = columns.mean(dim=0)
    total = torch.zeros(groups, size, size, dtype=torch.float64, device=first.device)
    pull = torch.zeros_like(mean)
    for column, gram in zip(columns, grams, strict=True):
        scaled = gram.to(total) * scaling
        scaled.diagonal(dim1=-2, dim2=-1).copy_(gram.diagonal(dim1=-2, dim2=-1))
        total += scaled
        pull += scaled @ (column - mean)
    # Solved for the distance from the mean, the ridge pulls towards the mean, not to zero.
    ridge = total.diagonal(dim1=-2, dim2=-1).mean(dim=-1) * _RIDGE
    ridge = torch.where(ridge > 0, ridge, torch.ones_like(ridge))
    total.diagonal(dim1=-2, dim2=-1).add_(ridge[:, None])
    solution = mean + torch.cholesky_solve(pull, torch.linalg.cholesky(total))
    return solution.mT.reshape(first.shape)


@torch.no_grad()
def gram_matrices(model: nn.Module, batches: Iterable[Any]) -> StateDict:
    """The mean outer product of each layer's inputs with themselves.

    For every `nn.Linear` and `nn.Conv2d` that is called as a module and computes its own
    `forward`; subclasses with another one, and weights that are used without their module
    (attention's fused projections), are left out, hence averaged by `regmean`. The network is
    in eval mode meanwhile and is left unchanged.

    Args:
        model: Takes one input.
        batches: What a data loader gives; see `lightning_merge.batches`.

    Returns:
        By weight name (tied ones under all their names), a tensor in float64 of shape
        `(groups, d, d)`: one group for a linear layer with d inputs; for a convolution,
        d = inputs per group x kernel height x kernel width, in the order of its weight.

    Raises:
        ConfigError: If no such layer was called.
        NonFiniteError: If the images or the weights hold NaN or infinity.
    """
    named = dict(model.named_parameters(remove_duplicate=False))
    known = {id(value) for value in named.values()}
    sums: dict[int, Tensor] = {}
    rows: dict[int, int] = {}

    def accumulate(layer: nn.Module, given: Tensor) -> None:
        assert isinstance(layer, Linear)
        key = id(layer.weight)
        x = input_rows(layer, given)
        gram = x.mT @ x
        sums[key] = sums[key].add_(gram) if key in sums else gram
        rows[key] = rows.get(key, 0) + x.shape[1]

    with ExitStack() as watches, evaluation(model), as_written():
        for layer in model.modules():
            if is_plain(layer, (nn.Linear, nn.Conv2d)) and id(layer.weight) in known:
                watches.enter_context(watch_input(layer, partial(accumulate, layer)))
        for inputs in inputs_in(batches):
            model(to_device_of(model, inputs))
    if not sums:
        raise ConfigError("RegMean: no linear or convolutional layer saw an input; check the data")
    grams = {key: total / rows[key] for key, total in sums.items()}
    found = {name: grams[id(value)] for name, value in named.items() if id(value) in grams}
    check_finite_over_data("RegMean", found)
    return found
