"""One body for several tasks: merged, chosen and measured over all of them."""

from dataclasses import replace

import pytest
import torch
from strangers import quiet_trainer
from tiny_tasks import Points, made_bodies, made_context, network, right, without_head
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_merge import (
    DPP,
    TIES,
    Average,
    Fisher,
    ModelStock,
    Recipe,
    RegMean,
    TaskArithmetic,
    WeightMatching,
    average,
    task_arithmetic,
    task_vector,
    ties,
)
from lightning_merge.aggregate import gram_matrices, regmean
from lightning_merge.errors import ConfigError, MergeError
from lightning_merge.measure.linear_probe import linear_probe
from lightning_merge.measure.task_conditions import Conditions, measure_tasks
from lightning_merge.recipe.aggregates import GreedySoup
from lightning_merge.recipe.held_out import HeldOut
from lightning_merge.recipe.task_context import head_of
from lightning_merge.recipe.task_held_out import TaskHeldOut


@pytest.fixture(scope="module")
def bodies():
    return made_bodies()


def check_body(module, expected):
    state = without_head(module.state_dict())
    assert state.keys() == without_head(expected).keys()
    for name, value in without_head(expected).items():
        torch.testing.assert_close(state[name], value)


def test_bodies_are_merged_and_heads_left_alone(bodies):
    context = made_context(bodies)
    start, states = bodies
    seen = [without_head(states[name]) for name in "abc"]
    p = without_head(start)
    vectors = [task_vector(state, p) for state in seen]
    for aggregate, expected in (
        (Average(), average(seen)),
        (TaskArithmetic(scale=0.4), task_arithmetic(p, vectors, 0.4)),
        # The trim must not count the heads, which nobody moved.
        (TIES(density=0.25, scale=0.8), ties(p, vectors, 0.8, 0.25)),
    ):
        module = aggregate(context.states, context).module
        check_body(module, expected)
        for name in ("net.6.weight", "net.6.bias"):
            assert torch.equal(module.state_dict()[name], states["a"][name])


def test_data_of_each_task_reach_its_own_network(bodies):
    context = made_context(bodies)
    _, states = bodies
    grams = []
    for name in "abc":
        module = network(name)
        module.load_state_dict(states[name])
        gram = gram_matrices(module, Points(name).train_dataloader())
        grams.append(without_head(gram))
    seen = [without_head(states[name]) for name in "abc"]
    check_body(RegMean()(context.states, context).module, regmean(seen, grams))
    for aggregate in (Fisher(), ModelStock()):
        module = aggregate(context.states, context).module
        assert all(torch.isfinite(value).all() for value in module.state_dict().values())
        assert module.state_dict()["net.1.num_batches_tracked"].dtype == torch.long


def test_statistics_are_those_of_all_seen_tasks(bodies):
    context = made_context(bodies)
    module = Recipe("average", Average(), recalibrate="batchnorm")(context).module
    other = context.build(average(context.states))
    points = {name: Points(name).train_dataloader().dataset.tensors[0] for name in "abc"}
    with torch.no_grad():
        values = other.net[0](torch.cat(list(points.values()))).double()
    norm = module.state_dict()
    torch.testing.assert_close(norm["net.1.running_mean"].double(), values.mean(0))
    torch.testing.assert_close(norm["net.1.running_var"].double(), values.var(0))
    # Behind the first norm statistics depend on what is in a batch together.
    first, *_ = context.statistics()
    of = [sum(int((row == x).all(1).any()) for row in first) for x in points.values()]
    assert min(of) >= 5
    assert sum(of) == len(first)


def test_a_score_is_the_mean_over_the_seen_tasks(bodies):
    context = made_context(bodies)
    _, states = bodies
    body = average([without_head(states[name]) for name in "abc"])
    held_out = TaskHeldOut(context)
    expected = [right(body, name, states, Points(name).val_dataloader()) for name in "abc"]
    assert len(set(expected)) == 3
    found = held_out.score(context.build({**body, **context.tasks[0].head}))
    assert found == pytest.approx(sum(expected) / 3)
    assert held_out.size == 43 + 45 + 43
    own = held_out.own_score(states["c"], "b")
    assert own == pytest.approx(
        right(without_head(states["c"]), "b", states, Points("b").val_dataloader())
    )


