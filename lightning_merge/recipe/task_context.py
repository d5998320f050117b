"""Ingredients of different tasks: one body is merged, and each task keeps a head of its own."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from torch import Tensor

from lightning_merge.align import Matching
from lightning_merge.batches import inputs_of
from lightning_merge.checkpoint import StateDict
from lightning_merge.errors import ConfigError
from lightning_merge.loaders import Transferred, example_inputs, statistics_batches_of
from lightning_merge.modules.last_layer import last_layer
from lightning_merge.modules.module_state import build, fit_module, load
from lightning_merge.recalibrate.training_data import reset_on_training_data
from lightning_merge.recipe.context import Context
from lightning_merge.recipe.held_out import HeldOut
from lightning_merge.recipe.task_held_out import TaskHeldOut


@dataclass(frozen=True)
class TaskData:
    """One task: its data, and the head under which every body is evaluated on it.

    Attributes:
        name: What to call it.
        module: A LightningModule with the task's number of classes; its weights do not matter.
        head: The weights of its last layer, by their names in the module.
        data: Its data module.
        seen: Whether the body of this task is among the ingredients.
    """

    name: str
    module: LightningModule
    head: StateDict
    data: LightningDataModule
    seen: bool = True

    def build(self, body: Mapping[str, Tensor]) -> LightningModule:
        """A new module with a state dict's body and this task's head."""
        module = copy.deepcopy(self.module)
        return loaded(module, {**body, **self.head}, f"task '{self.name}'")


def loaded(module: LightningModule, state: Mapping[str, Tensor], what: str) -> LightningModule:
    """A module with a state dict's weights; an error names `what` they are if they do not fit."""
    build(module, state)
    load(module, fit_module(state, module, what))
    return module


def head_of(module: LightningModule, data: LightningDataModule, state: StateDict) -> StateDict:
    """The part of a module's state dict that is its last layer."""
    data.prepare_data()
    data.setup("fit")
    batches = statistics_batches_of(data, module, torch.device("cpu"))
    layer = last_layer(module, example_inputs(batches, "cpu"))
    return {name: value for name, value in state.items() if name.startswith(f"{layer}.")}


@dataclass(frozen=True)
class TaskContext(Context):
    """A context whose ingredients were fine-tuned on a task each, from one pre-trained body.

    The ingredients have the first task's head, so that recipes see one architecture, and what
    they merge is the body: `build` gives it under the first head, `TaskData.build` under any.
    What recipes read of data is that of all seen tasks together.

    Attributes:
        tasks: The seen tasks in the order of the ingredients, then the unseen ones.
        pretrained: The pre-trained body, under the first task's head.
        task_statistics: Whether a body is evaluated on a task with BatchNorm statistics of that
            task's training images.
        further: For each further network of a task, by its name, the task. Ingredients are the
            tasks' own networks, which have the tasks' names, and then these.
    """

    tasks: Sequence[TaskData] = ()
    pretrained: StateDict = field(default_factory=dict)
    task_statistics: bool = False
    further: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of_tasks(
        cls,
        tasks: Sequence[TaskData],
        bodies: Sequence[StateDict],
        pretrained: StateDict,
        trainer: Callable[..., Trainer],
        further: Mapping[str, tuple[str, StateDict]] | None = None,
        **settings: Any,
    ) -> "TaskContext":
        """The context of some tasks.

        Args:
            tasks: The tasks, of which two or more are seen; their names differ.
            bodies: A state dict for each seen task, in their order, under whatever head.
            pretrained: The state dict that they were fine-tuned from, under whatever head.
            trainer: As for `Context`.
            further: By name further networks of seen tasks: the task, and a state dict.
            **settings: Other attributes: `task_statistics`, `seed`, `progress`, `cache`, ...
        """
        ordered = sorted(tasks, key=lambda task: not task.seen)
        first = ordered[0]
        more = further or {}
        return cls(
            first.module,
            [{**body, **first.head} for body in (*bodies, *(state for _, state in more.values()))],
            [*(task.name for task in tasks if task.seen), *more],
            first.data,
            trainer,
            heads=list(first.head),
            tasks=ordered,
            pretrained={**pretrained, **first.head},
            further={name: task for name, (task, _) in more.items()},
            **settings,
        )

    @property
    def several_tasks(self) -> bool:
        """True."""
        return True

    @property
    def seen(self) -> list[TaskData]:
        """The tasks whose bodies may be merged."""
        return [task for task in self.tasks if task.seen]

    def __post_init__(self) -> None:
        super().__post_init__()
        for task in self.tasks:
            task.data.prepare_data()
            task.data.setup("fit")
            task.data.setup("test")
            task.build(self.pretrained)

    def task(self, name: str) -> TaskData:
        """The task that an ingredient was fine-tuned on."""
        name = self.further.get(name, name)
        return next(task for task in self.tasks if task.name == name)

    def alone(self, task: TaskData) -> "TaskContext":
        """The context as one task sees it: its module, its data."""
        return self._changed(data=task.data, module=task.module)

    def held_out(self) -> HeldOut:
        """The validation data of all seen tasks."""
        return TaskHeldOut(self)

    def own(self, name: str, state: StateDict) -> tuple[LightningModule, Transferred]:
        """An ingredient under the head of its own task, with that task's training batches."""
        task = self.task(name)
        return self.build_for(task, state), self.statistics_of(task)

    def build_for(self, task: TaskData, body: Mapping[str, Tensor]) -> LightningModule:
        """A new module for a task: a body, the task's head, and its statistics."""
        module = task.build(body)
        if self.task_statistics:
            examples = self.statistics_examples
            reset_on_training_data(module, task.data, self.device, examples, self.seed)
        return module

    def statistics_of(self, task: TaskData, *, augmented: bool = False) -> Transferred:
        """One task's training batches; `statistics_examples` of them, if that is given."""
        return statistics_batches_of(
            task.data,
            task.module,
            self.device,
            self.statistics_examples,
            self.seed,
            augmented=augmented,
        )

    def statistics(self, *, augmented: bool = False) -> Transferred:
        """The training batches of all seen tasks, of each task as many examples as it has."""
        parts = [self.statistics_of(task, augmented=augmented) for task in self.seen]
        mixed = _Mixed(parts, self.seed)
        # Each task's own hooks have been applied by then.
        return Transferred(mixed, LightningModule(), None, self.device)

    def check_matching(self, matching: Matching | None) -> None:
        """Checks that nothing is aligned: the heads would read the units in their old order."""
        if matching is not None:
            raise ConfigError(
                f"{type(matching).__name__}: bodies of several tasks come from one pre-trained "
                "network, whose order their heads read: leave `align` out"
            )


class _Mixed:
    """The inputs of several tasks' batches, in batches in which the tasks are mixed.

    BatchNorm would normalise away, batch by batch, what distinguishes one task from the others.
    """

    def __init__(self, parts: Sequence[Transferred], seed: int) -> None:
        self.parts = parts
        self.seed = seed

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    def in_random_order(self, seed: int) -> "_Mixed":
        """As it is: drawn already, by the context's seed."""
        del seed
        return self

    def __iter__(self) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(self.seed)
        for step in zip_longest(*self.parts):
            # The inputs alone: labels of different tasks do not go together.
            inputs = [inputs_of(batch) for batch in step if batch is not None]
            order = torch.randperm(sum(map(len, inputs)), generator=generator)
            yield from torch.cat(inputs)[order.to(inputs[0].device)].chunk(len(inputs))
