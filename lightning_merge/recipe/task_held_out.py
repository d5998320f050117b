"""Scoring candidates on the validation data of several tasks."""

import statistics
from typing import TYPE_CHECKING

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from lightning_merge.checkpoint import StateDict
from lightning_merge.recipe.held_out import HeldOut

if TYPE_CHECKING:
    from lightning_merge.recipe.task_context import TaskContext


class TaskHeldOut(HeldOut):
    """The validation data of all seen tasks; a score is the mean of the tasks' scores."""

    def __init__(self, context: "TaskContext") -> None:
        self.context: TaskContext = context
        self.parts = {task.name: HeldOut(context.alone(task)) for task in context.seen}

    @property
    def size(self) -> int:
        """How many examples there are, of all tasks together."""
        return sum(part.size for part in self.parts.values())

    @property
    def has_classes(self) -> bool:
        """False: a mean over tasks of different sizes is no count of examples."""
        return False

    def metric(self, module: LightningModule, name: str | None) -> float:
        """The mean over tasks of a metric, each with the module's body under its own head."""
        body = module.state_dict()
        return statistics.fmean(
            part.score(self.context.build_for(self.context.task(task), body), name)
            for task, part in self.parts.items()
        )

    def own_score(self, state: StateDict, ingredient: str, metric: str | None = None) -> float:
        """How good a body is at the task that an ingredient was fine-tuned on."""
        task = self.context.task(ingredient)
        return self.parts[task.name].score(self.context.build_for(task, state), metric)

    def features(self, module: LightningModule) -> Tensor:
        """The inputs of the last layer for every task's examples: `(N, d)`."""
        body = module.state_dict()
        networks = (self.context.build_for(self.context.task(name), body) for name in self.parts)
        parts = zip(networks, self.parts.values(), strict=True)
        return torch.cat([part.features(network) for network, part in parts])
