"""Least squares: a merge whose layers give what those of the networks give on average.

Sources: Nasery et al. 2025, "PLeaS: Merging Models with Permutations and Least Squares", for the
goals; Nguyen et al. 2025, "RegMean++", for fitting each layer on the merged network's own inputs.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_merge.batches import to_device_of
from lightning_merge.errors import ArchitectureMismatchError, ConfigError, NonFiniteError
from lightning_merge.linear_layers import Linear, exactly, input_rows, output_rows
from lightning_merge.modes import gradient_free
from lightning_merge.progress import tracked
from lightning_merge.recalibrate.looking import Place, looking
from lightning_merge.recalibrate.observed import Observed
from lightning_merge.recalibrate.pooled import channel_moments
from lightning_merge.recalibrate.regressed_steps import Step, shares_of_sums, steps_of
from lightning_merge.recalibrate.regression_goals import MEMORY, Goals
from lightning_merge.recalibrate.repair import kept_inputs, shares_of, weight_shape
from lightning_merge.recalibrate.ridge import Sums, regressed

_CHUNK = 1 << 27
"""Bytes of rows that are multiplied at a time."""
_CHECKED = 5
"""Every fifth example is not fitted, but tells how far weights may move."""


class LeastSquares:
    """Least squares of merges of the same parents.

    Layers are fitted in the order in which they run, on the inputs that they have behind the
    fitted ones: by ridge regression from the present weights, to the mean of what the parents'
    layers give for the same images. Where a layer's output is added to a residual stream, the sum
    is the goal, which makes up for what earlier layers missed. A BatchNorm that follows a
    layer is fitted with it, and its statistics are then the merge's own; other BatchNorms are
    reset. How far weights may move is chosen for each layer by every fifth example, which is not
    fitted. No labels are read.

    Linear layers and 2-d convolutions are fitted, the classifier too, except those that run
    more than once, that share their weight or bias with another layer, or that compute with
    something other than their own `weight` and `bias`. Names and shapes stay as they are: a layer
    without bias gets none.

    It takes a run of the merge up to each layer, and a few of each parent. All inputs are kept in
    memory meanwhile: a few thousand examples are plenty.

    Args:
        parents: The K networks that were merged, as they were merged: *aligned* to the first.
        batches: What a data loader gives; read once, a `DataLoader` over an indexed data set in
            random order. Moved to the models' devices.
        progress: Whether to show progress bars.
        seed: Determines the order, and at which positions layers are looked at.

    Attributes:
        steps: What is fitted, in the order in which it runs.

    Raises:
        ConfigError: There is no parent, or no layer that can be fitted.
        DataError: There are no batches.
    """

    steps: list[Step]

    def __init__(
        self,
        parents: Iterable[nn.Module],
        batches: Iterable[Any],
        progress: bool = False,
        seed: int = 0,
    ) -> None:
        self._parents = list(parents)
        if not self._parents:
            raise ConfigError("least squares needs the networks that were merged; give them")
        self._inputs = kept_inputs(batches, seed, "least squares")
        # Batches may be of one example, whose tensors have a value or two where others have many.
        shape = self._inputs[0].shape[1:]
        few = [inputs[:4] for inputs in self._inputs if inputs.shape[1:] == shape]
        self._few = torch.cat(few[:4])[:4]
        self._seed, self._progress = seed, progress
        first = self._parents[0]
        with gradient_free(first):
            self.steps = steps_of(first, to_device_of(first, self._few))
        if not any(isinstance(_of(first, step), nn.Linear | nn.Conv2d) for step in self.steps):
            raise ConfigError(
                f"least squares: {type(first).__name__} has no linear layer or 2-d convolution "
                "that runs once; leave it out"
            )

    def __call__(
        self, merged: nn.Module, weights: Sequence[float] | None = None, progress: bool = False
    ) -> int:
        """Fits a merge of the parents, in place.

        Args:
            merged: The merged network.
            weights: Each parent's share in it, divided by their sum; equal if not given.
            progress: Whether to show progress bars.

        Returns:
            How many layers were fitted.

        Raises:
            ConfigError: The weights are not one non-negative number for each parent.
            ArchitectureMismatchError: Its layers are not those of the parents.
            NonFiniteError: A layer is given NaN or infinity, or should give it.
        """
        shares = shares_of(weights, len(self._parents))
        self._check(merged)
        self._inside: tuple[str, list[Tensor]] = "", []
        with gradient_free(merged, *self._parents):
            factors = shares_of_sums(merged, to_device_of(merged, self._few), self.steps)
            steps = [
                step if step.name in factors else replace(step, before=None, after=None)
                for step in self.steps
            ]
            layers = [s for s in steps if not isinstance(_of(merged, s), _BatchNorm)]
            goals = Goals(self._parents, layers, self._inputs, shares, self._seed, progress)
            for step in tracked(steps, "Least squares: layers", progress):
                if step in layers:
                    self._fit(merged, step, goals, factors.get(step.name))
                else:
                    self._reset(merged, step)
        self._inside = "", []
        return len(layers)

    def _check(self, merged: nn.Module) -> None:
        for step in self.steps:
            for name in (step.name, *([step.norm] if step.norm else [])):
                if len({weight_shape(network, name) for network in (merged, *self._parents)}) > 1:
                    raise ArchitectureMismatchError(
                        f"{name!r} is not the same layer in the merged network and in all parents"
                    )

    def _reset(self, merged: nn.Module, step: Step) -> None:
        norm = _of(merged, step)
        assert isinstance(norm, _BatchNorm)
        observed = Observed(norm)
        for _, found in self._runs(merged, step):
            observed.add(*channel_moments(found[step.name, "in"], 1))
        observed.write(*observed.statistics())

    def _fit(self, merged: nn.Module, step: Step, goals: Goals, factors: Tensor | None) -> None:
        layer = merged.get_submodule(step.name)
        assert isinstance(layer, nn.Linear | nn.Conv2d)
        norm = merged.get_submodule(step.norm) if step.norm else None
        constant = norm is not None or layer.bias is not None
        wanted = goals.take(step)
        sums: list[Sums] = []
        for batch, found in self._runs(merged, step):
            goal = wanted[batch].to(layer.weight.device)
            if step.before is not None and factors is not None:
                goal = goal - goals.looked_at(step, batch, merged, found[step.before])
                goal = goal / factors.to(goal)
            here = found[step.name, "in"]
            count = output_rows(layer, here)
            rows = goals.rows(step, batch, count)
            example = rows * len(self._inputs[batch]) // count
            # Counted over all batches, which may be of one example each.
            checked = (example + sum(map(len, self._inputs[:batch]))) % _CHECKED == 0
            fit, check = _sums(layer, here, rows, checked, goal, constant)
            sums = [fit, check] if not sums else [sums[0] + fit, sums[1] + check]
        if not all(bool(one.inputs.isfinite().all() & one.goals.isfinite().all()) for one in sums):
            raise NonFiniteError(
                f"least squares: layer '{step.name}' has an input or an output of NaN or infinity; "
                "look for it in the images and in the networks' weights"
            )
        weights = regressed(sums[0], sums[1], _matrix(layer, constant), constant)
        _write(layer, norm, weights, sums[0] + sums[1])

    def _runs(self, merged: nn.Module, step: Step) -> Iterator[tuple[int, dict[Place, Tensor]]]:
        """Runs the merge up to a step on every batch: its number, and the tensors at places."""
        network, inputs = merged, self._inputs
        if step.block:
            if self._inside[0] != step.block:
                self._inside = step.block, self._inputs_of(merged, step.block)
            if self._inside[1]:
                network, inputs = merged.get_submodule(step.block), self._inside[1]
        for batch, given in enumerate(inputs):
            found: dict[Place, Tensor] = {}

            def keep(place: Place, value: Tensor, found: dict[Place, Tensor] = found) -> None:
                # What is looked at first may be changed in place before the last.
                found[place] = value.clone()

            with looking(merged, step.places(), keep):
                # Blocks may change what they are given in place.
                network(to_device_of(merged, given).clone())
            yield batch, found

    def _inputs_of(self, merged: nn.Module, block: str) -> list[Tensor]:
        """What a block is given, the same whatever is fitted in it; nothing if it is too much."""
        kept: list[Tensor] = []
        for inputs in self._inputs:
            found: dict[Place, Tensor] = {}
            with looking(merged, {(block, "in")}, found.__setitem__):
                merged(to_device_of(merged, inputs))
            kept.append(found[block, "in"])
            if kept[0].nbytes * len(self._inputs) > MEMORY:
                return []
        return kept


def _of(network: nn.Module, step: Step) -> nn.Module:
    return network.get_submodule(step.name)


def _sums(
    layer: Linear, x: Tensor, rows: Tensor, checked: Tensor, goal: Tensor, constant: bool
) -> tuple[Sums, Sums]:
    """The sums of a batch's rows: of those that are fitted, and of those that are not."""
    groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
    found = []
    for part in (~checked, checked):
        some, wanted = rows[part], goal[part.to(goal.device)]
        size = max(1, _CHUNK // (8 * layer.weight[0].numel() * groups))
        parts = []
        # No rows at all are a part too.
        for chunk, t in zip(some.split(size), wanted.split(size), strict=True):
            given = input_rows(layer, x, chunk.to(x.device))
            if constant:
                given = torch.cat([given, torch.ones_like(given[..., :1])], dim=-1)
            t = t.to(given).unflatten(1, (groups, -1)).transpose(0, 1)
            parts.append(Sums.of(given, t))
        found.append(sum(parts[1:], parts[0]))
    return found[0], found[1]


def _matrix(layer: Linear, constant: bool) -> Tensor:
    """A layer's weight as `(groups, d, outputs per group)`, its bias as the last input's."""
    groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
    matrix = exactly(layer.weight).flatten(1).unflatten(0, (groups, -1)).mT
    if not constant:
        return matrix
    bias = layer.weight.new_zeros(len(layer.weight)) if layer.bias is None else layer.bias
    return torch.cat([matrix, exactly(bias).reshape(groups, 1, -1)], dim=1)


def _write(layer: Linear, norm: nn.Module | None, found: Tensor, sums: Sums) -> None:
    """Puts weights into a layer, and into the norm behind it what keeps them as they are."""
    constant = norm is not None or layer.bias is not None
    matrix, offset = (found[:, :-1], found[:, -1].flatten()) if constant else (found, None)
    layer.weight.copy_(matrix.mT.reshape(layer.weight.shape))
    if layer.bias is not None and offset is not None:
        layer.bias.copy_(offset)
    if not isinstance(norm, _BatchNorm):
        return
    assert offset is not None
    second = sums.inputs / sums.rows
    mean = (second[:, -1:] @ found).flatten()
    variance = (found * (second @ found)).sum(dim=1).flatten() - mean**2
    variance = variance.clamp_min(0)
    # Without a bias of its own the layer gives as much less as the norm then adds.
    own = mean if layer.bias is not None else mean - offset
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.copy_(own)
    norm.running_var.copy_(variance)
    norm.weight.copy_((variance + norm.eps).sqrt())
    norm.bias.copy_(mean)
