"""Recipes on modules whose files or state are not simply their parameters and buffers."""

import copy

import pytest
import torch
from foreign_modules import BuiltLate, Distilled, DistilledByHook, Lazy, Plain, Remembering, numbers
from lightning.pytorch import LightningDataModule
from strangers import quiet_trainer
from tiny_tasks import Classifier
from torch import nn

from lightning_merge import (
    Average,
    PermutationSpec,
    Recipe,
    WeightMatching,
    average,
    compare,
    merge,
    run_study,
    run_tasks,
    task_vector,
)
from lightning_merge.checkpoint import read_checkpoint
from lightning_merge.errors import CheckpointError, ConfigError
from lightning_merge.files import read_json

KINDS = [Distilled, DistilledByHook, BuiltLate, Remembering]
every_kind = pytest.mark.parametrize("kind", KINDS)
CPU = {"accelerator": "cpu"}


class Numbers(LightningDataModule):
    """The numbers, for training and for all else."""

    def train_dataloader(self):
        return numbers()

    val_dataloader = test_dataloader = train_dataloader


class AllAtOnce(BuiltLate):
    """Built late, with a teacher that its files leave out, and with extra state."""

    def __init__(self):
        super().__init__()
        self.teacher, self.strict_loading = nn.Linear(8, 3).requires_grad_(False), False
        self.temperature = 1.0

    on_save_checkpoint = DistilledByHook.on_save_checkpoint
    test_step = BuiltLate.validation_step

    def get_extra_state(self):
        return {"t": self.temperature}

    def set_extra_state(self, state):
        self.temperature = state["t"]


class Late(Lazy):
    """With a test."""

    test_step = Lazy.validation_step


def with_test(kind):
    return type(kind.__name__, (kind,), {"test_step": Plain.validation_step})


def trained(kind, folder):
    paths = []
    for seed in range(2):
        torch.manual_seed(seed)
        module, trainer = kind(), quiet_trainer(max_epochs=1)
        module.temperature = 1.5 + seed
        trainer.fit(module, numbers())
        paths.append(folder / f"{seed}.ckpt")
        trainer.save_checkpoint(paths[-1])
    return paths


@every_kind
@pytest.mark.parametrize("given", ["files", "networks"])
def test_the_mean_is_that_of_what_the_files_hold(kind, given, tmp_path):
    paths, own = trained(kind, tmp_path), with_test(kind)()
    networks = [kind.load_from_checkpoint(path) for path in paths]
    chosen = paths if given == "files" else networks
    merge(chosen, Recipe("Mean", Average()), Numbers(), model=own, trainer=CPU, output="out")
    loaded = kind.load_from_checkpoint("out/merged.ckpt")
    stored = [read_checkpoint(path).state_dict for path in paths]
    for name, value in stored[0].items():
        if value.is_floating_point():
            expected = torch.stack([state[name] for state in stored]).mean(0)
            assert torch.allclose(loaded.state_dict()[name], expected, atol=1e-7)
    if kind is Remembering:
        assert loaded.temperature == 1.5
    if kind is DistilledByHook and given == "files":
        assert torch.equal(loaded.teacher.bias, own.teacher.bias)


@every_kind
def test_what_is_aligned_computes_what_it_did(kind, tmp_path):
    first, second = (kind.load_from_checkpoint(path).eval() for path in trained(kind, tmp_path))
    (x, _), *_ = numbers()
    spec = PermutationSpec.from_model(first, x)
    permutation = WeightMatching().match(spec, first.state_dict(), second.state_dict())
    turned = copy.deepcopy(second)
    state = spec.apply(second.state_dict(), permutation)
    turned.load_state_dict(state, strict=turned.strict_loading)
    assert torch.allclose(turned(x), second(x), atol=1e-5)
    assert any(not torch.equal(one, torch.arange(len(one))) for one in permutation.values())
    recipe = Recipe("Mean", Average(), align=WeightMatching())
    made = merge([first, second], recipe, Numbers(), model=with_test(kind)(), trainer=CPU)
    name = "net.0.weight"
    expected = (first.state_dict()[name] + turned.state_dict()[name]) / 2
    assert torch.allclose(made.outcome.module.state_dict()[name], expected, atol=1e-6)


