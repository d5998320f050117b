"""Weights that are multiplied: against networks that are multiplied by hand, one by one."""

from dataclasses import replace

import pytest
import torch
from strangers import quiet_trainer
from tiny_contexts import Points, made_context
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lightning_merge import (
    Average,
    FeaturesEnsemble,
    GreedyFeaturesEnsemble,
    GreedyLogitsEnsemble,
    LogitsEnsemble,
    Proposal,
    Recipe,
    Selection,
    WeightMatching,
    average,
)
from lightning_merge.errors import ConfigError
from lightning_merge.measure.measurement import AVERAGE
from lightning_merge.measure.outcome import run_recipe
from lightning_merge.measure.sweep import sweep_of
from lightning_merge.measure.sweeps import weight_scaling
from lightning_merge.measure.sweeps.weight_scaling import measure_scaling
from lightning_merge.recipe.aggregates import GreedySoup

FACTORS = [0.3, 1.0, 3.0]
RECIPES = [
    Recipe("soup", Average()),
    Recipe("greedy", GreedySoup()),
    Recipe("logits", LogitsEnsemble()),
    Recipe("features", FeaturesEnsemble()),
    Recipe("features*", FeaturesEnsemble("first")),
    Recipe("greedy logits", GreedyLogitsEnsemble()),
    Recipe("greedy features", GreedyFeaturesEnsemble()),
]


def multiplied(context, state, factor):
    """A network whose parameters, and nothing else, are `factor` times as large."""
    module = context.build(state)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(factor)
    return module.eval()


def by_hand(context, size, factor):
    """The logits of each method for the test points, from multiplied ingredients."""
    x, _ = Points().test_dataloader().dataset.tensors
    greedy = GreedySoup().search(context.states[:size], context.first(size)).value
    found = {}
    with torch.no_grad():
        for prefix, states in (("", context.states[:size]), ("greedy ", greedy.members)):
            networks = [multiplied(context, state, factor) for state in states]
            soup = context.build(average([network.state_dict() for network in networks])).eval()
            found["greedy" if prefix else "soup"] = soup(x)
            found[f"{prefix}logits"] = torch.stack([network(x) for network in networks]).mean(0)
            features = torch.stack([network.net[:-1](x) for network in networks]).mean(0)
            found[f"{prefix}features"] = soup.net[-1](features)
            if not prefix:
                found["features*"] = networks[0].net[-1](features)
                found[AVERAGE] = [network(x) for network in networks]
    return found


def measure(context, recipes, factors, sizes):
    def weights(name, size):
        recipe = next(recipe for recipe in recipes if recipe.name == name)
        return recipe(context.first(size)).module.state_dict()

    return measure_scaling(context, recipes, factors, sizes, weights)


def share(logits, targets):
    return float((logits.argmax(1) == targets).double().mean())


@pytest.mark.parametrize("norm", [False, True])
def test_every_method_at_every_factor_by_hand(norm):
    context = made_context(4, norm=norm)
    _, targets = Points().test_dataloader().dataset.tensors
    found = {(one.name, one.pool_size): one for one in measure(context, RECIPES, FACTORS, [2, 4])}
    names = [AVERAGE, *(recipe.name for recipe in RECIPES)]
    assert list(found) == [(name, size) for size in (2, 4) for name in names]
    for index, factor in enumerate(FACTORS):
        for size in (2, 4):
            wanted = by_hand(context, size, factor)
            each = [share(logits, targets) for logits in wanted.pop(AVERAGE)]
            wanted = {name: share(logits, targets) for name, logits in wanted.items()}
            wanted[AVERAGE] = sum(each) / len(each)
            got = {name: found[name, size].accuracy[index] for name in names}
            assert got == pytest.approx(wanted, abs=1e-9)
    # What is multiplied does not predict as before, or nothing would have been tested.
    assert any(len(set(one.accuracy)) > 1 for one in found.values())
    for one in found.values():
        assert one.factor == FACTORS
        assert one.finite == [1.0] * 3


def test_factor_one_gives_the_accuracy_of_the_test():
    context = made_context(3)
    found = {one.name: one for one in measure(context, RECIPES, [1.0], [3])}
    for recipe in RECIPES:
        tested = run_recipe(recipe, context).measurement.accuracy
        assert found[recipe.name].accuracy[0] == pytest.approx(tested)


def test_batches_are_those_of_the_test_set():
    context = made_context(3)
    found = {one.name: one for one in measure(context, RECIPES, [1.0, 2.0], [3])}
    # 80 points in batches of 32.
    for name in ("soup", "logits"):
        (first, _) = found[name].by_batch
        assert len(first) == 3
        assert (32 * first[0] + 32 * first[1] + 16 * first[2]) / 80 == pytest.approx(
            found[name].accuracy[0]
        )
    assert found["features"].by_batch == []


def test_each_network_is_evaluated_once_for_each_batch(monkeypatch):
    context = made_context(4)
    evaluated = []
    real = weight_scaling._Network.__call__

    def counting(self, inputs):
        if len(inputs) and inputs.shape[1] == 6:
            evaluated.append(self)
        return real(self, inputs)

    monkeypatch.setattr(weight_scaling._Network, "__call__", counting)
    measure(context, RECIPES, [0.5, 1.0], [2, 4])
    # Four ingredients, and two soups of two of them and of all; three batches, two factors.
    assert len(set(evaluated)) == 4 + 2 * 2
    assert len(evaluated) == (4 + 2 * 2) * 3 * 2


def test_the_ingredients_are_left_as_they_were():
    context = made_context(2)
    before = [{name: value.clone() for name, value in state.items()} for state in context.states]
    measure(context, RECIPES, [3.0], [2])
    for state, kept in zip(context.states, before, strict=True):
        assert all(torch.equal(state[name], kept[name]) for name in kept)


