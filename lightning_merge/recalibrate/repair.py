"""REPAIR: restores the means and deviations of activations that averaging weights collapses.

Source: Jordan et al. 2023, "REPAIR: REnormalizing Permuted Activations for Interpolation
Repair". For networks without BatchNorm; with it, `reset_batchnorm` does the same.
"""

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_merge.batches import inputs_in
from lightning_merge.distributed import Share, ranks
from lightning_merge.errors import ArchitectureMismatchError, ConfigError, DataError
from lightning_merge.modes import gradient_free
from lightning_merge.orders import in_random_order
from lightning_merge.progress import tracked
from lightning_merge.randomness import isolated_randomness
from lightning_merge.recalibrate.channels import (
    Statistics,
    Which,
    layers_to_repair,
    measure,
    scale_of,
)


def repair(
    merged: nn.Module,
    model_a: nn.Module,
    model_b: nn.Module,
    batches: Iterable[Any],
    alpha: float = 0.5,
    progress: bool = False,
    seed: int = 0,
    which: Which = "hidden",
) -> int:
    """Gives every hidden channel of a merged network the statistics that its parents have.

    The goal of a channel is the mean `alpha m_A + (1 - alpha) m_B` and the standard
    deviation `alpha s_A + (1 - alpha) s_B` of its pre-activations; the scale and shift that
    reach it are multiplied into the layer's weight and bias, so that the network costs no
    more to run. `Repair` does the same for more than two parents.

    Args:
        merged: The merged network; changed in place.
        model_a: The first parent.
        model_b: The second one, *aligned* to the first, as it was merged.
        batches: As for `Repair`.
        alpha: The first parent's share in the merged network.
        progress: Whether to show a progress bar.
        seed: As for `Repair`.
        which: As for `Repair`.

    Returns:
        How many layers were corrected.

    Raises:
        ConfigError: A network has BatchNorm, whose statistics would undo the correction of hidden
            units, or `alpha` is not from 0 to 1; no layer makes the output.
        ArchitectureMismatchError: The networks' layers differ.
        DataError: There are no batches.
    """
    check_norms(merged, which)
    correct = Repair([model_a, model_b], batches, progress, seed, which)
    return correct(merged, [alpha, 1 - alpha], progress)


class Repair:
    """REPAIR of merges of the same parents, whose statistics are measured once.

    Layers are corrected in the order in which they run, each measured on all the data
    behind corrected layers: correcting one changes the statistics of those after it, so
    one pass for all would miss the goals. Here they are met but for rounding; it takes one
    run up to each layer, half a forward pass per layer on average. All inputs are kept in
    memory meanwhile: a few thousand examples are plenty.

    Convolutions and linear layers are corrected, except those that make the network's
    output (the classifier; the layer that runs last, where the output is computed from it), that
    run more than once, that share their weight or bias with another layer, that are given one
    vector or one image instead of a batch, or that compute with something other than their own
    `weight` and `bias` (parametrisations; weight standardisation but for timm's with a `gain`, by
    which they are scaled). A warning counts those of them that make hidden units.
    A layer without a bias gets one: a new parameter `bias`, which its state dict then holds
    and which a network into which it is to be loaded must have (`without_bias` names them
    beforehand). A channel that never varies in the merged network is only shifted.

    Args:
        parents: The K networks that were merged, as they were merged: *aligned* to the
            first. One at a time is looked at, so they may be made one by one.
        batches: What a data loader gives; read once, by `reset_batchnorm`'s rules: a
            `DataLoader` over an indexed data set in random order, a `Share` as this rank's, whose
            statistics are pooled over all ranks. Moved to the models' devices.
        progress: Whether to show progress bars.
        seed: Determines the order.
        which: `output` corrects what makes the output, and nothing else (all heads where they are
            averaged; the layer that runs last where the output is computed from it): logits then
            vary about the means that the parents' have, and as much. BatchNorm does not matter.
            Not in the paper.

    Attributes:
        layers: The names of the layers that are corrected, in the order in which they run.
        without_bias: Those of them that have no bias.
        parents: The statistics of each parent, by layer.

    Raises:
        ConfigError: A parent has BatchNorm, or there is no parent; no layer makes the output.
        ArchitectureMismatchError: The parents' layers differ.
        DataError: There are no batches.
    """

    layers: list[str]
    without_bias: list[str]
    parents: list[dict[str, Statistics]]

    def __init__(
        self,
        parents: Iterable[nn.Module],
        batches: Iterable[Any],
        progress: bool = False,
        seed: int = 0,
        which: Which = "hidden",
    ) -> None:
        self._which = which
        self._shared = isinstance(batches, Share) and ranks()[1] > 1
        self._inputs: list[Tensor] = []
        self._shapes: dict[str, tuple[int, ...] | None] = {}
        self.parents = []
        for number, parent in enumerate(parents, start=1):
            check_norms(parent, which)
            with gradient_free(parent):
                if number == 1:
                    self._inputs = kept_inputs(batches, seed, "REPAIR")
                    found = layers_to_repair(parent, self._inputs[0], which)
                    self.layers, self._added_up = found.names, found.added_up
                    if which == "hidden":
                        _warn_of(found.left, len(self.layers))
                    if which == "output" and not self.layers:
                        raise ConfigError(
                            f"REPAIR: the output of {type(parent).__name__} is not that of one "
                            "linear layer or convolution that runs once; choose which='hidden'"
                        )
                    self._shapes = {name: weight_shape(parent, name) for name in self.layers}
                    self.without_bias = [
                        name for name in self.layers if parent.get_submodule(name).bias is None
                    ]
                self._check(parent)
                inputs = tracked(self._inputs, f"REPAIR: parent {number}", progress)
                self.parents.append(
                    measure(parent, self.layers, inputs, self._shared, self._added_up)
                )
        if not self.parents:
            raise ConfigError("REPAIR needs the networks that were merged; give at least one")

    def __call__(
        self, merged: nn.Module, weights: Sequence[float] | None = None, progress: bool = False
    ) -> int:
        """Corrects a merge of the parents, in place; gives how many layers were corrected.

        Weights are each parent's share in it, divided by their sum; equal if not given.
        """
        check_norms(merged, self._which)
        shares = shares_of(weights, len(self.parents))
        with gradient_free(merged):
            self._check(merged)
            together = [self.layers] if self._added_up else [[name] for name in self.layers]
            for names in tracked(together, "REPAIR: layers", progress):
                now = measure(merged, names, self._inputs, self._shared, self._added_up)
                for name in names:
                    _correct(merged.get_submodule(name), now[name], self.goal(name, shares))
        return len(self.layers)

    def goal(self, layer: str, weights: Sequence[float] | None = None) -> Statistics:
        """What a layer's channels are to have: the parents' means and deviations, averaged.

        Args:
            layer: Its name.
            weights: Each parent's share, divided by their sum; equal if not given.
        """
        shares = shares_of(weights, len(self.parents))
        found = [statistics[layer] for statistics in self.parents]
        return Statistics(
            sum((w * one.mean for w, one in zip(shares, found, strict=True)), torch.zeros(())),
            sum((w * one.std for w, one in zip(shares, found, strict=True)), torch.zeros(())),
        )

    def _check(self, model: nn.Module) -> None:
        for name, shape in self._shapes.items():
            if weight_shape(model, name) != shape:
                raise ArchitectureMismatchError(
                    f"{name!r} is not the same layer in the merged network and in all parents"
                )


