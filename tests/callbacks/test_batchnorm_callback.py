import copy

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from strangers import Stranger, image_batches, quiet_trainer, randomise
from torch.utils.data import DataLoader

from lightning_merge.callbacks import BatchNormReset
from lightning_merge.recalibrate import reset_batchnorm


def statistics(module):
    return {name: value.clone() for name, value in module.named_buffers() if "running" in name}


def reset_by_hand(module):
    twin = copy.deepcopy(module)
    reset_batchnorm(twin.net, image_batches())
    return statistics(twin)


def equal(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


class AtValidation(Callback):
    """Keeps the statistics that each validation sees, and those a reset would give."""

    def __init__(self):
        self.seen, self.wanted = [], []

    def on_validation_epoch_start(self, trainer, pl_module):
        self.seen.append(statistics(pl_module))
        self.wanted.append(reset_by_hand(pl_module))


def test_validation_sees_reset_statistics_but_the_sanity_check_does_not():
    module = randomise(Stranger(), 1)
    before = statistics(module)
    watch = AtValidation()
    trainer = quiet_trainer(
        max_epochs=2, callbacks=[BatchNormReset(), watch], num_sanity_val_steps=1
    )
    trainer.fit(module, image_batches(), image_batches(seed=8))
    assert equal(watch.seen[0], before)
    assert len(watch.seen) == 3
    for seen, wanted in zip(watch.seen[1:], watch.wanted[1:], strict=True):
        assert equal(seen, wanted)
    assert not equal(watch.wanted[1], watch.wanted[2])


def test_without_validation_the_checkpoint_holds_reset_statistics(tmp_path):
    module = randomise(Stranger(), 1)
    # The checkpoint comes first in the list: Lightning calls it last all the same.
    callbacks = [ModelCheckpoint(tmp_path, save_last=True), BatchNormReset()]
    trainer = quiet_trainer(max_epochs=2, callbacks=callbacks, enable_checkpointing=True)
    trainer.fit(module, image_batches())
    wanted = reset_by_hand(module)
    assert equal(statistics(module), wanted)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert equal(wanted, saved)


def shuffled():
    return DataLoader(image_batches().dataset, batch_size=16, shuffle=True)


def test_the_weights_that_are_learned_are_the_same_without_it():
    torch.manual_seed(3)
    plain = randomise(Stranger(), 1)
    quiet_trainer(max_epochs=3).fit(plain, shuffled(), image_batches(seed=8))
    torch.manual_seed(3)
    reset = randomise(Stranger(), 1)
    quiet_trainer(max_epochs=3, callbacks=[BatchNormReset()]).fit(
        reset, shuffled(), image_batches(seed=8)
    )
    for name, value in plain.named_parameters():
        assert torch.equal(value, reset.get_parameter(name))
    assert not equal(statistics(plain), statistics(reset))


@pytest.mark.parametrize("validate", [True, False])
def test_at_the_end_only(validate):
    module = randomise(Stranger(), 1)
    seen = []

    class Count(BatchNormReset):
        def _reset(self, trainer, pl_module):
            before = statistics(pl_module)
            super()._reset(trainer, pl_module)
            seen.append(not equal(before, statistics(pl_module)))

    loaders = [image_batches(), image_batches(seed=8)] if validate else [image_batches()]
    quiet_trainer(max_epochs=3, callbacks=[Count(every="end")]).fit(module, *loaders)
    assert equal(statistics(module), reset_by_hand(module))
    assert sum(seen) == 1


def test_fewer_batches():
    module = randomise(Stranger(), 1)
    quiet_trainer(max_epochs=1, callbacks=[BatchNormReset(limit_batches=2)]).fit(
        module, image_batches()
    )
    twin = copy.deepcopy(module)
    reset_batchnorm(twin, list(image_batches())[:2])
    assert equal(statistics(module), statistics(twin))


def test_a_reset_within_an_epoch_does_not_cut_it_short():
    module = Stranger()
    loader = DataLoader(
        image_batches().dataset, batch_size=16, num_workers=1, persistent_workers=True
    )
    trainer = quiet_trainer(max_epochs=1, val_check_interval=0.5, callbacks=[BatchNormReset()])
    trainer.fit(module, loader, image_batches(seed=8))
    assert module.calls == 6


class Scaling(Stranger):
    """Normalises where Lightning offers to: after the batch has reached the device."""

    def on_after_batch_transfer(self, batch, dataloader_idx):
        return [batch[0] * 3 + 5, batch[1]]


def test_the_batch_transfer_hooks_apply():
    module = Scaling()
    quiet_trainer(max_epochs=1, callbacks=[BatchNormReset()]).fit(module, image_batches())
    twin = copy.deepcopy(module)
    reset_batchnorm(twin.net, [images * 3 + 5 for images, _ in image_batches()])
    assert equal(statistics(module), statistics(twin))
