"""AdaMerging of tasks: by the entropy of all heads' predictions, on images without labels."""

from dataclasses import replace

import pytest
import torch
from strangers import quiet_trainer
from tiny_contexts import made_context as context_of_one_task
from tiny_tasks import Points, made_bodies, made_context, network, without_head
from torch.utils.data import DataLoader, TensorDataset

from lightning_merge import AdaMerging, Recipe, average
from lightning_merge.errors import ConfigError
from lightning_merge.measure.outcome import run_recipe


@pytest.fixture(scope="module")
def bodies():
    return made_bodies()


def sgd(coefficients):
    return torch.optim.SGD(coefficients, lr=0.01)


def entropy_by_hand(bodies, coefficients, several_labels=""):
    """The sum over tasks of the entropy under P + sum_k c_k (W_k - P), each under its own head."""
    start, states = bodies
    seen = [without_head(states[name]) for name in "abc"]
    merged = {}
    columns = 0
    for name, value in without_head(start).items():
        if name.rpartition(".")[2] in ("weight", "bias"):
            own = coefficients[:, columns % coefficients.shape[1]]
            columns += 1
            merged[name] = value + sum(
                c * (one[name] - value) for c, one in zip(own, seen, strict=True)
            )
        else:
            merged[name] = average(seen)[name]
    total = 0.0
    for task in "abc":
        head = {name: value for name, value in states[task].items() if name.startswith("net.6")}
        x = Points(task).val_dataloader().dataset.tensors[0]
        module = network(task).eval()
        logits = torch.func.functional_call(module, {**merged, **head}, (x,))
        if task in several_labels:
            entropy = torch.distributions.Bernoulli(logits=logits).entropy().sum(dim=1).mean()
        else:
            entropy = torch.distributions.Categorical(logits=logits).entropy().mean()
        total = total + entropy
    return total


@pytest.mark.parametrize("granularity", ["model", "layer"])
def test_a_step_is_the_gradient_of_all_tasks_entropies(bodies, granularity):
    context = made_context(bodies)
    # One batch holds all images of each task.
    aggregate = AdaMerging(granularity, max_steps=1, batch_size=100, optimizer=sgd)
    made = Recipe("ada", aggregate)(context)
    module, (choice,) = made.module, made.choices
    found = torch.tensor(list(choice.details["coefficients"].values()))
    parameters = [name for name in without_head(bodies[0]) if name.endswith(("weight", "bias"))]
    assert found.shape == (3, len(parameters) if granularity == "layer" else 1)
    coefficients = torch.full(found.shape, 0.3, requires_grad=True)
    entropy_by_hand(bodies, coefficients).backward()
    torch.testing.assert_close((0.3 - found) / 0.01, coefficients.grad, rtol=1e-3, atol=1e-5)
    assert coefficients.grad.abs().max() > 0.01

    start, states = bodies
    for index, name in enumerate(parameters):
        expected = start[name] + sum(
            c * (states[task][name] - start[name])
            for c, task in zip(found[:, index % found.shape[1]], "abc", strict=True)
        )
        torch.testing.assert_close(module.state_dict()[name], expected)
    for name, value in states["a"].items():
        if name.startswith("net.6"):
            assert torch.equal(module.state_dict()[name], value)
        if name.endswith("num_batches_tracked"):
            assert torch.equal(module.state_dict()[name], start[name])


def test_a_task_of_several_labels_is_sure_of_each(bodies):
    found = {}
    for kind in (None, "multilabel"):
        context = made_context(bodies)
        context.tasks[1].module.task = kind
        made = Recipe("ada", AdaMerging("model", 1, 100, optimizer=sgd))(context)
        found[kind] = made.choices[0].details["coefficients"]
    coefficients = torch.full((3, 1), 0.3, requires_grad=True)
    entropy_by_hand(bodies, coefficients, "b").backward()
    expected = 0.3 - 0.01 * coefficients.grad
    torch.testing.assert_close(torch.tensor(list(found["multilabel"].values())), expected)
    assert found[None] != found["multilabel"]


def test_entropy_falls_and_no_image_of_the_test_is_seen(bodies):
    context = made_context(bodies)  # its test loader fails
    made = Recipe("ada", AdaMerging(max_steps=40, batch_size=20, optimizer=sgd))(context)
    found = torch.tensor(list(made.choices[0].details["coefficients"].values()))
    start = torch.full(found.shape, 0.3)
    with torch.no_grad():
        assert entropy_by_hand(bodies, found) < 0.95 * entropy_by_hand(bodies, start)
    assert ((found >= 0) & (found <= 1)).all()


class Mislabelled(Points):
    """The same images, with labels that belong to others."""

    def val_dataloader(self):
        x, y = super().val_dataloader().dataset.tensors
        order = torch.randperm(len(y), generator=torch.Generator().manual_seed(1))
        assert not torch.equal(y, y[order])
        return DataLoader(TensorDataset(x, y[order]), batch_size=40)


def test_labels_are_never_read(bodies, monkeypatch):
    recipe = Recipe("ada", AdaMerging(max_steps=5))
    outcome = run_recipe(recipe, made_context(bodies, testable=True))
    monkeypatch.setattr("tiny_tasks.Points", Mislabelled)
    otherwise = recipe(made_context(bodies))
    assert [choice.details for choice in otherwise.choices] == outcome.choices
    assert outcome.measurement.train_examples == 0
    assert outcome.measurement.chosen.endswith("on 131 unlabelled validation images")
    assert outcome.choices[0]["examples"] == 43 + 45 + 43


def test_what_it_cannot_do_is_refused(bodies):
    with pytest.raises(ConfigError, match="use it in `tasks`"):
        Recipe("one", AdaMerging()).check_context(context_of_one_task())
    with pytest.raises(ConfigError, match="max_steps"):
        AdaMerging(max_steps=0)
    with pytest.raises(ConfigError, match="between 0 and 1"):
        AdaMerging(coefficient=1.5)


def test_so_many_steps_are_made_however_short_epochs_are(bodies):
    steps = []

    class Counted(torch.optim.SGD):
        def step(self, closure=None):
            steps.append(1)
            return super().step(closure)

    context = replace(
        made_context(bodies),
        trainer=lambda **own: quiet_trainer(**{"limit_train_batches": 1, **own}),
    )
    aggregate = AdaMerging(max_steps=7, batch_size=10, optimizer=lambda c: Counted(c, lr=0.01))
    Recipe("ada", aggregate)(context)
    assert len(steps) == 7
