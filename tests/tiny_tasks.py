"""Bodies of tiny tasks: points in one space, each task with directions and classes of its own."""

import copy

import torch
from lightning.pytorch import LightningDataModule
from strangers import quiet_trainer
from tiny_contexts import Learner
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_merge.recipe.task_context import TaskContext, TaskData

SIZES = {"a": 3, "b": 5, "c": 3, "d": 2}


class Points(LightningDataModule):
    """Points of a task: its own directions tell its classes."""

    def __init__(self, name: str, testable: bool = False):
        super().__init__()
        self.name, self.testable = name, testable
        self.num_classes = SIZES[name]

    def loader(self, part, count):
        own = torch.Generator().manual_seed(ord(self.name))
        directions = torch.randn(6, self.num_classes, generator=own)
        drawn = torch.Generator().manual_seed(100 * ord(self.name) + part)
        x = torch.randn(count, 6, generator=drawn)
        return DataLoader(TensorDataset(x, (x @ directions).argmax(1)), batch_size=40)

    def train_dataloader(self):
        return self.loader(1, 80 + 10 * self.num_classes)

    def val_dataloader(self):
        return self.loader(2, 40 + self.num_classes)

    def test_dataloader(self):
        assert self.testable, "the test set was looked at"
        return self.loader(3, 60)


class Classifier(Learner):
    """A network for as many classes as a task has, which a study can train."""

    def __init__(self, num_classes: int = 3) -> None:
        super().__init__(norm=True)
        self.save_hyperparameters()
        self.net[-1] = nn.Linear(12, num_classes)


def network(name):
    return Classifier(SIZES[name])


def tune(module, name, steps, seed):
    torch.manual_seed(seed)
    module = copy.deepcopy(module).train()
    optimizer = torch.optim.Adam(module.parameters(), lr=0.02)
    x, y = Points(name).train_dataloader().dataset.tensors
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(x), y).backward()
        optimizer.step()
    return module.eval()


def made_bodies():
    """A start, and for each task a network that went on from it."""
    torch.manual_seed(5)
    start = tune(network("a"), "a", 5, 0)
    made = {}
    for name in SIZES:
        module = network(name)
        body = {k: v for k, v in start.state_dict().items() if not k.startswith("net.6")}
        module.load_state_dict({**module.state_dict(), **body})
        made[name] = tune(module, name, 30, 1).state_dict()
    return start.state_dict(), made


def made_context(bodies, testable=False, **settings):
    start, states = bodies
    tasks = []
    for name, state in states.items():
        head = {key: value for key, value in state.items() if key.startswith("net.6")}
        tasks.append(TaskData(name, network(name), head, Points(name, testable), name != "d"))
    seen = [states[name] for name in "abc"]
    return TaskContext.of_tasks(tasks, seen, start, quiet_trainer, progress=False, **settings)


def right(body, name, states, loader):
    """The share of examples that a body gets right under the task's own head."""
    module = network(name)
    head = {k: v for k, v in states[name].items() if k.startswith("net.6")}
    module.load_state_dict({**body, **head})
    module.eval()
    x, y = loader.dataset.tensors
    with torch.no_grad():
        return float((module(x).argmax(1) == y).double().mean())


def without_head(state):
    return {name: value for name, value in state.items() if not name.startswith("net.6")}
