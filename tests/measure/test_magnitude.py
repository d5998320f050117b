"""Weights that are multiplied: against networks that are multiplied by hand, one by one."""

import pytest
import torch
from strangers import quiet_trainer
from tiny_pools import Points, made_pool
from torch.utils.data import DataLoader, TensorDataset

from lightning_merge.aggregate import average
from lightning_merge.errors import ConfigError
from lightning_merge.measure.sweeps.weight_scaling import check_classes, measure_scaling
from lightning_merge.recipe.aggregates import (
    Average,
    FeaturesEnsemble,
    GreedyFeaturesEnsemble,
    GreedyLogitsEnsemble,
    GreedySoup,
    LogitsEnsemble,
)
from lightning_merge.recipe.recipe import Recipe
from lightning_merge.recipe.selection import Proposal, Select
from lightning_merge.report.summary import AVERAGE
from lightning_merge.study import magnitude
from lightning_merge.study.plan import check_magnitudes

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


def multiplied(pool, state, factor):
    """A network whose parameters, and nothing else, are `factor` times as large."""
    module = pool.build(state)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(factor)
    return module.eval()


def by_hand(pool, size, factor):
    """The logits of each method for the test points, from multiplied ingredients."""
    x, _ = Points().test_dataloader().dataset.tensors
    greedy = GreedySoup().search(list(pool.states[:size]), pool.first(size))
    found = {}
    with torch.no_grad():
        for prefix, states in (("", pool.states[:size]), ("greedy ", greedy.members)):
            networks = [multiplied(pool, state, factor) for state in states]
            soup = pool.build(average([network.state_dict() for network in networks])).eval()
            found["greedy" if prefix else "soup"] = soup(x)
            found[f"{prefix}logits"] = torch.stack([network(x) for network in networks]).mean(0)
            features = torch.stack([network.net[:-1](x) for network in networks]).mean(0)
            found[f"{prefix}features"] = soup.net[-1](features)
            if not prefix:
                found["features*"] = networks[0].net[-1](features)
                found[AVERAGE] = [network(x) for network in networks]
    return found


def measure(pool, recipes, factors, sizes):
    def weights(name, size):
        recipe = next(recipe for recipe in recipes if recipe.name == name)
        return recipe(pool.first(size))[0].state_dict()

    return measure_scaling(pool, recipes, factors, sizes, weights)


def share(logits, targets):
    return float((logits.argmax(1) == targets).double().mean())


@pytest.mark.parametrize("norm", [False, True])
def test_every_method_at_every_factor_by_hand(norm):
    pool = made_pool(4, norm=norm)
    _, targets = Points().test_dataloader().dataset.tensors
    found = {(one.name, one.pool_size): one for one in measure(pool, RECIPES, FACTORS, [2, 4])}
    names = [AVERAGE, *(recipe.name for recipe in RECIPES)]
    assert list(found) == [(name, size) for size in (2, 4) for name in names]
    for index, factor in enumerate(FACTORS):
        for size in (2, 4):
            wanted = by_hand(pool, size, factor)
            each = [share(logits, targets) for logits in wanted.pop(AVERAGE)]
            wanted = {name: share(logits, targets) for name, logits in wanted.items()}
            wanted[AVERAGE] = sum(each) / len(each)
            got = {name: found[name, size].accuracy[index] for name in names}
            assert got == pytest.approx(wanted, abs=1e-9)
    # What is multiplied does not answer as before, or nothing would have been tested.
    assert any(len(set(one.accuracy)) > 1 for one in found.values())
    for one in found.values():
        assert one.factor == FACTORS
        assert one.finite == [1.0] * 3


def test_factor_one_gives_the_accuracy_of_the_test():
    from lightning_merge.measure.outcome import run_recipe

    pool = made_pool(3)
    found = {one.name: one for one in measure(pool, RECIPES, [1.0], [3])}
    for recipe in RECIPES:
        tested = run_recipe(recipe, pool).measurement.accuracy
        assert found[recipe.name].accuracy[0] == pytest.approx(tested)


def test_batches_are_those_of_the_test_set():
    pool = made_pool(3)
    found = {one.name: one for one in measure(pool, RECIPES, [1.0, 2.0], [3])}
    # 80 points in batches of 32.
    for name in ("soup", "logits"):
        (first, _) = found[name].by_batch
        assert len(first) == 3
        assert (32 * first[0] + 32 * first[1] + 16 * first[2]) / 80 == pytest.approx(
            found[name].accuracy[0]
        )
    assert found["features"].by_batch == []


