"""Copies of a network that its module carries along: running means and teachers."""

import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from lightning_merge.align.matching.cca import CCAMatching
from lightning_merge.align.matching.transport_matching import TransportMatching
from lightning_merge.align.matching.weight import WeightMatching
from lightning_merge.align.zipping.zip_networks import zip_it
from lightning_merge.symmetry.spec import PermutationSpec


def convolutional():
    return nn.Sequential(
        nn.Conv2d(1, 6, 3),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 5, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(5 * 16, 7),
        nn.ReLU(),
        nn.Linear(7, 3),
    )


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(64, 8)
        self.norm = nn.LayerNorm(8)
        self.up = nn.Linear(8, 12)
        self.down = nn.Linear(12, 8)
        self.last = nn.LayerNorm(8)
        self.head = nn.Linear(8, 3)

    def forward(self, images):
        x = self.embed(images.flatten(1))
        x = x + self.down(self.up(self.norm(x)).relu())
        return self.head(self.last(x))


class Carrying(nn.Module):
    """A network with its running mean, and a teacher."""

    def __init__(self, network):
        super().__init__()
        self.network = network
        self.average = AveragedModel(network)
        self.teacher = copy.deepcopy(network)

    def forward(self, images):
        return self.network(images)


def carrying(network, seed=0):
    torch.manual_seed(seed)
    made = Carrying(network)
    with torch.no_grad():
        # The copies follow the network: in its order, not equal to it.
        for tensor in made.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(0.1 * torch.rand_like(tensor))
    return made.double().eval()


def answers(model, images):
    return [part(images) for part in (model.network, model.average, model.teacher)]


def loaded(model, state):
    other = copy.deepcopy(model)
    other.load_state_dict(state)
    return other


@pytest.fixture
def images():
    return torch.randn(16, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("symmetries", ["permutation", "all"])
@pytest.mark.parametrize("build", [convolutional, Residual])
def test_copies_move_with_the_network_and_keep_their_function(build, symmetries, images):
    model = carrying(build())
    spec = PermutationSpec.from_model(model, images, symmetries=symmetries)
    maps = spec.random_maps(torch.Generator().manual_seed(1))
    moved = loaded(model, spec.transform(spec.canonical(model), maps))
    for own, other in zip(answers(model, images), answers(moved, images), strict=True):
        torch.testing.assert_close(other, own)
    first = next(iter(model.network.state_dict()))
    for part in ("average.module", "teacher"):
        name = f"{part}.{first}"
        assert not torch.equal(moved.state_dict()[name], model.state_dict()[name])


@pytest.mark.parametrize(
    "matching", [WeightMatching(), CCAMatching(gamma=0.0), TransportMatching(epsilon=0.0)]
)
def test_a_planted_order_is_undone_in_the_copies_too(matching, images):
    model = carrying(convolutional())
    spec = PermutationSpec.from_model(model, images)
    order = spec.random(torch.Generator().manual_seed(2))
    # Moved by the names alone, whatever the spec knows of copies.
    state = dict(model.state_dict())
    for part in ("network.", "average.module.", "teacher."):
        inside = {k: state[part + k.removeprefix("network.")] for k in state if k[:8] == "network."}
        bare = copy.copy(spec)
        bare.copies = []
        moved = bare.transform({**state, **inside}, order)
        state |= {part + k.removeprefix("network."): moved[k] for k in inside}
    other = loaded(model, state)
    for own, planted in zip(answers(model, images), answers(other, images), strict=True):
        torch.testing.assert_close(planted, own)
    found = matching.align(spec, model, other, [(images, torch.zeros(16))])
    mean = {k: (v + found[k]) / 2 for k, v in model.state_dict().items() if v.is_floating_point()}
    merged = loaded(model, {**model.state_dict(), **mean})
    for own, average in zip(answers(model, images), answers(merged, images), strict=True):
        torch.testing.assert_close(average, own)


def test_copies_come_into_the_scales_of_their_counterparts(images):
    model = carrying(Residual())
    spec = PermutationSpec.from_model(model, images, symmetries="all")
    maps = spec.random_maps(torch.Generator().manual_seed(2))
    other = loaded(model, spec.transform(spec.canonical(model), maps))
    found = WeightMatching(symmetries="all").align(spec, model, other, [])
    mean = {k: (v + found[k]) / 2 for k, v in model.state_dict().items()}
    for own, average in zip(
        answers(model, images), answers(loaded(model, mean), images), strict=True
    ):
        torch.testing.assert_close(average, own)


def test_copies_are_zipped_as_the_network_is(images):
    model = carrying(convolutional())
    spec = PermutationSpec.from_model(model, images)
    other = loaded(model, spec.apply(model, spec.random(torch.Generator().manual_seed(2))))
    zipped = zip_it(spec, model, other, [images])
    for own, found in zip(answers(model, images), answers(zipped, images), strict=True):
        torch.testing.assert_close(found, own)


def test_a_part_that_is_built_as_several_others_stays(images):
    class Blocks(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
            self.second = copy.deepcopy(self.first)
            self.spare = copy.deepcopy(self.first)

        def forward(self, given):
            return self.second(self.first(given.flatten(1)))

    model = Blocks().double()
    spec = PermutationSpec.from_model(model, images)
    assert spec.copies == []
    moved = spec.apply(model, spec.random())
    assert torch.equal(moved["spare.0.weight"], model.spare[0].weight)


class Apart(nn.Module):
    """A body, its running mean, and heads: one for both, or one for each."""

    def __init__(self, shared, spare):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 9), nn.ReLU(), nn.Linear(9, 9))
        self.head = nn.Linear(9, 3)
        self.mean_body = copy.deepcopy(self.body)
        if not shared:
            self.mean_head = copy.deepcopy(self.head)
        if spare:
            # As wide as a hidden layer, but of something else.
            self.spare = nn.Linear(9, 9)

    def forward(self, images):
        return self.head(self.body(images).relu())


@pytest.mark.parametrize("spare", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_parts_whose_readers_are_not_known_stay(shared, spare, images):
    model = Apart(shared, spare).double()
    spec = PermutationSpec.from_model(model, images)
    moved = loaded(model, spec.apply(model, spec.random(torch.Generator().manual_seed(3))))
    torch.testing.assert_close(moved(images), model(images))
    if spare:
        assert torch.equal(moved.spare.weight, model.spare.weight)
    if shared:
        assert torch.equal(moved.mean_body[1].weight, model.mean_body[1].weight)
    else:
        assert not torch.equal(moved.mean_body[1].weight, model.mean_body[1].weight)
        expected = model.mean_head(model.mean_body(images).relu())
        torch.testing.assert_close(moved.mean_head(moved.mean_body(images).relu()), expected)


def test_a_state_without_the_copies_is_moved(images):
    model = carrying(convolutional())
    spec = PermutationSpec.from_model(model, images)
    order = spec.random(torch.Generator().manual_seed(4))
    alone = {k: v for k, v in model.state_dict().items() if not k.startswith("teacher.")}
    moved, whole = spec.apply(alone, order), spec.apply(model, order)
    assert moved.keys() == alone.keys()
    assert all(torch.equal(moved[name], whole[name]) for name in moved)