def test_the_scale_is_the_best_on_average_over_the_tasks(bodies):
    context = made_context(bodies)
    start, states = bodies
    p = without_head(start)
    vectors = [task_vector(without_head(states[name]), p) for name in "abc"]
    scores = {}
    for scale in (0.0, 0.2, 0.5, 1.0):
        body = task_arithmetic(p, vectors, scale)
        values = [right(body, name, states, Points(name).val_dataloader()) for name in "abc"]
        scores[scale] = sum(values) / 3
    made = TaskArithmetic(candidates=list(scores))(context.states, context)
    (choice,) = made.choices
    assert choice.details["scores"] == pytest.approx(
        {f"{scale:g}": value for scale, value in scores.items()}
    )
    assert choice.details["scale"] == max(scores, key=scores.get)
    assert made.labelled_examples == 131


def test_dpp_goes_by_each_task_and_by_all_images(bodies):
    context = made_context(bodies)
    start, states = bodies
    p = without_head(start)
    (choice,) = Recipe("two", Average(), select=DPP(2))(context).choices
    q, features = [], []
    for name in "abc":
        loader = Points(name).val_dataloader()
        before = right(p, name, states, loader)
        q.append((right(without_head(states[name]), name, states, loader) - before) / before)
        module = network(name)
        module.load_state_dict(states[name])
        x = torch.cat([Points(task).val_dataloader().dataset.tensors[0] for task in "abc"])
        with torch.no_grad():
            features.append(module.eval().net[:-1](x).double())
    assert list(choice.details["details"]["quality"].values()) == pytest.approx(q)
    for i, a in enumerate(features):
        for j, b in enumerate(features):
            expected = float(torch.cosine_similarity(a, b, dim=1).nan_to_num().mean())
            assert choice.details["details"]["similarity"][i][j] == pytest.approx(
                expected, abs=1e-5
            )
    assert set(choice.details["ingredients"]) < set("abc")


def test_a_greedy_soup_is_one_of_tasks(bodies):
    context = made_context(bodies)
    (choice,) = Recipe("soup", GreedySoup())(context).choices
    assert {line["ingredient"] for line in choice.details["trace"]} == set("abc")


def test_tasks_are_measured_under_their_own_heads(bodies):
    context = made_context(bodies, testable=True)
    _, states = bodies
    body = states["b"]
    rows = measure_tasks(
        lambda task: None if task.name == "c" else task.build(body),
        Conditions(context.tasks),
        quiet_trainer,
        method="m",
        kind="merge",
        seed=4,
        progress=False,
    )
    assert [row.task for row in rows] == ["a", "b", "d"]
    assert [row.seen for row in rows] == [True, True, False]
    for row in rows:
        loader = Points(row.task, testable=True).test_dataloader()
        expected = right(without_head(body), row.task, states, loader)
        assert row.metrics["accuracy"] == pytest.approx(expected)
        assert (row.method, row.kind) == ("m", "merge")
        assert (row.test_examples, row.condition, row.seed) == (60, "clean", 4)
    with pytest.raises(ConfigError, match="cannot corrupt"):
        Conditions(context.tasks, ["contrast"]).check()


