import copy
from itertools import chain, islice

import pytest
import torch
from lightning.pytorch import LightningDataModule
from strangers import Stranger, image_batches, quiet_trainer, randomise
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_merge import (
    ActivationMatching,
    Average,
    Context,
    FeaturesEnsemble,
    GreedyFeaturesEnsemble,
    GreedyLogitsEnsemble,
    LogitsEnsemble,
    NPMerge,
    PermutationSpec,
    Recipe,
    WeightMatching,
    average,
    reset_batchnorm,
)
from lightning_merge.aggregate.heads import share_head
from lightning_merge.errors import ConfigError
from lightning_merge.measure.outcome import merged_content, run_recipe
from lightning_merge.recipe.aggregates import GreedySoup
from lightning_merge.recipe.held_out import HeldOut


class Images(LightningDataModule):
    """Validation images that are not those of the test, and a test that can be forbidden."""

    def __init__(self, testable=True, validation=True):
        super().__init__()
        self.testable, self.validation = testable, validation

    def train_dataloader(self):
        return image_batches(seed=1)

    def val_dataloader(self):
        return image_batches(seed=2) if self.validation else []

    def test_dataloader(self):
        assert self.testable, "the test set was looked at"
        return image_batches(seed=3)


class Validated(Stranger):
    def validation_step(self, batch, batch_idx):
        logits = self(batch[0])
        self.log("val_loss", nn.functional.cross_entropy(logits, batch[1]))
        self.log("val_acc", (logits.argmax(1) == batch[1]).float().mean())


