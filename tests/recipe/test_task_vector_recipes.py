"""Aggregates of task vectors, Model Stock, Fisher and RegMean in recipes."""

import copy
from dataclasses import replace

import pytest
import torch
from lightning.pytorch import LightningDataModule
from strangers import image_batches, quiet_trainer, randomise
from tiny_contexts import Points, made_context, trained

from lightning_merge import (
    DARE,
    TIES,
    ActivationMatching,
    Average,
    Context,
    Fisher,
    ImageClassifier,
    ModelStock,
    Recipe,
    RegMean,
    TaskArithmetic,
    average,
    reset_batchnorm,
    task_arithmetic,
    task_vector,
    ties,
)
from lightning_merge.aggregate import (
    dare,
    diagonal_fisher,
    fisher_average,
    gram_matrices,
    model_stock,
    regmean,
)
from lightning_merge.errors import ConfigError
from lightning_merge.measure.outcome import run_recipe


@pytest.fixture(scope="module")
def start():
    """A network that has learned a little: with BatchNorm, and counters that are not 0."""
    return trained(50, steps=4, norm=True)


@pytest.fixture
def pretrained(start, tmp_path):
    torch.save(start.state_dict(), tmp_path / "pretrained.pt")
    return str(tmp_path / "pretrained.pt")


def tuned(start, seed, steps=15):
    module = copy.deepcopy(start).train()
    optimizer = torch.optim.Adam(module.parameters(), lr=0.02)
    x, y = Points()._points(20 + seed, 64).dataset.tensors
    for _ in range(steps):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(module(x), y).backward()
        optimizer.step()
    return module.eval()


@pytest.fixture
def context(start):
    made = made_context(3, Points(testable=False), norm=True)
    return replace(made, states=[tuned(start, seed).state_dict() for seed in range(3)])


def same(module, expected):
    state = module.state_dict()
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        assert value.dtype == state[name].dtype
        torch.testing.assert_close(state[name], value)


def test_each_is_its_function(start, pretrained, context):
    p = start.state_dict()
    vectors = [task_vector(state, p) for state in context.states]
    same(
        TaskArithmetic(pretrained, scale=0.4)(context.states, context).module,
        task_arithmetic(p, vectors, 0.4),
    )
    same(
        TIES(pretrained, 0.3, scale=0.7)(context.states, context).module, ties(p, vectors, 0.7, 0.3)
    )
    dropped = dare(vectors, 0.6, torch.Generator().manual_seed(context.seed))
    same(
        DARE(pretrained, 0.6, scale=0.2)(context.states, context).module,
        task_arithmetic(p, dropped, 0.2),
    )
    both = DARE(pretrained, 0.6, density=0.3, scale=0.2)(context.states, context).module
    same(both, ties(p, dropped, 0.2, 0.3))
    same(ModelStock(pretrained)(context.states, context).module, model_stock(p, context.states))
    batches = Points().statistics_dataloader()
    grams = [gram_matrices(context.build(state), batches) for state in context.states]
    same(RegMean(0.5)(context.states, context).module, regmean(context.states, grams, 0.5))
    fishers = [diagonal_fisher(context.build(state), batches) for state in context.states]
    same(
        Fisher(labels_per_example=None)(context.states, context).module,
        fisher_average(context.states, fishers),
    )


def test_a_start_of_16_bits_rounds_no_merge(start, tmp_path, context):
    narrow = {
        name: value.bfloat16() if value.is_floating_point() else value
        for name, value in start.state_dict().items()
    }
    torch.save(narrow, tmp_path / "narrow.pt")
    # At a third of the sum of three vectors, where it started does not matter.
    third = TaskArithmetic(str(tmp_path / "narrow.pt"), scale=1 / 3)
    mean = average(context.states)
    for name, value in third(context.states, context).module.named_parameters():
        torch.testing.assert_close(value.detach(), mean[name])


def test_fisher_of_several_labels_is_of_answers_of_yes_and_no(context):
    module = copy.deepcopy(context.module)
    module.task = "multilabel"
    several = replace(context, module=module)
    batches = Points().statistics_dataloader()
    fishers = [
        diagonal_fisher(context.build(state), batches, independent=True) for state in context.states
    ]
    found = Fisher(labels_per_example=None)(several.states, several).module
    same(found, fisher_average(context.states, fishers))


