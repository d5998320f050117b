"""A run that is stopped and resumed learns the alphas of the run that was not, bit for bit."""

import random
import warnings

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint, StochasticWeightAveraging
from strangers import Stranger, image_batches, quiet_trainer, randomise
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from lightning_merge.modules import MergeModule

BATCHES = 5

# What is drawn while validating is drawn anew as well.
pytestmark = pytest.mark.filterwarnings("ignore:Your `val_dataloader`'s sampler has shuffling")


class Dropping(Stranger):
    """Draws random numbers in every step."""

    def __init__(self) -> None:
        super().__init__()
        self.net.insert(8, nn.Dropout(0.5))


class Augmented(Dataset):
    """Draws random numbers for every image, from all three generators."""

    def __init__(self) -> None:
        self.images, self.targets = image_batches(count=BATCHES, size=8).dataset.tensors

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        noise = torch.randn(()) + random.random() + np.random.rand()  # noqa: NPY002
        return self.images[index] + 0.3 * noise.float(), self.targets[index]


class Stream(IterableDataset):
    """Of unknown length."""

    def __iter__(self):
        images, targets = image_batches(count=BATCHES, size=8).dataset.tensors
        yield from zip(images, targets, strict=True)


def seed(number):
    torch.manual_seed(number)
    random.seed(number)
    np.random.seed(number)  # noqa: NPY002


def merge():
    states = [randomise(Dropping(), number).state_dict() for number in (1, 2)]
    return MergeModule(Dropping(), states, optimizer=lambda p: torch.optim.Adam(p, lr=0.1))


def fit(folder, workers=0, generator=None, data=None, resume=None, **settings):
    """One run that saves after every step; resumed, it is another process's: other seeds."""
    seed(5 if resume is None else 99)
    data = Augmented() if data is None else data
    own = None if generator is None else torch.Generator().manual_seed(generator)
    train = DataLoader(
        data,
        batch_size=8,
        shuffle=not isinstance(data, IterableDataset),
        num_workers=workers,
        generator=own,
    )
    validation = DataLoader(image_batches(count=2).dataset, batch_size=16, shuffle=True)
    save = ModelCheckpoint(
        folder, filename="{step}", every_n_train_steps=1, save_top_k=-1, save_last=False
    )
    module = merge()
    settings = {"max_epochs": 3, "callbacks": [save], "enable_checkpointing": True, **settings}
    trainer = quiet_trainer(**settings)
    trainer.fit(module, train, validation, ckpt_path=resume)
    return module, trainer


def same_run(whole, resumed):
    a, b = whole.alpha_logits, resumed.alpha_logits
    assert torch.equal(a, b), f"{int((a != b).sum())} of {a.numel()} alphas differ"
    assert (a != 0).sum() > a.numel() // 2


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({}, (1, 3, 5, 9, 10)),
        ({"generator": 3}, (2, 5, 8)),
        ({"val_check_interval": 2}, (2, 7)),
        ({"data": Stream()}, (2, 5, 8)),
        ({"limit_train_batches": 3}, (2, 3, 5)),
    ],
    ids=["plain", "own generator", "validation within", "stream", "limited"],
)
def test_from_any_step(tmp_path, settings, steps):
    whole, _ = fit(tmp_path / "whole", **settings)
    for step in steps:
        path = tmp_path / "whole" / f"step={step}.ckpt"
        resumed, _ = fit(tmp_path / "again", resume=path, **settings)
        same_run(whole, resumed)


@pytest.mark.parametrize("steps", [(2, 5, 7)])
def test_with_workers(tmp_path, steps):
    whole, _ = fit(tmp_path / "whole", workers=2)
    for step in steps:
        resumed, _ = fit(
            tmp_path / "again", workers=2, resume=tmp_path / "whole" / f"step={step}.ckpt"
        )
        same_run(whole, resumed)


def test_a_resumed_run_can_be_resumed(tmp_path):
    whole, _ = fit(tmp_path / "whole")
    fit(tmp_path / "again", resume=tmp_path / "whole" / "step=2.ckpt", max_epochs=2)
    for step in (4, 7):
        resumed, _ = fit(tmp_path / "third", resume=tmp_path / "again" / f"step={step}.ckpt")
        same_run(whole, resumed)