def test_each_network_is_asked_once_for_each_batch(monkeypatch):
    pool = made_pool(4)
    asked = []
    real = magnitude._Network.__call__

    def counting(self, inputs):
        if len(inputs) and inputs.shape[1] == 6:
            asked.append(self)
        return real(self, inputs)

    monkeypatch.setattr(magnitude._Network, "__call__", counting)
    measure(pool, RECIPES, [0.5, 1.0], [2, 4])
    # Four ingredients, and two soups for each of two pools; three batches, two factors.
    assert len(set(asked)) == 4 + 2 * 2
    assert len(asked) == (4 + 2 * 2) * 3 * 2


def test_the_ingredients_are_left_as_they_were():
    pool = made_pool(2)
    before = [{name: value.clone() for name, value in state.items()} for state in pool.states]
    measure(pool, RECIPES, [3.0], [2])
    for state, kept in zip(pool.states, before, strict=True):
        assert all(torch.equal(state[name], kept[name]) for name in kept)


def test_linear_networks_merge_and_ensemble_alike_at_every_factor():
    # Eq. 3 and 5: where all is linear, magnitude makes no difference between the two.
    pool = made_pool(3)
    pool.module.net = torch.nn.Linear(6, 3)
    pool.states = [torch.nn.Linear(6, 3).state_dict() for _ in range(3)]
    pool.states = [{f"net.{name}": v for name, v in state.items()} for state in pool.states]
    recipes = [Recipe("soup", Average()), Recipe("logits", LogitsEnsemble())]
    _, soup, logits = measure(pool, recipes, [0.01, 1.0, 1e4], [3])
    assert soup.accuracy == logits.accuracy
    assert soup.by_batch == logits.by_batch


def test_logits_that_are_no_numbers_are_counted():
    pool = made_pool(2)
    (_, soup) = measure(pool, RECIPES[:1], [1.0, 1e15], [2])
    assert soup.finite[0] == 1.0
    assert soup.finite[1] == 0.0


def test_an_aligned_ensemble_answers_as_one_that_is_not():
    from lightning_merge.align import WeightMatching

    pool = made_pool(3)
    recipes = [
        Recipe("logits", LogitsEnsemble()),
        Recipe("aligned", LogitsEnsemble(), align=WeightMatching()),
    ]
    _, plain, aligned = measure(pool, recipes, [0.5, 2.0], [3])
    assert plain.accuracy == aligned.accuracy


def test_an_ensemble_that_is_recalibrated_is_asked_as_it_is():
    pool = made_pool(3, norm=True)
    recipe = Recipe("reset", LogitsEnsemble(), recalibrate="batchnorm")
    _, found = measure(pool, [recipe], [1.0], [3])
    (metrics,) = quiet_trainer().test(recipe(pool)[0], datamodule=pool.data, verbose=False)
    assert found.accuracy[0] == pytest.approx(metrics["test_acc"])


def test_an_ensemble_of_selected_ingredients_is_of_those():
    class First(Select):
        def propose(self, states, pool):
            return Proposal([[0, 1]], {})

    pool = made_pool(4)
    recipes = [Recipe("all", LogitsEnsemble()), Recipe("two", LogitsEnsemble(), select=First())]
    _, everyone, picked = measure(pool, recipes, FACTORS, [4])
    _, wanted = measure(pool, recipes[:1], FACTORS, [2])
    assert picked.accuracy == pytest.approx(wanted.accuracy)
    assert picked.accuracy != everyone.accuracy


def test_the_trainers_limit_holds():
    pool = made_pool(2)
    pool.trainer = lambda **changes: quiet_trainer(limit_test_batches=1, **changes)
    _, soup = measure(pool, RECIPES[:1], [1.0], [2])
    assert len(soup.by_batch[0]) == 1
    # Of three batches 0.6 are one: Lightning rounds down.
    pool.trainer = lambda **changes: quiet_trainer(limit_test_batches=0.6, **changes)
    _, soup = measure(pool, RECIPES[:1], [1.0], [2])
    assert len(soup.by_batch[0]) == 1


class Labels(Points):
    """Each point has several labels."""

    def test_dataloader(self):
        x, y = super().test_dataloader().dataset.tensors
        labels = torch.nn.functional.one_hot(y, 3).float()
        return DataLoader(TensorDataset(x, labels), batch_size=32)


def test_what_is_refused():
    pool = made_pool(2, data=Labels())
    with pytest.raises(ConfigError, match="needs one class"):
        measure(pool, RECIPES[:1], [1.0], [2])
    with pytest.raises(ConfigError, match="needs one class"):
        check_classes(pool)
    for factors in ([0.0], [-1.0], [1.0, 1.0], [float("nan")], [float("inf")]):
        with pytest.raises(ConfigError, match="positive numbers"):
            check_magnitudes(factors)