def check_norms(model: nn.Module, which: Which) -> None:
    """Checks that no BatchNorm would undo a correction of hidden units."""
    if which == "hidden" and any(isinstance(layer, _BatchNorm) for layer in model.modules()):
        raise ConfigError(
            "REPAIR is for networks without BatchNorm, this one has some: use reset_batchnorm"
        )


def _warn_of(left: Sequence[str], corrected: int) -> None:
    """Warns where hidden layers are not corrected."""
    if left:
        warnings.warn(
            f"REPAIR corrects {corrected} hidden layers and leaves {len(left)} as they are, "
            f"'{left[0]}' first: they compute with more than a weight of their own, run more than "
            "once, or see no batch",
            stacklevel=4,
        )


def kept_inputs(batches: Iterable[Any], seed: int, what: str) -> list[Tensor]:
    """The inputs of batches in an order that the seed draws; a `DataError` if there are none."""
    with isolated_randomness():
        inputs = list(inputs_in(in_random_order(batches, seed)))
    if not inputs:
        raise DataError(f"{what} needs at least one batch, there was none")
    return inputs


def weight_shape(network: nn.Module, name: str) -> tuple[int, ...] | None:
    """The shape of a layer's weight; None where there is no such layer."""
    try:
        weight = network.get_submodule(name).weight
    except AttributeError:
        return None
    return tuple(weight.shape) if isinstance(weight, Tensor) else None


def shares_of(weights: Sequence[float] | None, count: int) -> list[float]:
    """Each parent's share in a mean; equal ones if no weights are given."""
    weights = [1.0] * count if weights is None else list(weights)
    total = sum(weights)
    if len(weights) != count or not 0 < total < float("inf") or min(weights) < 0:
        raise ConfigError(
            f"the weights {weights} of {count} merged networks have no mean to aim at; give "
            "one for each, none negative, not all 0"
        )
    return [weight / total for weight in weights]


def _correct(layer: nn.Module, now: Statistics, goal: Statistics) -> None:
    """Multiplies the change from one set of statistics to another into a layer."""
    weight, bias = layer.get_parameter(scale_of(layer) or "weight"), layer.bias
    scale = torch.where(now.std > 0, goal.std / now.std.clamp_min(1e-300), 1.0)
    old = bias.double().cpu() if isinstance(bias, Tensor) else torch.zeros_like(scale)
    shift = (old - now.mean) * scale + goal.mean
    with torch.no_grad():
        shaped = scale.reshape(-1, *[1] * (weight.ndim - 1))
        weight.copy_(weight.double() * shaped.to(weight.device))
        if isinstance(bias, Tensor):
            bias.copy_(shift)
        else:
            layer.bias = nn.Parameter(shift.to(weight), requires_grad=weight.requires_grad)