def test_with_lightnings_averaging_of_the_last_epochs(tmp_path):
    """The mean of alphas goes on as well, from before it begins and from within."""

    def swa(name, resume=None):
        save = ModelCheckpoint(tmp_path / name, filename="{epoch}", save_top_k=-1)
        averaging = StochasticWeightAveraging(0.05, swa_epoch_start=2)
        return fit(tmp_path, resume=resume, max_epochs=6, callbacks=[averaging, save])[0]

    whole = swa("whole")
    for epoch in (0, 2, 4):
        same_run(whole, swa("again", tmp_path / "whole" / f"epoch={epoch}.ckpt"))
    weights, merged = whole.state_dict(), fit(tmp_path / "plain", max_epochs=6)[0].state_dict()
    assert not torch.equal(weights["net.0.weight"], merged["net.0.weight"])


class SaveAfter(Callback):
    """Saves in the middle of an accumulation, where ModelCheckpoint never does."""

    def __init__(self, path, batch):
        self.path, self.batch = path, batch

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.fit_loop.total_batch_idx == self.batch:
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize("batch", [0, 2, 4, 7])
def test_within_an_accumulation(tmp_path, batch):
    path = tmp_path / "half.ckpt"
    settings = {"accumulate_grad_batches": 2, "enable_checkpointing": False, "max_epochs": 2}
    whole, _ = fit(tmp_path, callbacks=[SaveAfter(path, batch)], **settings)
    resumed, _ = fit(tmp_path, callbacks=[], resume=path, **settings)
    same_run(whole, resumed)


@pytest.mark.parametrize("step", [3, 7])
def test_stopped_by_the_number_of_steps(tmp_path, step):
    settings = {"max_epochs": -1, "enable_checkpointing": False, "callbacks": []}
    whole, _ = fit(tmp_path, max_steps=12, **settings)
    _, trainer = fit(tmp_path, max_steps=step, **settings)
    torch.rand(3), random.random()
    trainer.save_checkpoint(tmp_path / "stopped.ckpt")
    resumed, _ = fit(tmp_path, max_steps=12, resume=tmp_path / "stopped.ckpt", **settings)
    same_run(whole, resumed)


class Interrupt(Callback):
    """Stops a run within a step, after the batch was fetched."""

    def __init__(self, batch):
        self.batch = batch

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.fit_loop.total_batch_idx == self.batch:
            torch.rand(7)
            raise RuntimeError("stopped")

    def on_exception(self, trainer, pl_module, exception):
        trainer.save_checkpoint("interrupted.ckpt")


def test_interrupted_within_a_step(tmp_path):
    settings = {"enable_checkpointing": False, "data": image_batches(count=5, size=8).dataset}
    whole, _ = fit(tmp_path, callbacks=[], **settings)
    with pytest.raises(RuntimeError, match="stopped"):
        fit(tmp_path, callbacks=[Interrupt(7)], **settings)
    resumed, _ = fit(tmp_path, callbacks=[], resume="interrupted.ckpt", **settings)
    same_run(whole, resumed)


def test_the_rest_of_the_epoch_is_what_was_left(tmp_path):
    # Said apart from alphas: the batches themselves.
    seen = []

    class Watch(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            seen.append(batch[1].tolist())

    data = [(torch.randn(3, 8, 8), number % 4) for number in range(40)]
    settings = {"data": data, "max_epochs": 2}
    save = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    fit(tmp_path, callbacks=[save, Watch()], enable_checkpointing=True, **settings)
    whole, seen[:] = list(seen), []
    path = tmp_path / "step=7.ckpt"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for message in (
            ".*many workers.*",
            ".*callbacks used to create.*",
            ".*shuffling enabled.*",
        ):
            warnings.filterwarnings("ignore", message)
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=FutureWarning)
        fit(tmp_path, callbacks=[Watch()], enable_checkpointing=False, resume=path, **settings)
    assert seen == whole[7:]
    assert len(whole) == 10


def test_validating_more_often_does_not_change_the_alphas(tmp_path):
    settings = {"enable_checkpointing": False, "callbacks": [], "max_epochs": 2}
    often, _ = fit(tmp_path, val_check_interval=2, **settings)
    never, _ = fit(tmp_path, limit_val_batches=0, **settings)
    same_run(often, never)


def test_testing_from_a_checkpoint_leaves_later_runs_alone(tmp_path):
    fit(tmp_path, max_epochs=1)
    tested, fresh = merge(), merge()
    path = tmp_path / "step=3.ckpt"
    quiet_trainer().test(tested, image_batches(), ckpt_path=path, verbose=False)
    assert not torch.equal(tested.alpha_logits, fresh.alpha_logits)
    fresh.alpha_logits.data.copy_(tested.alpha_logits)
    for module in (tested, fresh):
        seed(8)
        loader = DataLoader(image_batches().dataset, batch_size=16, shuffle=True)
        quiet_trainer(max_epochs=1).fit(module, loader)
    same_run(tested, fresh)
