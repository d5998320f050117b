"""Everything that reads batches: those without an example count for nothing, NaN is refused."""

import copy

import pytest
import torch
from torch import nn

from lightning_merge import (
    ActivationMatching,
    CCAMatching,
    LearnedMatching,
    PermutationSpec,
    average,
    repair,
    reset_batchnorm,
    zip_it,
)
from lightning_merge.aggregate import diagonal_fisher, gram_matrices
from lightning_merge.errors import AlignmentError, DataError, MergeError
from lightning_merge.loaders import example_inputs


def network(seed: int, norm: bool = True) -> nn.Module:
    torch.manual_seed(seed)
    norms = [nn.BatchNorm2d(6)] if norm else []
    return nn.Sequential(
        nn.Conv2d(2, 6, 3),
        *norms,
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 3),
    ).eval()


def spec_of(model, **options):
    return PermutationSpec.from_model(model, torch.zeros(2, 2, 6, 6), **options)


def reset(batches):
    model = network(0)
    reset_batchnorm(model, batches)
    return model.state_dict()


def repaired(batches):
    parents = [network(seed, norm=False) for seed in (0, 1)]
    merged = copy.deepcopy(parents[0])
    merged.load_state_dict(average([one.state_dict() for one in parents]))
    repair(merged, *parents, batches)
    return merged.state_dict()


def aligned(matching, **options):
    a, b = network(0), network(1)
    return lambda batches: matching.align(spec_of(a, **options), a, b, batches)


READERS = {
    "reset": reset,
    "repair": repaired,
    "activations": aligned(ActivationMatching()),
    "cca": aligned(CCAMatching(gamma=0.3)),
    "learned": aligned(LearnedMatching(steps=4), symmetries="all"),
    "learned from weights": aligned(LearnedMatching("weights", steps=4), symmetries="all"),
    "zip": lambda batches: zip_it(
        spec_of(network(0)), network(0), network(1), batches
    ).state_dict(),
    "fisher": lambda batches: diagonal_fisher(network(0), batches),
    "regmean": lambda batches: gram_matrices(network(0), batches),
}


@pytest.fixture
def batches():
    images = torch.randn(24, 2, 6, 6, generator=torch.Generator().manual_seed(3))
    return list(images.split(12))


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_an_empty_batch_changes_nothing(reader, place, batches):
    expected = READERS[reader](batches)
    found = READERS[reader]([*batches[:place], batches[0][:0], *batches[place:]])
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("reader", READERS)
def test_nothing_but_empty_batches_is_refused(reader, batches):
    with pytest.raises(MergeError, match=r"there (was|are) no|check the data"):
        READERS[reader]([batches[0][:0]])


def test_the_first_example_is_that_of_the_first_batch_with_any(batches):
    found = example_inputs([batches[0][:0], batches[1]], "cpu")
    assert torch.equal(found, batches[1][:2])
    for empty in ([], [batches[0][:0]]):
        with pytest.raises(DataError, match="there is no example"):
            example_inputs(empty, "cpu")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("reader", READERS)
def test_images_that_are_not_finite_are_refused(reader, bad, batches):
    spoiled = batches[1].clone()
    spoiled[3, 0, 2, 2] = bad
    with pytest.raises(MergeError, match=r"NaN|not finite"):
        READERS[reader]([batches[0], spoiled])


def test_learning_again_and_again_from_an_iterator_is_refused(batches):
    with pytest.raises(AlignmentError, match="an iterator can be read once"):
        READERS["learned"](iter(batches))


def test_a_single_example_behind_other_batches_is_not_learned_from():
    torch.manual_seed(0)
    a, b = (
        nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)).eval()
        for _ in range(2)
    )
    images = torch.randn(17, 4)
    spec = PermutationSpec.from_model(a, images, symmetries="all")
    found, expected = (
        LearnedMatching("weights", 3).align(spec, a, b, images[:count].split(8))
        for count in (17, 16)
    )
    assert all(torch.equal(found[name], expected[name]) for name in expected)
