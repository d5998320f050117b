"""One data set, divided by samplers: what is held out is what the validation loader reads."""

import pytest
import torch
from lightning.pytorch import LightningDataModule
from strangers import quiet_trainer
from tiny_contexts import CLASSES, Perceptron, Points, made_context, trained
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
)

from lightning_merge.errors import ConfigError
from lightning_merge.orders import examples_of
from lightning_merge.recipe.aggregates import GreedySoup, LearnedSoup
from lightning_merge.recipe.context import Context
from lightning_merge.recipe.held_out import HeldOut
from lightning_merge.recipe.recipe import Recipe

HELD = [*range(3, 100, 7), 1]


class ByBatch(BatchSampler):
    def __iter__(self):
        yield HELD[:9]
        yield HELD[9:]

    def __len__(self):
        return 2


class Divided(Points):
    """Labels of all other examples are wrong."""

    def __init__(self, how):
        super().__init__()
        self.how = how
        generator = torch.Generator().manual_seed(5)
        x = torch.randn(100, 6, generator=generator)
        right = (x[:, :CLASSES] + 0.3 * x[:, CLASSES:]).argmax(1)
        held = torch.isin(torch.arange(100), torch.tensor(HELD))
        self.data = TensorDataset(x, torch.where(held, right, (right + 1) % CLASSES))

    def val_dataloader(self):
        if self.how == "batches":
            batches = ByBatch(SequentialSampler(self.data), 9, False)
            return DataLoader(self.data, batch_sampler=batches)
        return DataLoader(self.data, batch_size=5, sampler=SubsetRandomSampler(HELD))


def context(how):
    states = [trained(seed).state_dict() for seed in range(3)]
    names = [f"network {k}" for k in range(3)]
    trainer = quiet_trainer
    return Context(
        Perceptron(), states, names, Divided(how), lambda **k: trainer(**k), progress=False
    )


@pytest.mark.parametrize("how", ["examples", "batches"])
def test_scores_and_features_are_of_the_loaders_own_examples(how):
    made = context(how)
    held_out = HeldOut(made)
    assert held_out.size == len(HELD)
    x, y = (column[sorted(HELD)] for column in made.data.data.tensors)
    for state in made.states:
        module = made.build(state)
        right = module(x).argmax(1) == y
        assert right.double().mean() > 0.7
        if how == "examples":
            assert held_out.score(module) == pytest.approx(right.double().mean().item())
            assert torch.equal(torch.cat(list(held_out.hits(module))), right)
            order = torch.randperm(len(HELD), generator=torch.Generator().manual_seed(1))
            assert torch.equal(torch.cat(list(held_out.hits(module, order))), right[order])
        hidden = module.net[:-1](x)
        torch.testing.assert_close(held_out.features(module), hidden.detach())


def test_what_chooses_or_learns_reads_them_alone():
    made = context("examples")
    before = torch.get_rng_state()
    examples_of(made.data.val_dataloader(), 3)
    assert torch.equal(before, torch.get_rng_state())
    greedy = Recipe("greedy", GreedySoup())(made).choices[0].details
    assert greedy["examples"] == len(HELD)
    assert greedy["trace"][0]["alone"] > 0.7


def test_learned_soups_read_them_alone(monkeypatch):
    made, seen = context("examples"), []
    step = lambda self, batch, _: (seen.append(batch[0]), self._loss(batch))[1]  # noqa: E731
    loss = lambda self, batch: torch.nn.functional.cross_entropy(self(batch[0]), batch[1])  # noqa: E731
    monkeypatch.setattr(Perceptron, "training_step", step, raising=False)
    monkeypatch.setattr(Perceptron, "_loss", loss, raising=False)
    found = Recipe("learned", LearnedSoup(max_epochs=2, batch_size=8))(made)
    assert found.labelled_examples == len(HELD)
    x = made.data.data.tensors[0][HELD]
    read = torch.cat(seen)
    assert len(read) == 2 * len(HELD)
    assert all((one == x).all(1).any() for one in read)


@pytest.mark.parametrize("count", [7, 100, 130])
def test_a_part_that_is_drawn_is_drawn_by_the_seed(count):
    data = TensorDataset(torch.arange(100))
    loaders = [
        DataLoader(data, 8, sampler=RandomSampler(data, num_samples=count)) for _ in range(2)
    ]
    first, again = (list(examples_of(loader, 1)) for loader in loaders)
    assert first == again == sorted(first)
    assert len(first) == min(count, 100)
    assert (list(examples_of(loaders[0], 2)) == first) == (count >= 100)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(9))


def test_a_stream_of_unknown_length_is_refused_in_a_line(monkeypatch):
    made = context("examples")
    monkeypatch.setattr(made.data, "val_dataloader", lambda: DataLoader(Stream()), raising=False)
    with pytest.raises(ConfigError, match="of known length"):
        Recipe("greedy", GreedySoup()).check_context(made)


def test_a_loader_in_a_list_is_held_out_and_without_any_a_search_says_so(monkeypatch):
    made = made_context(3)
    taken = Recipe("greedy", GreedySoup())(made).choices[0].details
    plain = Points.val_dataloader
    monkeypatch.setattr(Points, "val_dataloader", lambda self: [plain(self)])
    assert Recipe("greedy", GreedySoup())(made).choices[0].details == taken
    monkeypatch.setattr(Points, "val_dataloader", LightningDataModule.val_dataloader)
    with pytest.raises(ConfigError, match="has no validation data in one loader"):
        HeldOut(made)