@pytest.mark.parametrize("per_class", [None, 3])
def test_the_head_is_found_and_fitted(bodies, per_class):
    start, _ = bodies
    module = network("b")
    module.load_state_dict({**module.state_dict(), **without_head(start)})
    module.eval()
    assert head_of(module, Points("b"), start).keys() == {"net.6.weight", "net.6.bias"}
    head, examples = linear_probe(module, Points("b"), torch.device("cpu"), per_class)
    x, y = Points("b").train_dataloader().dataset.tensors
    own = range(130)
    if per_class is not None:
        own = [i for i in own if int((y[:i] == y[i]).sum()) < per_class]
        assert y[own].bincount().tolist() == [3] * 5
    assert examples == len(own)
    with torch.no_grad():
        features = module.net[:-1](x)
    # Logistic regression with scikit-learn's penalty has this gradient of zero.
    scale = features.std(0, correction=0)
    scale[scale == 0] = 1
    weight = (head["net.6.weight"] * scale).double().requires_grad_()
    bias = (head["net.6.bias"] + head["net.6.weight"] @ features.mean(0)).double().requires_grad_()
    logits = ((features - features.mean(0)) / scale).double() @ weight.T + bias
    loss = nn.functional.cross_entropy(logits[own], y[own], reduction="sum")
    loss = loss + weight.square().sum() / 2
    loss.backward()
    assert float(weight.grad.abs().max()) < 0.02
    assert float(bias.grad.abs().max()) < 0.02
    two, _ = linear_probe(network("d").eval(), Points("d"), torch.device("cpu"))
    assert two["net.6.weight"].shape == (2, 12)


def test_a_head_without_a_bias_is_fitted_as_one():
    module = network("b").eval()
    module.net[-1] = nn.Linear(12, 5, bias=False)
    head, _ = linear_probe(module, Points("b"), torch.device("cpu"))
    assert head.keys() == {"net.6.weight"}
    x, y = Points("b").train_dataloader().dataset.tensors
    with torch.no_grad():
        features = module.net[:-1](x).double()
    scale = features.std(0, correction=0)
    scale[scale == 0] = 1
    # The penalised regression through the origin has this gradient of zero.
    weight = (head["net.6.weight"] * scale).double().requires_grad_()
    loss = nn.functional.cross_entropy(features / scale @ weight.T, y, reduction="sum")
    (loss + weight.square().sum() / 2).backward()
    assert float(weight.grad.abs().max()) < 0.02


class Bytes(Points):
    """Gives bytes, which a hook makes numbers of on the device."""

    def loader(self, part, count):
        x, y = super().loader(part, count).dataset.tensors
        return DataLoader(TensorDataset((x * 20 + 128).to(torch.uint8), y), batch_size=40)

    def on_after_batch_transfer(self, batch, dataloader_idx):
        x, y = batch
        return (x.float() - 128) / 20, y


def test_heads_and_features_are_found_behind_the_batch_transfer_hooks(bodies):
    _, states = bodies
    module = network("b")
    module.load_state_dict(states["b"])
    assert head_of(module, Bytes("b"), states["b"]).keys() == {"net.6.weight", "net.6.bias"}
    context = replace(made_context(bodies), data=Bytes("b"))
    x = (Bytes("b").val_dataloader().dataset.tensors[0].float() - 128) / 20
    with torch.no_grad():
        torch.testing.assert_close(HeldOut(context).features(module), module.eval().net[:-1](x))


def test_what_does_not_fit_is_refused(bodies):
    start, states = bodies
    with pytest.raises(ConfigError, match=r"WeightMatching: .* leave `align` out"):
        Recipe("aligned", Average(), align=WeightMatching()).check_context(made_context(bodies))
    broken = dict(states)
    broken["b"] = {**states["b"], "net.0.weight": torch.zeros(3, 3)}
    with pytest.raises(MergeError, match=r"net\.0\.weight"):
        made_context((start, broken))
    with pytest.raises(MergeError, match=r"net\.0\.weight"):
        made_context(({**start, "net.0.weight": torch.zeros(3, 3)}, states))


def test_a_head_is_fitted_to_batches_that_are_dicts():
    class InDicts(Points):
        def train_dataloader(self):
            x, y = super().train_dataloader().dataset.tensors
            rows = [{"x": one, "label": label} for one, label in zip(x, y, strict=True)]
            return DataLoader(rows, batch_size=40)

    module, device = network("d").eval(), torch.device("cpu")
    wanted, count = linear_probe(module, Points("d"), device)
    found, same = linear_probe(module, InDicts("d"), device)
    assert same == count == 100
    torch.testing.assert_close(found, wanted)