def test_studies_train_and_merge_it(tmp_path):
    study = {
        "seeds": [0],
        "model": {"class_path": f"{__name__}.AllAtOnce"},
        "data": {"class_path": f"{__name__}.Numbers"},
        "ingredients": [{}, {}],
        "start": {"max_epochs": 1},
        "training": {"max_epochs": 1},
        "trainer": {**CPU, "enable_progress_bar": False},
        "recipes": [{"name": "Mean", "aggregate": "Average"}],
    }
    run_study(study, tmp_path / "out", progress=False)
    results = [
        (path, read_json(path)["result"]) for path in tmp_path.glob("out/runs/*/result.json")
    ]
    trained = [path for path, one in results if one.get("row", {}).get("kind") == "ingredient"]
    first, other = (read_checkpoint(path.with_name("weights.ckpt")).state_dict for path in trained)
    (merged,) = tmp_path.glob("out/merges/**/mean.ckpt")
    made, name = read_checkpoint(merged).state_dict, "net.0.weight"
    assert torch.allclose(made[name], (first[name] + other[name]) / 2, atol=1e-7)


class OfTasks(Classifier):
    """A network for as many classes as a task has, built late, with extra state."""

    temperature = 1.0
    get_extra_state, set_extra_state = AllAtOnce.get_extra_state, AllAtOnce.set_extra_state

    def __init__(self, num_classes=3):
        super().__init__(num_classes)
        self.later, self.net = [self.net], None

    def configure_model(self):
        if self.net is None:
            self.net = self.later.pop()


def test_bodies_of_tasks(tmp_path):
    def data(name):
        arguments = {"name": name, "testable": True}
        return {"class_path": "tiny_tasks.Points", "init_args": arguments}

    study = {
        "model": {"class_path": f"{__name__}.OfTasks"},
        "pretraining": {"data": data("a"), "trainer": {"max_epochs": 1}},
        "training": {"max_epochs": 1},
        "trainer": {**CPU, "enable_progress_bar": False},
        "tasks": [{"name": name, "data": data(name)} for name in "bc"],
        "recipes": [{"name": "Mean", "aggregate": "Average"}],
    }
    run_tasks(study, tmp_path / "out", progress=False)
    found = {path: read_json(path)["result"] for path in tmp_path.glob("out/runs/*/result.json")}
    tuned = [path.with_name("weights.ckpt") for path in found if "head" in found[path]]
    first, other = (read_checkpoint(path).state_dict for path in tuned)
    (merged,) = tmp_path.glob("out/merges/**/mean.ckpt")
    made, name = read_checkpoint(merged).state_dict, "net.0.weight"
    assert torch.allclose(made[name], (first[name] + other[name]) / 2, atol=1e-7)
    assert not torch.equal(first[name], other[name])


@pytest.mark.parametrize("kind", ["NPMerge", "NPMergePairs", "FineTune", "LearnedSoup"])
def test_what_would_train_a_module_that_optimizes_manually_is_refused_at_once(kind):
    class ByHand(with_test(Plain)):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            _, other = self.optimizers()
            raise AssertionError(other)

        def test_step(self, batch, batch_idx):
            tested.append(batch)
            super().test_step(batch, batch_idx)

    tested = []
    recipes = [{"name": "Mean", "aggregate": "Average"}, {"name": "Learned", "aggregate": kind}]
    with pytest.raises(ConfigError, match="ByHand optimizes manually"):
        compare([ByHand(), ByHand()], recipes, Numbers(), trainer=CPU, progress=False)
    # The one that every comparison begins with.
    assert len(tested) == 1


@pytest.mark.parametrize(
    "given", [lambda made: made(), lambda _: {"class_path": f"{__name__}.Late"}]
)
def test_lazy_layers_have_the_shapes_of_the_files(given, tmp_path):
    paths = trained(Lazy, tmp_path)
    recipes = [
        {"name": "plain", "aggregate": "Average"},
        {"name": "aligned", "aggregate": "Average", "align": "ActivationMatching"},
    ]
    made = compare(paths, recipes, Numbers(), model=given(Late), trainer=CPU, progress=False)
    first, other = (read_checkpoint(path).state_dict for path in paths)
    mean = made.merged["plain"].state_dict()["net.0.weight"]
    torch.testing.assert_close(mean, (first["net.0.weight"] + other["net.0.weight"]) / 2)
    assert made.merged["aligned"].state_dict()["net.0.weight"].shape == mean.shape


def test_lazy_layers_that_never_ran_are_refused_in_a_line(tmp_path):
    never, line = Lazy(), r"a lazy layer that never ran.*: run the network on a batch[^\n]*$"
    torch.save(never.state_dict(), tmp_path / "never.ckpt")
    spec = PermutationSpec.from_model(Plain(), torch.randn(4, 8))
    for refused in (
        lambda: average([never, never]),
        lambda: average([tmp_path / "never.ckpt"] * 2),
        lambda: task_vector(never, Plain()),
        lambda: WeightMatching().match(spec, Plain(), never),
    ):
        with pytest.raises(CheckpointError, match=line):
            refused()
