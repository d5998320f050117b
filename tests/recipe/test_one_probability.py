"""Modules with one output an example: logits are judged by their signs, probabilities are not."""

import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from strangers import quiet_trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_merge.errors import ConfigError
from lightning_merge.measure.sweeps.weight_scaling import WeightScaling
from lightning_merge.recipe import held_out as judged
from lightning_merge.recipe.aggregates import GreedySoup
from lightning_merge.recipe.context import Context
from lightning_merge.recipe.recipe import Recipe


class Halves(LightningDataModule):
    """Points on two sides of a plane."""

    def _points(self, seed):
        x = torch.randn(60, 4, generator=torch.Generator().manual_seed(seed))
        return DataLoader(TensorDataset(x, (x.sum(1) > 0.5).long()), batch_size=16)

    def train_dataloader(self):
        return self._points(1)

    def val_dataloader(self):
        return self._points(2)

    def test_dataloader(self):
        return self._points(3)


class Side(LightningModule):
    def __init__(self, probabilities, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.layer, self.probabilities = nn.Linear(4, 1), probabilities

    def forward(self, x):
        logits = self.layer(x).squeeze(1)
        return logits.sigmoid() if self.probabilities else logits

    def validation_step(self, batch, batch_idx):
        found = self(batch[0]) > (0.5 if self.probabilities else 0)
        right = (found == batch[1]).float().mean()
        self.log("val_acc", right, batch_size=len(found))

    def test_step(self, batch, batch_idx):
        self.log("test_acc", (self(batch[0]) > 0.5).float().mean())


def context(probabilities):
    states = [Side(probabilities, seed).state_dict() for seed in range(4)]
    module, names = Side(probabilities, 9), [f"network {k}" for k in range(4)]
    return Context(module, states, names, Halves(), lambda **k: quiet_trainer(**k), progress=False)


def test_a_soup_of_modules_that_give_probabilities_is_that_of_their_logits():
    found = [Recipe("greedy", GreedySoup())(context(kind)) for kind in (False, True)]
    traces = [one.choices[0].details["trace"] for one in found]
    assert [line["ingredient"] for line in traces[0]] == [line["ingredient"] for line in traces[1]]
    for logits, probabilities in zip(*traces, strict=True):
        assert logits["kept"] == probabilities["kept"]
        assert probabilities["alone"] == pytest.approx(logits["alone"], abs=1e-6)
    assert len({line["alone"] for line in traces[0]}) > 1
    assert torch.equal(found[0].module.layer.weight, found[1].module.layer.weight)
    # The signs of probabilities would make every network one that always gives class 1.
    x, y = next(iter(Halves().val_dataloader()))
    assert judged.are_right(found[1].module(x), y).float().mean() == y.float().mean()


def test_what_multiplies_weights_wants_logits():
    WeightScaling().check_context(context(False))
    with pytest.raises(ConfigError, match="Side gives probabilities"):
        WeightScaling().check_context(context(True))


def test_predictions_of_a_broken_network_are_none():
    nan, inf = torch.nan, torch.inf
    found = judged.predicted_classes(torch.tensor([[nan, nan], [0, nan], [0, inf], [-inf, 0]]))
    assert found.tolist() == [-1, -1, 1, 1]
    for one in (torch.tensor([nan, -1, inf]), torch.tensor([[nan], [-1], [inf]])):
        assert judged.predicted_classes(one).tolist() == [-1, 0, 1]
    assert judged.predicted_classes(torch.empty(0, 3)).tolist() == []
