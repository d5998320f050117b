import copy

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from strangers import Stranger, image_batches, quiet_trainer, randomise
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, default_collate

from lightning_merge.callbacks import BatchNormReset
from lightning_merge.errors import DataError
from lightning_merge.orders import in_random_order
from lightning_merge.recalibrate import reset_batchnorm
from lightning_merge.recalibrate.training_data import reset_on_training_data


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

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 0:
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


@pytest.mark.parametrize("order", [1, -1])
def test_the_average_that_another_callback_makes_is_what_is_reset(tmp_path, order):
    module = randomise(Stranger(), 1)
    callbacks = [EMAWeightAveraging(decay=0.5), BatchNormReset()][::order]
    callbacks.append(ModelCheckpoint(tmp_path, save_last=True))
    trainer = quiet_trainer(max_epochs=2, callbacks=callbacks, enable_checkpointing=True)
    trainer.fit(module, image_batches(), image_batches(seed=8))
    wanted = reset_by_hand(module)
    assert equal(statistics(module), wanted)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert equal(wanted, saved["state_dict"])
    assert not equal(wanted, saved["current_model_state"])


@pytest.mark.parametrize(
    ("every", "changes"),
    [
        ("epoch", {"max_epochs": 1, "val_check_interval": 4}),
        ("end", {"max_epochs": -1, "max_steps": 4}),
    ],
)
def test_batches_after_validation_and_a_last_step_within_an_epoch(every, changes):
    module = randomise(Stranger(), 1)
    trainer = quiet_trainer(callbacks=[BatchNormReset(every)], **changes)
    trainer.fit(module, image_batches(), image_batches(seed=8))
    assert equal(statistics(module), reset_by_hand(module))


def test_batches_that_make_no_step_change_statistics_too():
    watch = AtValidation()
    trainer = quiet_trainer(
        max_epochs=1,
        accumulate_grad_batches=4,
        val_check_interval=1,
        callbacks=[BatchNormReset(), watch],
    )
    trainer.fit(randomise(Stranger(), 1), image_batches(), image_batches(seed=8))
    assert len(watch.seen) == 6
    for seen, wanted in zip(watch.seen, watch.wanted, strict=True):
        assert equal(seen, wanted)


def test_one_callback_serves_several_runs():
    reset = BatchNormReset()
    for seed in (1, 2):
        module = randomise(Stranger(), seed)
        quiet_trainer(max_epochs=1, callbacks=[reset]).fit(module, image_batches())
        assert equal(statistics(module), reset_by_hand(module))


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
    reset_batchnorm(twin, list(in_random_order(image_batches()))[:2])
    assert equal(statistics(module), statistics(twin))


def sorted_by_class():
    classes = torch.arange(4).repeat_interleave(64)
    generator = torch.Generator().manual_seed(2)
    images = 0.3 * torch.randn(256, 3, 8, 8, generator=generator) + classes[:, None, None, None]
    return TensorDataset(images, classes)


def test_a_project_whose_set_is_sorted_keeps_its_accuracy():
    """Its own loader shuffles; the set behind it has one class after the other."""
    found = []
    for callbacks in ([], [BatchNormReset()]):
        torch.manual_seed(0)
        module, data = Stranger(lr=0.2), sorted_by_class()
        trainer = quiet_trainer(max_epochs=6, callbacks=callbacks)
        trainer.fit(module, DataLoader(data, 32, shuffle=True), DataLoader(data, 128))
        found.append(float(trainer.callback_metrics["acc"]))
    assert found[0] > 0.8
    assert found[1] > found[0] - 0.05


class WithPlainImages(LightningDataModule):
    """Whose training images are other ones than those for statistics."""

    def train_dataloader(self):
        return image_batches(seed=3)

    def statistics_dataloader(self):
        return image_batches(seed=4)


@pytest.mark.parametrize("augmented", [False, True])
def test_statistics_of_augmented_images(augmented):
    module, data = Stranger(), WithPlainImages()
    quiet_trainer(max_epochs=1, callbacks=[BatchNormReset(augmented=augmented)]).fit(
        module, datamodule=data
    )
    twin = copy.deepcopy(module)
    reset_batchnorm(twin, image_batches(seed=3 if augmented else 4))
    assert equal(statistics(module), statistics(twin))
    again = copy.deepcopy(module)
    device = torch.device("cpu")
    assert reset_on_training_data(again, data, device, augmented=augmented) == 2
    assert equal(statistics(again), statistics(twin))


class ByKeys(Stranger):
    """Takes the whole batch."""

    def forward(self, batch):
        return self.net(batch["pixels"])

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch), batch["class"])


def keyed(items):
    images, classes = default_collate(items)
    return {"pixels": images, "class": classes}


def test_a_module_that_takes_the_whole_batch():
    loader = DataLoader(image_batches().dataset, 16, collate_fn=keyed)
    with pytest.raises(DataError, match="call"):
        quiet_trainer(max_epochs=1, callbacks=[BatchNormReset()]).fit(ByKeys(), loader)
    module = ByKeys()
    callback = BatchNormReset(call=lambda module, batch: module(batch))
    quiet_trainer(max_epochs=1, callbacks=[callback]).fit(module, loader)
    assert equal(statistics(module), reset_by_hand(module))


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
    drawn = in_random_order(image_batches())
    reset_batchnorm(twin.net, [images * 3 + 5 for images, _ in drawn])
    assert equal(statistics(module), statistics(twin))
