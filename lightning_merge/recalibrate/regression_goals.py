"""What the layers of several networks give on average, at the rows that a regression reads."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_merge.batches import to_device_of
from lightning_merge.progress import tracked
from lightning_merge.recalibrate.channels import channel_axis
from lightning_merge.recalibrate.looking import Place, looking
from lightning_merge.recalibrate.regressed_steps import Step, affine

MEMORY = 1 << 30
"""Bytes of goals that are held at a time."""
_ROWS_OF_AN_INPUT = 400
"""Rows for each input of a layer: more would change its fit by less than a per cent."""


class Goals:
    """The mean outputs of parents' layers, made for as many layers at a time as fit into memory.

    The parents are in eval mode and count by their shares; the steps are in the order in which they
    run; the seed determines which rows are looked at.
    """

    def __init__(
        self,
        parents: Sequence[nn.Module],
        steps: Sequence[Step],
        inputs: Sequence[Tensor],
        shares: Sequence[float],
        seed: int,
        progress: bool,
    ) -> None:
        self._parents, self._steps, self._inputs = parents, steps, inputs
        self._shares, self._seed, self._progress = shares, seed, progress
        self._examples = sum(map(len, inputs))
        self._found: dict[str, list[Tensor]] = {}

    def take(self, step: Step) -> list[Tensor]:
        """A layer's goals, `(R, C)` for each batch; each layer's once, in their order."""
        if step.name not in self._found:
            self._found = self._made(self._that_fit(self._steps.index(step)))
        return self._found.pop(step.name)

    def rows(self, step: Step, batch: int, count: int) -> Tensor:
        """Which of the `count` rows that a layer gives in a batch are looked at, in their order."""
        most = self._most(step) * len(self._inputs[batch]) // self._examples + 1
        if most >= count:
            return torch.arange(count)
        number = self._steps.index(step)
        generator = torch.Generator().manual_seed(self._seed + 7919 * number + 104729 * batch)
        return torch.randperm(count, generator=generator)[:most].sort().values

    def looked_at(self, step: Step, batch: int, network: nn.Module, value: Tensor) -> Tensor:
        """The rows, `(R, C)`, of what is like a layer's output in shape."""
        axis = channel_axis(network.get_submodule(step.name))
        rows = value.movedim(axis, -1).flatten(0, -2)
        rows = rows[self.rows(step, batch, len(rows)).to(rows.device)]
        return rows.to(torch.promote_types(rows.dtype, torch.float32))

    def _most(self, step: Step) -> int:
        return _ROWS_OF_AN_INPUT * self._weight(step)[0].numel()

    def _weight(self, step: Step) -> Tensor:
        return self._parents[0].get_parameter(f"{step.name}.weight")

    def _that_fit(self, first: int) -> list[Step]:
        chosen: list[Step] = []
        size = 0
        for step in self._steps[first:]:
            size += 4 * len(self._weight(step)) * min(self._most(step), step.rows * self._examples)
            if chosen and size > MEMORY:
                break
            chosen.append(step)
        return chosen

    def _made(self, steps: Sequence[Step]) -> dict[str, list[Tensor]]:
        at: dict[Place, list[Step]] = {}
        for step in steps:
            at.setdefault(step.after or (step.name, "out"), []).append(step)
        goals: dict[str, list[Tensor]] = {step.name: [] for step in steps}
        batches = tracked(range(len(self._inputs)), "Least squares: goals", self._progress)
        for batch in batches:
            for parent, share in zip(self._parents, self._shares, strict=True):
                for name, goal in self._seen(parent, at, batch).items():
                    if len(goals[name]) == batch:
                        goals[name].append(share * goal)
                    else:
                        goals[name][batch] += share * goal.to(goals[name][batch])
        return goals

    def _seen(
        self, parent: nn.Module, at: Mapping[Place, Sequence[Step]], batch: int
    ) -> dict[str, Tensor]:
        """What each layer, or the sum behind it, is in a parent."""
        found = {}

        def look(place: Place, value: Tensor) -> None:
            for step in at[place]:
                found[step.name] = self._goal(step, batch, parent, value)

        with looking(parent, at, look):
            parent(to_device_of(parent, self._inputs[batch]))
        return found

    def _goal(self, step: Step, batch: int, parent: nn.Module, value: Tensor) -> Tensor:
        if step.norm and step.after is None:
            norm = parent.get_submodule(step.norm)
            assert isinstance(norm, _BatchNorm)
            value = affine(norm, value)
        return self.looked_at(step, batch, parent, value)
