import copy

import pytest
import torch
from lightning.pytorch import Callback
from strangers import Stranger, image_batches, quiet_trainer, randomise
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_merge.callbacks import FreezeBatchNorm


def statistics(module):
    wanted = ("running_mean", "running_var", "num_batches_tracked")
    return {k: v.clone() for k, v in module.named_buffers() if k.endswith(wanted)}


def test_statistics_stay_and_are_those_that_training_computes_with():
    module = randomise(Stranger(), 1)
    twin = copy.deepcopy(module)
    before = statistics(module)
    batches = image_batches()
    loss_of_first = {}

    class Watch(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            loss_of_first.setdefault("loss", outputs["loss"].item())

    quiet_trainer(max_epochs=2, callbacks=[FreezeBatchNorm(), Watch()]).fit(
        module, batches, image_batches(seed=8)
    )
    assert before
    for name, value in statistics(module).items():
        assert torch.equal(value, before[name]), name
    weights = dict(module.named_parameters())
    assert all(not torch.equal(value, weights[name]) for name, value in twin.named_parameters())

    twin.train()
    for layer in twin.modules():
        if isinstance(layer, _BatchNorm):
            layer.eval()
    by_hand = twin.training_step(next(iter(batches)), 0)
    by_hand = by_hand["loss"] if isinstance(by_hand, dict) else by_hand
    assert loss_of_first["loss"] == pytest.approx(by_hand.item(), rel=1e-6)


def test_modes_are_given_back():
    module = randomise(Stranger(), 1)
    norms = [layer for layer in module.modules() if isinstance(layer, _BatchNorm)]
    trainer = quiet_trainer(max_epochs=1, callbacks=[FreezeBatchNorm()])
    seen = []

    class Watch(Callback):
        def on_train_batch_end(self, *args):
            seen.extend(layer.training for layer in norms)

    trainer.callbacks.append(Watch())
    trainer.fit(module, image_batches())
    assert seen
    assert not any(seen)
    assert all(layer.training for layer in norms)
