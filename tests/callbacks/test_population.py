"""PAPA: members in turn and on ranks, against loops written by hand."""

import copy
import sys
from functools import partial

import pytest
import torch
from lightning.pytorch import LightningModule, seed_everything
from strangers import quiet_trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from two_members import Member, main, member, part
from two_processes import run_on_two

from lightning_merge.callbacks import Population, PopulationAverage
from lightning_merge.errors import ConfigError


class Drawing(LightningModule):
    """Draws as it trains: dropout, and the order of its data."""

    def __init__(self):
        super().__init__()
        layers = [nn.Linear(6, 12), nn.BatchNorm1d(12), nn.Dropout(0.3), nn.ReLU()]
        self.net = nn.Sequential(*layers, nn.Linear(12, 3))

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.02)


def fit(seed, callbacks=(), epochs=2):
    seed_everything(seed)
    module = Drawing()
    x = torch.randn(40, 6)
    data = DataLoader(TensorDataset(x, x[:, :3].argmax(1)), batch_size=8, shuffle=True)
    quiet_trainer(max_epochs=epochs, callbacks=list(callbacks)).fit(module, data)
    return module.state_dict()


def in_turn(rate, every=3, epochs=(2, 2, 2)):
    population, found = Population(), {}

    def fit_member(seed):
        callback = PopulationAverage(every, rate, population)
        found[seed] = fit(seed, [callback], epochs[seed]), callback

    population.train([lambda s=seed: fit_member(s) for seed in range(len(epochs))])
    return [found[seed] for seed in range(len(epochs))]


def test_with_rate_0_each_member_trains_as_it_would_alone():
    for seed, (state, callback) in enumerate(in_turn(0.0)):
        alone = fit(seed)
        assert callback.meetings == 3
        assert all(torch.equal(state[name], value) for name, value in alone.items())


def test_the_next_turn_draws_none_of_a_members_numbers():
    population, found = Population(), {0: [], 1: []}

    def draw(seed):
        torch.manual_seed(seed)
        for _ in range(50):
            found[seed].append(torch.rand(()))
            population.meet([], lambda members: None)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        population.train([partial(draw, seed) for seed in found])
    finally:
        sys.setswitchinterval(before)
    for seed, numbers in found.items():
        alone = torch.rand(50, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(torch.stack(numbers), alone)


def test_with_rate_1_members_that_meet_last_are_one():
    (first, _), (second, _) = in_turn(1.0, every=5, epochs=(2, 2))
    for name, value in first.items():
        torch.testing.assert_close(value, second[name])
    assert not torch.equal(fit(0)["net.0.weight"], first["net.0.weight"])


def by_hand(rate, every=2):
    """Two members by plain torch: steps of SGD, and the pull after every second one."""
    members = [member().train() for _ in range(2)]
    parts = [list(part(rank)) for rank in range(2)]
    for step, batches in enumerate(zip(*parts, strict=True), start=1):
        for module, (x, y) in zip(members, batches, strict=True):
            module.zero_grad()
            nn.functional.cross_entropy(module(x), y).backward()
            with torch.no_grad():
                for parameter in module.parameters():
                    parameter -= 0.1 * parameter.grad
        if step % every == 0:
            states = [copy.deepcopy(module.state_dict()) for module in members]
            for module, own in zip(members, states, strict=True):
                pulled = {
                    name: (1 - rate) * value + rate * (states[0][name] + states[1][name]) / 2
                    if value.is_floating_point()
                    else value
                    for name, value in own.items()
                }
                module.load_state_dict(pulled)
    return [module.state_dict() for module in members]


def assert_same(found, wanted):
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)


def test_members_in_turn_are_those_of_a_loop_by_hand():
    population, found = Population(), {}

    def fit_member(rank):
        found[rank] = member()
        callback = PopulationAverage(2, 0.25, population)
        quiet_trainer(max_epochs=1, callbacks=[callback]).fit(found[rank], part(rank))

    population.train([lambda: fit_member(0), lambda: fit_member(1)])
    wanted = by_hand(0.25)
    for rank in range(2):
        assert_same(found[rank].state_dict(), wanted[rank])
    assert not torch.allclose(wanted[0]["net.0.weight"], by_hand(0.0)[0]["net.0.weight"])


def test_ranks_are_the_members_of_a_loop_by_hand(tmp_path):
    run_on_two(main, tmp_path)
    for rate in (0.0, 0.25):
        wanted = by_hand(rate)
        for rank in range(2):
            written = torch.load(tmp_path / f"{rate}" / f"member{rank}.ckpt")
            assert_same(written["state_dict"], wanted[rank])


def test_those_that_train_longer_meet_without_the_others():
    (_, first), (_, second), (_, third) = in_turn(0.5, every=5, epochs=(1, 3, 3))
    assert [first.meetings, second.meetings, third.meetings] == [1, 3, 3]


def test_steps_of_several_optimizers_lead_past_no_meeting():
    class Two(Drawing):
        """Optimizes manually, by two optimizers."""

        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            for optimizer in self.optimizers():
                optimizer.zero_grad()
                self.manual_backward(super().training_step(batch, batch_idx))
                optimizer.step()

        def configure_optimizers(self):
            return [torch.optim.SGD(layer.parameters(), lr=0.1) for layer in self.net[:2]]

    population, found = Population(), []

    def fit_member():
        found.append(PopulationAverage(3, 0.5, population))
        data = DataLoader([(torch.randn(6), torch.tensor(1))] * 40, batch_size=4)
        quiet_trainer(max_epochs=1, callbacks=[found[-1]]).fit(Two(), data)

    population.train([fit_member, fit_member])
    # 10 batches make 20 steps: past 3, 6, 9, 12, 15 and 18.
    assert [one.meetings for one in found] == [6, 6]


def test_an_error_of_one_ends_all():
    population = Population()

    def broken():
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        population.train([lambda: fit(0, [PopulationAverage(1, 0.5, population)]), broken])
    with pytest.raises(ConfigError, match="two fits"):
        population.train([broken])


def test_numbers_out_of_range_and_meetings_alone_are_refused():
    for wrong in ({"every": 0}, {"rate": 1.5}):
        with pytest.raises(ConfigError, match="out of range"):
            PopulationAverage(**wrong)
    with pytest.raises(ConfigError, match=r"population\.train"):
        fit(0, [PopulationAverage(1, 0.5, Population())])
    assert issubclass(Member, LightningModule)
