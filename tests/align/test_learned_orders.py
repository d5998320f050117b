"""The order of units as something that gradients reach."""

import copy

import pytest
import torch
from networks import Attention, ResNet20
from strangers import randomise
from torch import nn

from lightning_merge.align import LearnedMaps, LearnedMatching, PermutationSpec
from lightning_merge.align.matching.learned import normalising_by_batch
from lightning_merge.align.matching.learned_orders import (
    LearnedOrders,
    free_orders,
    sinkhorn,
    straight_through,
)
from lightning_merge.errors import AlignmentError

IMAGES = torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def pair():
    """A small residual network, and itself with its units in another order."""
    torch.manual_seed(0)
    first = ResNet20(4).eval()
    randomise(first.bn1, 1)
    spec = PermutationSpec.from_model(first, IMAGES[:2], symmetries="all")
    second = copy.deepcopy(first)
    order = {g.name: g.random(torch.Generator().manual_seed(2)) for g in spec.groups}
    second.load_state_dict(spec.apply(first, order))
    return spec, first, second, spec.inverse(order)


def test_sinkhorn_gives_doubly_stochastic_matrices_and_cold_ones_permutations():
    torch.manual_seed(1)
    logits = torch.randn(7, 7, dtype=torch.float64)
    soft = sinkhorn(logits, 200)
    assert (soft > 0).all()
    for axis in (0, 1):
        torch.testing.assert_close(soft.sum(axis), torch.ones(7, dtype=torch.float64))
    order = torch.randperm(7)
    cold = torch.nn.functional.one_hot(order).double()
    torch.testing.assert_close(sinkhorn(20 * cold), cold, rtol=0, atol=1e-6)


def test_straight_through_is_the_assignment_and_hands_gradients_on():
    torch.manual_seed(2)
    logits = torch.randn(5, 5, requires_grad=True)
    hard = straight_through(logits)
    assert sorted(hard.argmax(1).tolist()) == list(range(5))
    torch.testing.assert_close(hard.sort(1).values[:, :4], torch.zeros(5, 4), rtol=0, atol=1e-6)
    weight = torch.randn(5, 5)
    (hard * weight).sum().backward()
    assert torch.equal(logits.grad, weight)


def test_gradients_of_sinkhorn_orders_are_those_of_finite_differences(pair):
    spec, first, _, _ = pair
    other = randomise(ResNet20(4), 3).eval()
    states = [
        {k: v.double() if v.is_floating_point() else v for k, v in m.state_dict().items()}
        for m in (first, other)
    ]
    maps = LearnedMaps(spec, *states, spec.identity(), "sinkhorn")
    network, x = normalising_by_batch(copy.deepcopy(first).double()), IMAGES[:8].double()

    def loss():
        return torch.func.functional_call(network, maps.merged(0.4), (x,)).logsumexp(1).sum()

    parameters = list(maps.orders.logits)
    gradients = torch.autograd.grad(loss(), parameters)
    generator = torch.Generator().manual_seed(4)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        step = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            parameter += 1e-6 * step
            above = loss()
            parameter -= 2e-6 * step
            below = loss()
            parameter += 1e-6 * step
        expected = (above - below) / 2e-6
        torch.testing.assert_close((gradient * step).sum(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("units", "lr"), [("sinkhorn", 0.03), ("straight-through", 0.001)])
def test_a_planted_order_is_found_from_none(units, lr):
    torch.manual_seed(6)
    first = nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 4),
    )
    randomise(first, 7).eval()
    spec = PermutationSpec.from_model(first, IMAGES[:2], symmetries="all")
    order = {g.name: g.random(torch.Generator().manual_seed(8)) for g in spec.groups}
    second = spec.apply(first, order)
    learned = LearnedMaps(spec, first.state_dict(), second, spec.identity(), units)
    optimizer = torch.optim.Adam(learned.orders.parameters(), lr=lr)
    wanted, losses = first(IMAGES).detach(), []
    for _ in range(60):
        merged = torch.func.functional_call(first, learned.merged(0.5), (IMAGES,))
        loss = (merged - wanted).square().mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    if units == "sinkhorn":
        assert losses[-1] < 0.1 * losses[0]
    else:  # right from the first assignment on, and no gradient may spoil it
        assert max(losses) == losses[0]
    for name, found in learned.orders.found().items():
        assert torch.equal(found, spec.inverse(order)[name])
    moved = copy.deepcopy(first)
    moved.load_state_dict(spec.transform(second, learned.maps()))
    torch.testing.assert_close(moved(IMAGES), wanted, rtol=1e-4, atol=1e-4)


def test_learning_orders_lowers_the_loss_where_weights_say_nothing(pair):
    spec, first, _, planted = pair
    other = spec.apply(first, spec.inverse(planted))
    learned = LearnedMaps(spec, first.state_dict(), other, spec.identity(), "sinkhorn")
    for logits in learned.orders.logits:
        logits.data.zero_()
    optimizer = torch.optim.Adam(learned.orders.parameters(), lr=0.03)
    network, losses = normalising_by_batch(copy.deepcopy(first)), []
    wanted = network(IMAGES).detach()
    for _ in range(15):
        merged = torch.func.functional_call(network, learned.merged(0.5), (IMAGES,))
        loss = (merged - wanted).square().mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0]


def test_a_matching_learns_the_order_and_keeps_the_function(pair):
    spec, first, second, _ = pair
    for units in ("sinkhorn", "straight-through"):
        matching = LearnedMatching("weights", steps=3, units=units)
        state = matching.align(spec, first, second, [IMAGES])
        moved = copy.deepcopy(first)
        moved.load_state_dict(state)
        torch.testing.assert_close(moved(IMAGES), second(IMAGES), rtol=1e-3, atol=1e-3)
    with pytest.raises(AlignmentError, match="units is 'soft'"):
        LearnedMatching(units="soft")


def test_heads_and_what_matrices_mix_keep_their_order():
    torch.manual_seed(5)
    network = Attention().eval()
    spec = PermutationSpec.from_model(network, torch.randn(2, 6, 5), symmetries="all")
    free = {group.name for group in free_orders(spec)}
    assert free < {group.name for group in spec.groups}
    state = network.state_dict()
    assert not list(LearnedOrders(spec, state, state, "fixed").parameters())