def trained(seed):
    """A network that has learned a little: accuracies then differ, and some soups are better."""
    torch.manual_seed(40 + seed % 2)
    module = Validated()
    optimizer = torch.optim.Adam(module.parameters(), lr=0.02)
    batches = chain(image_batches(seed=140 + seed), image_batches(seed=240 + seed))
    for images, targets in islice(batches, 3 + seed):
        loss = nn.functional.cross_entropy(module(images), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return module.eval()


def context_of(modules, data=None, **changes):
    states = [copy.deepcopy(module.state_dict()) for module in modules]
    names = [f"network {index}" for index in range(len(states))]
    return Context(
        copy.deepcopy(modules[0]),
        states,
        names,
        data or Images(),
        quiet_trainer,
        progress=False,
        **changes,
    )


@pytest.fixture(scope="module")
def networks():
    return [trained(seed) for seed in range(6)]


def right(module, batches):
    with torch.no_grad():
        return sum(int((module(x).argmax(1) == y).sum()) for x, y in batches)


# --- uniform and weighted soups


def test_soups_are_the_weighted_means(networks):
    context = context_of(networks[:3])
    uniform = Average()(context.states, context).module.state_dict()
    weighted = Average([3, 1, 4])(context.states, context).module.state_dict()
    for name, value in uniform.items():
        a, b, c = (state[name] for state in context.states)
        if value.is_floating_point():
            torch.testing.assert_close(value, (a + b + c) / 3)
            torch.testing.assert_close(weighted[name], (3 * a + b + 4 * c) / 8)
        else:
            assert torch.equal(value, a)


# --- greedy soups


def greedy_by_definition(networks, evaluate):
    """Recipe 1 of "Model soups", every candidate averaged and evaluated anew."""
    order = sorted(range(len(networks)), key=lambda i: evaluate([networks[i]]), reverse=True)
    kept, tried = [order[0]], {order[0]: evaluate([networks[order[0]]])}
    for index in order[1:]:
        tried[index] = evaluate([networks[i] for i in [*kept, index]])
        if tried[index] > evaluate([networks[i] for i in kept]):
            kept.append(index)
    return order, kept, tried


def evaluation(reset, score):
    def evaluate(members):
        module = copy.deepcopy(members[0])
        module.load_state_dict(average([member.state_dict() for member in members]))
        if reset:
            reset_batchnorm(module, image_batches(seed=1))
        return score(module.eval())

    return evaluate


@pytest.mark.parametrize("reset", [False, True])
def test_the_greedy_soup_is_that_of_the_definition(networks, reset):
    evaluate = evaluation(reset, lambda module: right(module, image_batches(seed=2)))
    order, kept, tried = greedy_by_definition(networks, evaluate)
    assert 1 < len(kept) < len(networks)
    context = context_of(networks, Images(testable=False))
    recipe = Recipe("soup", GreedySoup(), recalibrate="batchnorm" if reset else None)
    made = recipe(context)
    module, (choice,) = made.module, made.choices
    expected = average([networks[i].state_dict() for i in kept])
    weights = {name for name, _ in networks[0].named_parameters()}
    for name in weights:
        torch.testing.assert_close(module.state_dict()[name], expected[name])
    assert choice.details["ingredients"] == [f"network {i}" for i in kept]
    assert [line["ingredient"] for line in choice.details["trace"]] == [
        f"network {i}" for i in order
    ]
    for index, line in zip(order, choice.details["trace"], strict=True):
        assert line["kept"] == (index in kept)
        assert line["with_it"] in (None, pytest.approx(tried[index] / 96))
        assert line["alone"] == pytest.approx(evaluate([networks[index]]) / 96)
    assert made.labelled_examples == choice.details["examples"] == 96
    if reset:
        assert right(module.eval(), image_batches(seed=2)) == evaluate([networks[i] for i in kept])


def test_a_candidate_that_cannot_win_is_dropped(networks):
    context = context_of(networks)
    made = GreedySoup()(context.states, context)
    dropped = [line for line in made.choices[0].details["trace"] if line["with_it"] is None]
    assert dropped
    assert all(line["examples"] < 96 and not line["kept"] for line in dropped)


def test_any_metric_of_the_validation(networks):
    def loss(module):
        with torch.no_grad():
            losses = [nn.functional.cross_entropy(module(x), y) for x, y in image_batches(seed=2)]
        return -float(torch.stack(losses).mean())

    order, kept, tried = greedy_by_definition(networks, evaluation(False, loss))
    context = context_of(networks, Images(testable=False))
    made = GreedySoup(metric="val_loss", mode="min")(context.states, context)
    (choice,) = made.choices
    assert choice.details["ingredients"] == [f"network {i}" for i in kept]
    found = [line["with_it"] for line in choice.details["trace"]]
    assert found == pytest.approx([-tried[i] for i in order], rel=1e-4)
    with pytest.raises(ConfigError, match=r"logs no val_auroc, only val_loss, val_acc"):
        GreedySoup(metric="val_auroc")(context.states, context)


def test_targets_that_are_no_classes_are_compared_by_the_modules_accuracy():
    class ManyLabels(Stranger):
        def validation_step(self, batch, batch_idx):
            self.log("val_acc", ((self(batch[0]) > 0) == batch[1].bool()).float().mean())

    class Labelled(Images):
        def val_dataloader(self):
            images, targets = image_batches(seed=2).dataset.tensors
            labels = nn.functional.one_hot(targets, 4).float()
            return DataLoader(TensorDataset(images, labels), batch_size=32)

    def accuracy(module):
        images, labels = Labelled().val_dataloader().dataset.tensors
        with torch.no_grad():
            return float(((module(images) > 0) == labels.bool()).float().mean())

    modules = [randomise(ManyLabels(), seed).eval() for seed in range(4)]
    _, kept, _ = greedy_by_definition(modules, evaluation(False, accuracy))
    context = context_of(modules, Labelled())
    made = GreedySoup()(context.states, context)
    assert made.choices[0].details["ingredients"] == [f"network {i}" for i in kept]


def test_without_held_out_examples_there_is_no_greedy_soup(networks):
    context = context_of(networks, Images(validation=False))
    with pytest.raises(ConfigError, match=r"Images has no validation data.*held_out"):
        Recipe("soup", GreedySoup())(context)


def test_one_search_serves_soup_and_ensembles(networks, monkeypatch):
    context = context_of(networks)
    evaluated = []
    hits = HeldOut.hits
    monkeypatch.setattr(HeldOut, "hits", lambda *args: evaluated.append(args) or hits(*args))
    first = run_recipe(Recipe("soup", GreedySoup()), context)
    count = len(evaluated)
    # Each ingredient once, and each candidate but the best ingredient.
    assert count == 2 * len(networks) - 1
    logits = run_recipe(Recipe("logits", GreedyLogitsEnsemble()), context)
    run_recipe(Recipe("features", GreedyFeaturesEnsemble()), context)
    assert len(evaluated) == count
    assert logits.choices == first.choices
    assert logits.measurement.seconds > 0.5 * first.measurement.seconds
    run_recipe(Recipe("reset", GreedySoup(), recalibrate="batchnorm"), context)
    assert len(evaluated) == 2 * count
    stored = first.content["lightning_merge"]["choices"][0]
    assert stored == first.choices[0]
    chosen = first.measurement.row()["chosen"]
    assert "chosen by accuracy on 96 validation examples" in chosen
    assert run_recipe(Recipe("mean", Average()), context).choices == []


@pytest.mark.parametrize("gives", [None, {}, Stranger()])
def test_an_aggregate_that_gives_something_else_is_named(gives, networks):
    class Forgets(Average):
        def __call__(self, states, context):
            return gives

    with pytest.raises(ConfigError, match=f"'mine': Forgets gave a {type(gives).__name__}"):
        Recipe("mine", Forgets())(context_of(networks))


# --- ensembles


def test_ensembles_by_hand(networks):
    context = context_of(networks[:4])
    images = torch.randn(5, 3, 8, 8)
    members = [copy.deepcopy(network) for network in networks[:4]]
    with torch.no_grad():
        features = torch.stack([member.net[:-1](images) for member in members]).mean(0)
        heads = [member.net[-1] for member in members]
        weight = torch.stack([head.weight for head in heads]).mean(0)
        bias = torch.stack([head.bias for head in heads]).mean(0)
        expected = {
            LogitsEnsemble(): torch.stack([member(images) for member in members]).mean(0),
            FeaturesEnsemble(): features @ weight.T + bias,
            FeaturesEnsemble(head="first"): heads[0](features),
        }
        for aggregate, output in expected.items():
            found = aggregate(context.states, context).module.eval()(images)
            torch.testing.assert_close(found, output)


def test_greedy_ensembles_are_of_the_soups_ingredients(networks):
    context = context_of(networks)
    made = GreedySoup()(context.states, context)
    kept = [int(name.split()[1]) for name in made.choices[0].details["ingredients"]]
    assert 1 < len(kept) < len(networks)
    members = [copy.deepcopy(networks[i]) for i in kept]
    images = torch.randn(5, 3, 8, 8)
    with torch.no_grad():
        logits = torch.stack([member(images) for member in members]).mean(0)
        features = torch.stack([member.net[:-1](images) for member in members]).mean(0)
        found = GreedyLogitsEnsemble()(context.states, context).module.eval()(images)
        torch.testing.assert_close(found, logits)
        best = GreedyFeaturesEnsemble(head="first")(context.states, context).module.eval()
        torch.testing.assert_close(best(images), members[0].net[-1](features))


def test_rows_say_what_each_costs(networks):
    context = context_of(networks[:3])
    rows = {
        name: run_recipe(Recipe(name, aggregate), context).measurement.row()
        for name, aggregate in (
            ("mean", Average()),
            ("logits", LogitsEnsemble()),
            ("features", FeaturesEnsemble()),
        )
    }
    one, head = rows["mean"]["flops"], 2 * 12 * 4
    assert one == 2 * 27 * 6 * 64 + 2 * 54 * 12 * 16 + head
    assert rows["logits"]["flops"] == 3 * one
    assert rows["features"]["flops"] == 3 * (one - head) + head
    assert rows["logits"]["parameters"] == 3 * rows["mean"]["parameters"]


# --- merging across tasks


def permuted(module, seed):
    """A network that computes the same with its hidden units in another order."""
    spec = PermutationSpec.from_model(module, torch.randn(2, 3, 8, 8))
    draw = torch.Generator().manual_seed(seed)
    found = copy.deepcopy(module)
    found.load_state_dict(spec.apply(module.state_dict(), spec.random(draw)))
    return found


@pytest.mark.parametrize("matching", [ActivationMatching(), WeightMatching(), None])
def test_bodies_of_two_tasks_are_aligned_and_merged_under_the_first_head(matching):
    first = randomise(Stranger(), 0).eval()
    # The other network has the same body in another order, and a head of nine classes.
    moved = permuted(first, 1)
    other = randomise(Stranger(classes=9), 5).eval()
    other.net[:-1].load_state_dict(moved.net[:-1].state_dict())
    states, heads = share_head([first.state_dict(), other.state_dict()], ["a", "b"])
    assert heads == ["net.8.weight", "net.8.bias"]
    context = Context(
        copy.deepcopy(first),
        states,
        ["a", "b"],
        Images(),
        quiet_trainer,
        progress=False,
        heads=heads,
    )
    images = torch.randn(5, 3, 8, 8)
    module = Recipe("mean", Average(), align=matching)(context).module
    with torch.no_grad():
        same = torch.allclose(module.eval()(images), first(images), atol=1e-4)
    assert same == (matching is not None)
    for name in heads:
        assert torch.equal(module.state_dict()[name], first.state_dict()[name])


def test_ensembles_of_two_tasks_evaluate_both_bodies_under_the_first_head():
    first = randomise(Stranger(), 0).eval()
    other = randomise(Stranger(classes=9), 5).eval()
    states, heads = share_head([first.state_dict(), other.state_dict()], ["a", "b"])
    context = Context(
        copy.deepcopy(first), states, ["a", "b"], Images(), quiet_trainer, heads=heads
    )
    images = torch.randn(5, 3, 8, 8)
    with torch.no_grad():
        features = (first.net[:-1](images) + other.net[:-1](images)) / 2
        expected = first.net[-1](features)
        for aggregate in (FeaturesEnsemble("first"), FeaturesEnsemble(), LogitsEnsemble()):
            found = aggregate(context.states, context).module.eval()(images)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("granularity", ["model", "layer", "parameter"])
def test_a_learned_soup_of_three_is_what_its_shares_say(granularity):
    context = context_of([trained(seed) for seed in range(3)])
    recipe = Recipe("Learned", NPMerge(granularity, max_epochs=2))
    recipe.check_context(context)
    made = recipe(context)
    module = made.module
    shares = module.alphas()
    moved = 0.0
    for name, share in shares.items():
        assert torch.allclose(share.sum(0), torch.ones_like(share[0]), atol=1e-6)
        mixed = sum(one * state[name] for one, state in zip(share, context.states, strict=True))
        assert torch.allclose(module.get_parameter(name), mixed, atol=1e-6)
        moved = max(moved, float((share - 1 / 3).abs().max()))
    assert moved > 0.01
    stored = merged_content(made, recipe, context)["lightning_merge"]
    for name, share in shares.items():
        listed = [stored["alphas"][name], *(one[name] for one in stored["other_alphas"])]
        assert torch.equal(torch.stack(listed), share)
