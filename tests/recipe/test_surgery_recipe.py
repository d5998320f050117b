"""Representation surgery in recipes: shifts of features put right, and what a study keeps of it."""

import pytest
import torch
from strangers import quiet_trainer
from tiny_contexts import made_context as context_of_one_task
from tiny_tasks import Classifier, Points
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_merge import (
    Aggregate,
    Average,
    Merged,
    Recipe,
    RepresentationSurgery,
    TaskStudy,
    run_tasks,
)
from lightning_merge.checkpoint import read_checkpoint
from lightning_merge.errors import ConfigError
from lightning_merge.recipe.task_context import TaskContext, TaskData

SIZES = {"a": 3, "b": 5, "d": 2}
LAST = "net.3"


class Linear(Classifier):
    """Features that are a linear map of a hidden layer: a map of them is one of its weights."""

    def __init__(self, num_classes=3):
        super().__init__(num_classes)
        hidden = nn.Sequential(nn.Linear(6, 12), nn.ReLU())
        self.net = nn.Sequential(*hidden, nn.Linear(12, 8), nn.Linear(8, num_classes))


class Planted(Aggregate):
    """The body of which each ingredient's features are a low-rank change."""

    def __init__(self, body):
        self.body = body

    def __call__(self, states, context):
        return Merged(context.build({**states[0], **self.body}), labelled_examples=7)


class Mislabelled(Points):
    """The same points, with labels that belong to others."""

    def train_dataloader(self):
        x, y = super().train_dataloader().dataset.tensors
        return DataLoader(TensorDataset(x, y.flip(0)), batch_size=40)


def planted(points=Points):
    """A body, and a context whose networks have its features h as h + u (v h), u and v of each."""
    torch.manual_seed(3)
    modules = {name: Linear(size) for name, size in SIZES.items()}
    body = {k: v for k, v in modules["a"].state_dict().items() if not k.startswith(LAST)}
    tasks, own = [], {}
    for name, module in modules.items():
        module.load_state_dict({**module.state_dict(), **body})
        head = {k: v for k, v in module.state_dict().items() if k.startswith(LAST)}
        tasks.append(TaskData(name, module, head, points(name), name != "d"))
        change = torch.eye(8) + torch.outer(torch.randn(8), torch.randn(8)) / 2
        last = {f"net.2.{k}": change @ body[f"net.2.{k}"] for k in ("weight", "bias")}
        own[name] = {**body, **last}
    seen = [own["a"], own["b"]]
    further = {"a 2": ("a", body)}
    context = TaskContext.of_tasks(tasks, seen, body, quiet_trainer, further, progress=False)
    return body, own, context


def surgery(body, **changes):
    def adam(parameters):
        return torch.optim.Adam(parameters, lr=0.02)

    return RepresentationSurgery(Planted(body), **{"rank": 8, "optimizer": adam, **changes})


def test_low_rank_shifts_of_features_are_put_right_for_each_task():
    body, own, context = planted()
    made = Recipe("surgery", surgery(body, max_steps=300))(context)
    assert set(made.for_tasks) == {"a", "b"}
    assert made.labelled_examples == 7
    for name, network in made.for_tasks.items():
        task = context.task(name)
        merged, individual = (task.build(state) for state in (body, own[name]))
        x = Points(name).val_dataloader().dataset.tensors[0]
        with torch.no_grad():
            h, wanted = (one.net[:3](x) for one in (merged, individual))
            layer = network.net[3]
            corrected = h - torch.relu(h @ layer.down.weight.T) @ layer.up.weight.T
            torch.testing.assert_close(network(x), merged.net[3](corrected))
            assert (corrected - wanted).abs().mean() < 0.1 * (h - wanted).abs().mean()
            same = network(x).argmax(1) == individual(x).argmax(1)
        assert same.float().mean() > 0.93
        for key, value in body.items():
            assert torch.equal(network.state_dict()[key], value)
            assert torch.equal(made.module.state_dict()[key], value)


def test_labels_are_never_read():
    corrections = []
    for points in (Points, Mislabelled):
        body, _, context = planted(points)
        made = Recipe("surgery", surgery(body, max_steps=4))(context)
        corrections.append(made.for_tasks["a"].state_dict())
    first, second = corrections
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert first[f"{LAST}.up.weight"].abs().sum() > 0


def test_a_study_measures_the_corrected_networks_and_keeps_the_corrections(tmp_path):
    def of_class(class_path, /, **arguments):
        return {"class_path": class_path, "init_args": arguments}

    def data(name):
        return of_class("tiny_tasks.Points", name=name, testable=True)

    surgery_of_average = of_class(
        "RepresentationSurgery", aggregate=of_class("Average"), rank=2, max_steps=30
    )
    study = TaskStudy(
        tasks=[{"name": name, "data": data(name), "unseen": name == "d"} for name in "abd"],
        model=of_class("tiny_tasks.Classifier"),
        pretraining={"data": data("a"), "trainer": {"max_epochs": 1}},
        training={"max_epochs": 3},
        trainer={"accelerator": "cpu", "enable_progress_bar": False},
        recipes=[
            {"name": "Mean", "aggregate": "Average"},
            {"name": "Mean + surgery", "aggregate": surgery_of_average},
        ],
    )
    results = run_tasks(study, tmp_path, progress=False)
    plain, corrected = (one for one in results.methods if one["kind"] == "merge")
    # Two tasks with features (B, 12).
    assert corrected["parameters"] - plain["parameters"] == 2 * (2 * 12 * 2)
    merged = read_checkpoint(tmp_path / "merges/seed0/mean-surgery.ckpt")
    kept = merged.content["lightning_merge"]["for_tasks"]
    assert set(kept) == {"a", "b"}
    accuracy = {(row.method, row.task): row.metrics["accuracy"] for row in results.rows}
    for name in "ab":
        own = {key.removeprefix("net.6."): value for key, value in kept[name].items()}
        network = Classifier(SIZES[name])
        head = {"net.6.weight": own["head.weight"], "net.6.bias": own["head.bias"]}
        network.load_state_dict({**merged.state_dict, **head})
        x, y = Points(name, testable=True).test_dataloader().dataset.tensors
        with torch.no_grad():
            h = network.eval().net[:6](x)
            h = h - torch.relu(h @ own["down.weight"].T) @ own["up.weight"].T
            right = (network.net[6](h).argmax(1) == y).float().mean()
        assert accuracy["Mean + surgery", name] == pytest.approx(float(right))
        assert own["up.weight"].abs().sum() > 0
    assert accuracy["Mean + surgery", "d"] == accuracy["Mean", "d"]


def test_what_it_cannot_do_is_refused():
    with pytest.raises(ConfigError, match="use it in `tasks`"):
        Recipe("one", RepresentationSurgery(Average())).check_context(context_of_one_task())
    for wrong, said in (({"rank": 0}, "rank is 0"), ({"max_steps": 0}, "max_steps is 0")):
        with pytest.raises(ConfigError, match=said):
            RepresentationSurgery(Average(), **wrong)
    with pytest.raises(ConfigError, match="RepresentationSurgery makes no one body"):
        RepresentationSurgery(RepresentationSurgery(Average()))
