import copy

import pytest
import torch
from strangers import Stranger, Tied, image_batches, quiet_trainer, randomise

from lightning_merge.errors import ConfigError
from lightning_merge.modules import EnsembleModule


def members(count=3):
    return [randomise(Stranger(), seed).eval() for seed in range(count)]


def test_the_output_is_the_mean_of_the_members():
    modules = members()
    images = torch.randn(5, 3, 8, 8)
    mean = torch.stack([module(images) for module in modules]).mean(0)
    ensemble = EnsembleModule([copy.deepcopy(module) for module in modules]).eval()
    assert torch.allclose(ensemble(images), mean)
    assert isinstance(ensemble, Stranger)


def test_it_is_tested_by_the_members_own_steps():
    modules = members()
    data = image_batches(seed=4)
    logits = [torch.stack([module(images) for module in modules]).mean(0) for images, _ in data]
    right = sum(
        int((out.argmax(1) == targets).sum())
        for out, (_, targets) in zip(logits, data, strict=True)
    )
    (metrics,) = quiet_trainer().test(EnsembleModule(modules), data, verbose=False)
    assert metrics["test_acc"] == pytest.approx(right / len(data.dataset))


def test_it_costs_the_sum_of_its_members():
    count = sum(parameter.numel() for parameter in Stranger().parameters())
    ensemble = EnsembleModule(members(4))
    assert sum(parameter.numel() for parameter in ensemble.parameters()) == 4 * count


def test_what_cannot_be_an_ensemble_is_refused():
    with pytest.raises(ConfigError, match="at least one"):
        EnsembleModule([])
    with pytest.raises(ConfigError, match="Stranger, Tied"):
        EnsembleModule([Stranger(), Tied()])


class Roundabout(Stranger):
    def test_step(self, batch, batch_idx):
        self.metrics.update(self.net(batch[0]), batch[1])


def test_steps_that_go_round_the_ensemble_are_refused():
    ensemble = EnsembleModule([Roundabout(), Roundabout()])
    with pytest.raises(ConfigError, match=r"call self\(x\)"):
        quiet_trainer().test(ensemble, image_batches(), verbose=False)
