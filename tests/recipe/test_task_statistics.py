"""Each task's own BatchNorm statistics: those of its training images, whatever the body."""

import copy

import pytest
import torch
from tiny_tasks import Points, made_bodies, made_context, network, without_head

from lightning_merge import AdaMerging, Average, Recipe, average, reset_batchnorm
from lightning_merge.errors import ConfigError
from lightning_merge.recipe.task_held_out import TaskHeldOut


@pytest.fixture(scope="module")
def bodies():
    return made_bodies()


def by_hand(body, name, states):
    """The network that should be evaluated on a task."""
    module = network(name)
    head = {key: value for key, value in states[name].items() if key.startswith("net.6")}
    module.load_state_dict({**without_head(body), **head})
    reset_batchnorm(module, Points(name).train_dataloader())
    return module.eval()


def share_right(module, name):
    x, y = Points(name).val_dataloader().dataset.tensors
    with torch.no_grad():
        return float((module(x).argmax(1) == y).double().mean())


def test_a_body_is_evaluated_with_the_tasks_head_and_statistics(bodies):
    context = made_context(bodies, task_statistics=True)
    _, states = bodies
    body = average([without_head(states[name]) for name in "abc"])
    built = {task.name: context.build_for(task, body) for task in context.tasks}
    assert set(built) == set("abcd")
    for name, module in built.items():
        expected = by_hand(body, name, states).state_dict()
        for key, value in module.state_dict().items():
            torch.testing.assert_close(value, expected[key])
    means = [module.state_dict()["net.1.running_mean"] for module in built.values()]
    assert not torch.allclose(means[0], means[1], atol=1e-3)
    plain = made_context(bodies)
    kept = plain.build_for(plain.task("b"), body).state_dict()
    assert torch.equal(kept["net.1.running_mean"], body["net.1.running_mean"])


def test_scores_and_features_are_of_the_networks_that_are_evaluated(bodies):
    context = made_context(bodies, task_statistics=True)
    _, states = bodies
    body = average([without_head(states[name]) for name in "abc"])
    module = Recipe("average", Average())(context).module
    held_out = TaskHeldOut(context)
    expected = {name: share_right(by_hand(body, name, states), name) for name in "abc"}
    assert held_out.score(module) == pytest.approx(sum(expected.values()) / 3)
    alone = share_right(by_hand(states["c"], "b", states), "b")
    assert held_out.own_score(states["c"], "b") == pytest.approx(alone)
    with torch.no_grad():
        features = [
            by_hand(body, name, states).net[:-1](Points(name).val_dataloader().dataset.tensors[0])
            for name in "abc"
        ]
    torch.testing.assert_close(held_out.features(module), torch.cat(features))
    # They are others without.
    plain = TaskHeldOut(made_context(bodies))
    assert not torch.allclose(plain.features(module), torch.cat(features), atol=1e-3)


def test_what_statistics_a_body_brings_does_not_matter(bodies):
    context = made_context(bodies, task_statistics=True)
    _, states = bodies
    moved = copy.deepcopy(states["a"])
    for name, value in moved.items():
        if "running" in name:
            value.mul_(3).add_(1)
    task = context.task("a")
    x = torch.randn(20, 6)
    with torch.no_grad():
        found, expected = (context.build_for(task, one).eval()(x) for one in (moved, states["a"]))
        assert not torch.allclose(task.build(moved).eval()(x), expected, atol=1e-2)
    torch.testing.assert_close(found, expected)


def test_ada_merging_is_refused(bodies):
    context = made_context(bodies, task_statistics=True)
    with pytest.raises(ConfigError, match="task_statistics"):
        AdaMerging().check(context)
