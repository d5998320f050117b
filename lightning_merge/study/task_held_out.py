"""The held-out examples of a pool, be it of one task or of several."""

import copy
import statistics

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from lightning_merge.checkpoint import StateDict
from lightning_merge.study.held_out import HeldOut
from lightning_merge.study.pool import Pool
from lightning_merge.study.task_pool import TaskData, TaskPool


def held_out_of(pool: Pool) -> HeldOut:
    """The validation data of a pool.

    Raises:
        ConfigError: If there are none.
    """
    return TaskHeldOut(pool) if isinstance(pool, TaskPool) else HeldOut(pool)


class TaskHeldOut(HeldOut):
    """The validation data of all seen tasks; a score is the mean of the tasks' scores.

    Args:
        pool: The pool. Its unseen tasks are not looked at.

    Raises:
        ConfigError: If a task has no validation data.
    """

    def __init__(self, pool: TaskPool) -> None:
        self.pool: TaskPool = pool
        self.parts = {task.name: HeldOut(_alone(pool, task)) for task in pool.seen}

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
            part.score(self.pool.build_for(self.pool.task(task), body), name)
            for task, part in self.parts.items()
        )

    def own_score(self, state: StateDict, ingredient: str, metric: str | None = None) -> float:
        """How good a body is at the task that an ingredient was fine-tuned on."""
        task = self.pool.task(ingredient)
        return self.parts[ingredient].score(self.pool.build_for(task, state), metric)

    def features(self, module: LightningModule) -> Tensor:
        """What the module's body makes of every task's examples: `(N, d)`."""
        body = module.state_dict()
        asked = (self.pool.build_for(self.pool.task(task), body) for task in self.parts)
        parts = zip(asked, self.parts.values(), strict=True)
        return torch.cat([part.features(one) for one, part in parts])


def _alone(pool: TaskPool, task: TaskData) -> Pool:
    alone = copy.copy(pool)
    alone.data, alone.module = task.data, task.module
    return alone
