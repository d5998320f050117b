"""A pool with several networks of a task: trained, merged and selected, each under its own name."""

from dataclasses import replace

import pytest
import torch
from tiny_tasks import Classifier, Points, made_bodies, made_context, network, without_head
from torch import nn

from lightning_merge import DPP, Average, Recipe, TaskStudy, average, run_tasks
from lightning_merge.errors import ConfigError
from lightning_merge.recipe.task_context import TaskContext
from lightning_merge.study.task_plan import check_tasks, plan_tasks
from lightning_merge.study_verbs import estimate_tasks

QUIET = {"accelerator": "cpu", "enable_progress_bar": False}


def of_class(class_path, /, **arguments):
    return {"class_path": class_path, "init_args": arguments}


def study(**of_first):
    """Two seen tasks, the first with what is given."""
    tasks = [
        {"name": name, "data": of_class("tiny_tasks.Points", name=name, testable=True)}
        for name in "ab"
    ]
    tasks[0] |= of_first
    return TaskStudy(
        tasks=tasks,
        model=of_class("tiny_tasks.Classifier"),
        pretraining={"data": tasks[0]["data"], "trainer": {"max_epochs": 1}},
        training={"max_epochs": 2},
        trainer=QUIET,
        recipes=[{"name": "Average", "aggregate": "Average"}],
    )


def test_networks_of_a_task_differ_in_their_training_and_are_all_merged(tmp_path):
    several = study(training={"max_epochs": 3}, networks=[{"max_epochs": 1}, {"max_epochs": 3}])
    results = run_tasks(several, tmp_path, progress=False)
    works = {work.name: work for work in plan_tasks(several, {})}
    assert list(works) == ["Pre-trained", "a", "a 2", "a 3", "b", "Individual", "Average"]
    state = {
        one["task"]: torch.load(tmp_path / "runs" / key / "weights.ckpt", weights_only=True)[
            "state_dict"
        ]
        for key, one in results.details["ingredients"].items()
    }
    assert set(state) == {"Pre-trained", "a", "a 2", "a 3", "b"}
    name = "net.0.weight"
    assert torch.equal(state["a"][name], state["a 3"][name])
    assert not torch.equal(state["a"][name], state["a 2"][name])
    assert torch.equal(state["a"]["net.6.weight"], state["a 2"]["net.6.weight"])
    mean = torch.stack([state[one][name] for one in ("a", "a 2", "a 3", "b")]).mean(0)
    torch.testing.assert_close(results.merged["Average, seed 0"].state_dict()[name], mean)
    # Each task's own network, with as large a head as it has.
    own = [one["parameters"] for one in results.methods if one["method"] == "Individual"]
    assert own == [sum(p.numel() for name in "ab" for p in network(name).parameters())]
    # Tables have tasks, not networks.
    assert {row.task for row in results.rows} == set(results.heads) == {"a", "b"}


def test_repetitions_are_pieces_of_their_own_whatever_the_data_take():
    seeds = {"seeds": [0, 1]}
    given = {one: {"checkpoint": one, "data": of_class("x.Data")} for one in "ab"}
    files = [{"name": name, **rest} for name, rest in given.items()]
    split = [{**one, "data": of_class("x.Data", split_seed=0)} for one in files]
    for tasks in (files, split, [files[0], split[1]]):
        from_file = TaskStudy(tasks=tasks, recipes=study().recipes, pretrained="p", **seeds)
        works = plan_tasks(from_file, dict.fromkeys("abp", "digest"))
        # A network from a file is the same one in both.
        assert len({work.key for work in works if work.kind != "file"}) == 2 * 5
    trained = plan_tasks(replace(study(), **seeds), {})
    assert len({work.key for work in trained}) == len(trained) == 2 * 6


def test_selection_leaves_out_copies_and_what_is_no_better_than_the_start():
    start, states = made_bodies()
    single = made_context((start, states))
    copy = {name: value.clone() for name, value in states["a"].items()}
    context = TaskContext.of_tasks(
        single.tasks,
        [states[name] for name in "abc"],
        start,
        single.trainer,
        {"a 2": ("a", copy), "b 2": ("b", start)},
        progress=False,
    )
    assert context.names == ["a", "b", "c", "a 2", "b 2"]
    (choice,) = Recipe("picked", Average(), select=DPP())(context).choices
    own = choice.details["details"]["own"]
    assert own["a 2"] == own["a"] == single.held_out().own_score(states["a"], "a")
    assert choice.details["details"]["quality"]["b 2"] == 0
    order = choice.details["details"]["greedy_order"]
    assert {one.split()[0] for one in order} == {"a", "b", "c"}
    assert len(order) == 3
    merged = Recipe("all", Average())(context).module.state_dict()
    pool = (states["a"], states["b"], states["c"], copy, start)
    mean = average([without_head(state) for state in pool])
    torch.testing.assert_close(merged["net.0.weight"], mean["net.0.weight"])


class HardlyHeldOut(Points):
    """Points of which one batch is held out, and two are to test on."""

    def val_dataloader(self):
        return self.loader(2, 30)


def test_a_dry_run_does_with_one_held_out_batch(tmp_path):
    several = study(networks=[{"max_epochs": 1}])
    for task in several.tasks:
        task["data"]["class_path"] = f"{__name__}.HardlyHeldOut"
    found = estimate_tasks(several, tmp_path / "out")
    assert found.counts == {
        **{"pretraining": (1, 0), "task": (3, 0)},
        **{"task_baseline": (2, 0), "task_merge": (1, 0)},
    }
    assert all(seconds > 0 for seconds in found.seconds.values())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"networks": {"max_epochs": 1}}, "`networks` is a list"),
        ({"networks": [3]}, "`networks` is a list"),
        ({"networks": [{}], "unseen": True}, "under the task's one head"),
        ({"networks": [{}], "checkpoint": "a.ckpt"}, "under the task's one head"),
        ({"name": "b 2", "networks": [], "train": 1}, "`train` is unknown"),
        ({"name": "a_sd"}, "a column of the tables has that name"),
        ({"name": "held out"}, "a column of the tables has that name"),
    ],
)
def test_networks_that_cannot_be_are_refused(change, said):
    with pytest.raises(ConfigError, match=said):
        check_tasks(study(**change))


class OneLayer(Classifier):
    """A classifier that is a head and nothing else."""

    def __init__(self, num_classes: int = 3) -> None:
        super().__init__(num_classes)
        self.net = nn.Sequential(nn.Linear(6, num_classes))


def test_networks_without_a_body_are_refused_before_anything_is_trained(tmp_path):
    alone = replace(study(), model=of_class(f"{__name__}.OneLayer"))
    with pytest.raises(ConfigError, match="task 'a': the network is one layer"):
        run_tasks(alone, tmp_path, progress=False)
    assert not (tmp_path / "runs").exists()


def test_names_of_networks_are_not_those_of_tasks():
    both = study(networks=[{"max_epochs": 1}])
    both.tasks[1]["name"] = "a 2"
    with pytest.raises(ConfigError, match="task 'a 2': another task's network has that name"):
        check_tasks(both)
