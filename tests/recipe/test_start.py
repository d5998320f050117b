"""Fine-tuning and NP Merge that start from a recalibrated mean."""

import pytest
import torch
from lightning.pytorch import seed_everything
from strangers import quiet_trainer
from tiny_contexts import Learner, Points, trained

from lightning_merge import Average, CCAMatching, Context, FineTune, NPMerge, Recipe
from lightning_merge.errors import ConfigError
from lightning_merge.measure.measurement import Measurement
from lightning_merge.recipe.build import build_recipe
from lightning_merge.recipe.recalibrated_start import moved_to_start
from lightning_merge.recipe.recalibration import recalibration_of
from lightning_merge.report.against_fine_tuning import duels
from lightning_merge.report.leader_table import _described


def context_of(norm=False, count=2):
    states = [trained(seed, steps=8, norm=norm).state_dict() for seed in range(count)]
    names = [f"network {index}" for index in range(count)]
    data = Points(testable=False)
    return Context(Learner(norm=norm), states, names, data, quiet_trainer, progress=False)


def recalibrated(context, name, weights=None):
    return Recipe("mean", Average(weights), recalibrate=name)(context).module.state_dict()


def measured(method, accuracy):
    known = {"seconds": 1.0, "parameters": 1, "seed": 0, "test_examples": 10}
    return Measurement(method=method, kind="merge", accuracy=accuracy, train_examples=0, **known)


def steady(parameters):
    """An optimizer that changes nothing."""
    return torch.optim.SGD(parameters, lr=0.0)


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("count", [2, 3])
def test_training_that_changes_nothing_leaves_the_recalibrated_mean(norm, count):
    context = context_of(norm, count)
    names = ["batchnorm", "least-squares"] if norm else ["repair", "outputs", "least-squares"]
    plain = recalibrated(context, None)
    for name in names:
        expected = recalibrated(context, name)
        parameters = [one for one, _ in context.module.named_parameters()]
        moved = [one for one in expected if not torch.allclose(expected[one], plain[one])]
        assert moved
        for kind in (FineTune, NPMerge):
            made = Recipe("one", kind(max_epochs=1, optimizer=steady, start=name))(context)
            found = made.module.state_dict()
            for one in parameters:
                torch.testing.assert_close(found[one], expected[one], rtol=1e-5, atol=1e-6)


def test_shares_that_are_not_equal_give_the_mean_that_is_recalibrated():
    context = context_of(count=3)
    expected = recalibrated(context, "least-squares", [0.5, 0.25, 0.25])
    tuned = FineTune(1, steady, weights=[2, 1, 1], start="least-squares")
    merged = NPMerge(max_epochs=1, alpha=0.5, optimizer=steady, start="least-squares")
    for aggregate in (tuned, merged):
        found = Recipe("one", aggregate)(context).module.state_dict()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)


def test_ingredients_keep_their_differences_and_take_the_statistics_of_the_start():
    context = context_of(norm=True)
    start = recalibration_of("least-squares")
    moved = moved_to_start(context.states, None, start, context).value
    expected = recalibrated(context, "least-squares")
    parameters = {name for name, _ in context.module.named_parameters()}
    for name, value in expected.items():
        first, second = (state[name] for state in moved)
        if name in parameters:
            before = context.states[0][name] - context.states[1][name]
            torch.testing.assert_close(first - second, before, rtol=1e-5, atol=1e-6)
        else:
            assert torch.equal(first, value)
            assert torch.equal(second, value)


def test_fine_tuning_is_that_of_the_recalibrated_mean_by_hand():
    context = context_of()
    aggregate = FineTune(2, lambda p: torch.optim.SGD(p, lr=0.1), start="least-squares")
    found = Recipe("one", aggregate)(context).module.state_dict()
    module = context.build(recalibrated(context, "least-squares"))
    seed_everything(context.seed)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for _ in range(2):
        for batch in context.data.train_dataloader():
            optimizer.zero_grad()
            module.training_step(batch, 0).backward()
            optimizer.step()
    for name, value in module.state_dict().items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [FineTune, NPMerge])
def test_a_start_that_an_earlier_recipe_found_changes_nothing(kind):
    learned = {"max_epochs": 1, "learning_rates": [0.001, 0.1], "start": "least-squares"}
    fresh, shared = context_of(), context_of()
    first = Recipe("other", FineTune(max_epochs=1, start="least-squares"))(shared)
    alone, after = (Recipe("one", kind(**learned))(context) for context in (fresh, shared))
    for name, value in alone.module.state_dict().items():
        assert torch.equal(after.module.state_dict()[name], value)
    assert first.labelled_examples == 96
    assert after.labelled_examples == 96 + 70
    states = shared.states
    start = recalibration_of("least-squares")
    assert moved_to_start(states, None, start, shared).saved > 0


def test_a_start_is_checked_as_a_recalibration_is():
    context = context_of()
    with pytest.raises(ConfigError, match=r"CCAMatching changes that.*leave `start` out"):
        Recipe("one", NPMerge(start="least-squares"), align=CCAMatching()).check_context(context)
    with pytest.raises(ConfigError, match=r"no BatchNorm statistics: write `start: repair`"):
        Recipe("one", FineTune(start="batchnorm")).check_context(context)
    with pytest.raises(ConfigError, match="least-squares"):
        NPMerge(start="least_square")


def test_a_start_is_an_option_of_a_configuration_and_told_apart_in_reports():
    plain = [
        {
            "name": kind + (start or ""),
            "aggregate": {"class_path": kind, "init_args": {"start": start}},
        }
        for kind in ("NPMerge", "FineTune")
        for start in (None, "least-squares")
    ]
    assert [build_recipe(one).aggregate.start is None for one in plain] == [True, False] * 2
    assert [_described(one) for one in plain[:2]] == ["NPMerge", "NPMerge from least-squares"]
    accuracies = (0.4, 0.6, 0.5, 0.9)
    rows = [measured(one["name"], got) for one, got in zip(plain, accuracies, strict=True)]
    found = {(one.np_merge, one.fine_tuning): one.difference for one in duels(rows, plain)}
    assert found == pytest.approx(
        {
            ("NPMerge", "FineTune"): -0.1,
            ("NPMergeleast-squares", "FineTuneleast-squares"): -0.3,
        }
    )