def test_linear_networks_merge_and_ensemble_alike_at_every_factor():
    # Eq. 3 and 5: where all is linear, magnitude makes no difference between the two.
    context = made_context(3)
    context.module.net = torch.nn.Linear(6, 3)
    states = [torch.nn.Linear(6, 3).state_dict() for _ in range(3)]
    states = [{f"net.{name}": v for name, v in state.items()} for state in states]
    context = replace(context, states=states)
    recipes = [Recipe("soup", Average()), Recipe("logits", LogitsEnsemble())]
    _, soup, logits = measure(context, recipes, [0.01, 1.0, 1e4], [3])
    assert soup.accuracy == logits.accuracy
    assert soup.by_batch == logits.by_batch


def test_logits_that_are_no_numbers_are_counted():
    context = made_context(2)
    (_, soup) = measure(context, RECIPES[:1], [1.0, 1e15], [2])
    assert soup.finite[0] == 1.0
    assert soup.finite[1] == 0.0


class Halves(Points):
    """Points of two classes."""

    def test_dataloader(self):
        x, _ = super().test_dataloader().dataset.tensors
        return DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), batch_size=32)


def test_one_logit_for_each_example_may_be_in_no_column():
    context = made_context(2, data=Halves())
    context.module.net = torch.nn.Sequential(torch.nn.Linear(6, 1), torch.nn.Flatten(0))
    state = {"net.0.weight": torch.eye(6)[:1], "net.0.bias": torch.zeros(1)}
    context = replace(context, states=[state, state])
    _, soup = measure(context, RECIPES[:1], [2.0], [2])
    assert (soup.accuracy, soup.finite) == ([1.0], [1.0])


def test_an_aligned_ensemble_answers_as_one_that_is_not():
    context = made_context(3)
    recipes = [
        Recipe("logits", LogitsEnsemble()),
        Recipe("aligned", LogitsEnsemble(), align=WeightMatching()),
    ]
    _, plain, aligned = measure(context, recipes, [0.5, 2.0], [3])
    assert plain.accuracy == aligned.accuracy


def test_an_ensemble_that_is_recalibrated_is_evaluated_as_it_is():
    context = made_context(3, norm=True)
    recipe = Recipe("reset", LogitsEnsemble(), recalibrate="batchnorm")
    _, found = measure(context, [recipe], [1.0], [3])
    (metrics,) = quiet_trainer().test(
        recipe(context).module, datamodule=context.data, verbose=False
    )
    assert found.accuracy[0] == pytest.approx(metrics["test_acc"])


def test_an_ensemble_of_selected_ingredients_is_of_those():
    class First(Selection):
        def propose(self, states, context):
            return Proposal([[0, 1]], {})

    context = made_context(4)
    recipes = [Recipe("all", LogitsEnsemble()), Recipe("two", LogitsEnsemble(), select=First())]
    _, everyone, picked = measure(context, recipes, FACTORS, [4])
    _, wanted = measure(context, recipes[:1], FACTORS, [2])
    assert picked.accuracy == pytest.approx(wanted.accuracy)
    assert picked.accuracy != everyone.accuracy


def limited(batches):
    return replace(
        made_context(2),
        trainer=lambda **changes: quiet_trainer(limit_test_batches=batches, **changes),
    )


def test_the_trainers_limit_is_kept_to():
    _, soup = measure(limited(1), RECIPES[:1], [1.0], [2])
    assert len(soup.by_batch[0]) == 1
    # Of three batches 0.6 are one: Lightning rounds down.
    _, soup = measure(limited(0.6), RECIPES[:1], [1.0], [2])
    assert len(soup.by_batch[0]) == 1


class Labels(Points):
    """Each point has several labels."""

    def test_dataloader(self):
        x, y = super().test_dataloader().dataset.tensors
        labels = torch.nn.functional.one_hot(y, 3).float()
        return DataLoader(TensorDataset(x, labels), batch_size=32)


def test_what_is_refused():
    scaling = sweep_of("magnitudes")
    context = made_context(2, data=Labels())
    with pytest.raises(ConfigError, match="needs one class"):
        measure(context, RECIPES[:1], [1.0], [2])
    with pytest.raises(ConfigError, match="needs one class"):
        scaling.check_context(context)
    for factors in ([0.0], [-1.0], [1.0, 1.0], [float("nan")], [float("inf")]):
        with pytest.raises(ConfigError, match="positive numbers"):
            scaling.check(factors, 2)


class Named(Points):
    """Batches are dicts."""

    def test_dataloader(self):
        x, y = super().test_dataloader().dataset.tensors
        rows = [{"x": one, "y": label} for one, label in zip(x, y, strict=True)]
        return DataLoader(rows, batch_size=32)


class Endless(IterableDataset):
    """Nobody knows how many examples there are."""

    def __iter__(self):
        return iter(zip(*Points().test_dataloader().dataset.tensors, strict=True))


class Streamed(Points):
    """Test examples come from a stream."""

    def test_dataloader(self):
        return DataLoader(Endless(), batch_size=32)


class Filtered(Points):
    """All three batches, and an empty one between them."""

    def test_dataloader(self):
        batches = list(super().test_dataloader())
        return DataLoader([*batches[:1], [part[:0] for part in batches[0]], *batches[1:]], None)


@pytest.mark.parametrize("kind", [Named, Streamed, Filtered])
def test_batches_of_other_kinds_are_counted_alike(kind):
    sweep_of("magnitudes").check_context(made_context(2, data=kind()))
    wanted = measure(made_context(2), RECIPES[:1], FACTORS, [2])
    found = measure(made_context(2, data=kind()), RECIPES[:1], FACTORS, [2])
    assert [one.accuracy for one in found] == [one.accuracy for one in wanted]