@pytest.mark.parametrize("reset", [False, True])
def test_the_scale_is_the_best_on_held_out_data(start, pretrained, context, reset):
    candidates = [0.0, 0.15, 0.4, 0.9]
    p = start.state_dict()
    vectors = [task_vector(state, p) for state in context.states]
    right = {}
    for scale in candidates:
        module = context.build(task_arithmetic(p, vectors, scale))
        if reset:
            reset_batchnorm(module, Points().statistics_dataloader())
        module.eval()
        with torch.no_grad():
            hits = [(module(x).argmax(1) == y).sum() for x, y in Points().val_dataloader()]
        right[scale] = int(sum(hits)) / 70
    assert len(set(right.values())) > 1
    best = max(right, key=right.get)
    aggregate = TaskArithmetic(pretrained, candidates=list(reversed(candidates)))
    recipe = Recipe("searched", aggregate, recalibrate="batchnorm" if reset else None)
    made = recipe(context)
    (choice,) = made.choices
    assert choice.details["scale"] == best
    assert choice.details["scores"] == pytest.approx(
        {f"{scale:g}": value for scale, value in right.items()}
    )
    assert choice.details["examples"] == made.labelled_examples == 70
    weights = dict(made.module.named_parameters())
    for name, value in task_arithmetic(p, vectors, best).items():
        if name in weights:
            torch.testing.assert_close(weights[name].data, value)


def test_every_vector_is_read_once_for_all_candidates(pretrained, context, monkeypatch):
    from lightning_merge.aggregate import LazyTaskVector

    reads = []
    original = LazyTaskVector.__getitem__
    monkeypatch.setattr(
        LazyTaskVector, "__getitem__", lambda self, name: reads.append(name) or original(self, name)
    )
    TaskArithmetic(pretrained)(context.states, context)
    floats = [v for v in context.states[0].values() if v.is_floating_point()]
    assert len(reads) == len(floats) * len(context.states)


def test_of_equal_scales_the_smallest_is_taken(start, pretrained, context):
    copies = replace(context, states=[start.state_dict()] * 3)
    made = TaskArithmetic(pretrained, candidates=[0.5, 0.1, 1.0])(copies.states, copies)
    assert made.choices[0].details["scale"] == 0.1


def test_less_can_be_better(pretrained, context):
    made = TaskArithmetic(pretrained, metric="val_loss", mode="min")(context.states, context)
    (choice,) = made.choices
    scores = choice.details["scores"]
    assert scores[f"{choice.details['scale']:g}"] == min(scores.values())
    assert choice.details["score"] == "val_loss"


def test_the_result_says_what_was_chosen_and_seen(pretrained, context):
    outcome = run_recipe(Recipe("TIES", TIES(pretrained)), replace(context, data=Points()))
    assert outcome.measurement.train_examples == 70
    assert outcome.measurement.chosen.startswith("scale ")
    assert outcome.choices[0]["scores"].keys() == {f"{step / 10:g}" for step in range(11)}


def test_what_is_missing_or_wrong_is_said_at_once(pretrained, context):
    with pytest.raises(ConfigError, match="pretrained"):
        Recipe("ties", TIES(scale=1.0)).check_context(context)
    with pytest.raises(ConfigError, match="pretrained"):
        Recipe("stock", ModelStock()).check_context(context)
    with pytest.raises(ConfigError, match="leave `align` out"):
        Recipe("ties", TIES(pretrained), align=ActivationMatching()).check_context(context)
    with pytest.raises(ConfigError, match="candidates"):
        TaskArithmetic(pretrained, candidates=[])
    without = replace(context, data=Points(validated=False))
    with pytest.raises(ConfigError, match="held-out"):
        Recipe("ties", TIES(pretrained)).check_context(without)
    Recipe("ties", TIES(pretrained, scale=1.0)).check_context(without)
    Recipe("average", Average()).check_context(without)


class Images(LightningDataModule):
    def train_dataloader(self):
        return image_batches(1, seed=1)

    def test_dataloader(self):
        return image_batches(1, seed=3)


def test_our_classifier_is_measured_though_its_channels_come_last():
    def made(seed):
        made = ImageClassifier("resnet20_cifar", 4, 3, model_kwargs={"depth": 1})
        return randomise(made, seed).state_dict()

    module = ImageClassifier("resnet20_cifar", 4, 3, model_kwargs={"depth": 1})
    states = [made(0), made(1)]
    context = Context(module, states, ["a", "b"], Images(), quiet_trainer, progress=False)
    fishers = []
    for state in states:
        plain = ImageClassifier("resnet20_cifar", 4, 3, model_kwargs={"depth": 1})
        plain.load_state_dict(state)
        network = plain.network.to(memory_format=torch.contiguous_format)
        fisher = diagonal_fisher(network, image_batches(1, seed=1))
        fishers.append({f"network.{name}": value for name, value in fisher.items()})
    found = Fisher(labels_per_example=None)(states, context).module
    expected = fisher_average(states, fishers)
    for name, value in expected.items():
        torch.testing.assert_close(found.state_dict()[name], value, rtol=1e-3, atol=1e-4)
    grams = [gram_matrices(context.build(state), image_batches(1, seed=1)) for state in states]
    regressed = RegMean()(states, context).module.state_dict()
    name = "network.layer2.0.conv1.weight"
    torch.testing.assert_close(regressed[name], regmean(states, grams)[name])
    assert not torch.equal(regressed[name], average(states)[name])
