import pytest
import torch
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from lightning.pytorch.utilities.compile import _maybe_unwrap_optimized
from strangers import Stranger, image_batches, quiet_trainer, randomise
from torch import nn
from torch.utils.data import DataLoader, RandomSampler, TensorDataset, WeightedRandomSampler

from lightning_merge.callbacks import GreedySoup
from lightning_merge.callbacks.candidate import copy_of


def test_the_copy_of_a_compiled_module_is_not_compiled_and_uses_its_own_weights():
    compiled = torch.compile(randomise(Stranger(), 1), backend="eager")
    original = _maybe_unwrap_optimized(compiled)
    copied = copy_of(original)
    randomise(copied, 2)
    images = torch.randn(4, 3, 8, 8)
    assert torch.equal(copied.eval()(images), randomise(Stranger(), 2).eval()(images))
    assert not hasattr(copied.validation_step, "_torchdynamo_orig_callable")
    assert copied.validation_step.__self__ is copied


class Noting(Stranger):
    """Notes the classes of which its validations consist."""

    def __init__(self):
        super().__init__()
        self.classes = []

    def on_validation_epoch_start(self):
        self.classes.append([])

    def validation_step(self, batch, batch_idx):
        self.classes[-1] += batch[1].tolist()
        super().validation_step(batch, batch_idx)


@pytest.mark.parametrize(
    ("options", "limit", "count"),
    [
        (lambda data: {"shuffle": True}, 3, 24),
        (lambda data: {"sampler": RandomSampler(data, num_samples=20)}, 1.0, 20),
        (lambda data: {"shuffle": True}, 1.0, 80),
        (lambda data: {}, 3, 24),
    ],
)
def test_a_part_of_the_validation_data_is_drawn_as_the_loader_draws(
    tmp_path, monkeypatch, options, limit, count
):
    # The set is in the order of its classes.
    images = torch.randn(80, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    data = TensorDataset(images, torch.arange(80) // 20)
    module, copies = randomise(Noting(), 1), []
    callback = GreedySoup("acc", dirpath=tmp_path)
    trainer = quiet_trainer(max_epochs=2, callbacks=[callback], limit_val_batches=limit)
    begin = Noting.on_validation_epoch_start

    def noted(self):
        if self is not module:
            copies.append(self)
        begin(self)

    monkeypatch.setattr(Noting, "on_validation_epoch_start", noted)
    loader = DataLoader(data, batch_size=8, **options(data))
    trainer.fit(module, DataLoader(data, batch_size=20, shuffle=True), loader)
    own = [one.classes[-1] for one in copies]
    assert len(own) > 2
    assert all(classes == own[0] for classes in own)
    assert len(own[0]) == count
    in_order = not options(data)
    assert len(set(own[0])) == (2 if in_order else 4)


def test_a_sampler_draws_as_it_would_without_candidates(tmp_path):
    data, states = image_batches(2).dataset, []
    for callbacks in ([], [GreedySoup("acc", dirpath=tmp_path)]):
        own = torch.Generator().manual_seed(2)
        sampler = WeightedRandomSampler(torch.ones(len(data)), 20, generator=own)
        trainer = quiet_trainer(max_epochs=2, callbacks=callbacks)
        loader = DataLoader(data, batch_size=10, sampler=sampler)
        trainer.fit(randomise(Stranger(), 1), image_batches(2), loader)
        states.append(own.get_state())
    assert torch.equal(*states)


class InTwoParts(Stranger):
    """Validates on a batch of each of two loaders."""

    def validation_step(self, batch, batch_idx):
        losses = [nn.functional.cross_entropy(self(batch[key][0]), batch[key][1]) for key in "ab"]
        self.log("loss", losses[0] + losses[1], batch_size=1)


@pytest.mark.parametrize("mode", ["max_size_cycle", "min_size"])
@pytest.mark.parametrize("limit", [1.0, 0.5, 1])
def test_batches_of_several_loaders_together_are_those_of_the_trainer(tmp_path, mode, limit):
    data = image_batches(4).dataset
    parts = {"a": DataLoader(data, batch_size=10), "b": DataLoader(data, batch_size=20)}
    soup = GreedySoup("loss", "min", dirpath=tmp_path)
    trainer = quiet_trainer(max_epochs=1, callbacks=[soup], limit_val_batches=limit)
    loader = CombinedLoader(parts, mode)
    trainer.fit(randomise(InTwoParts(), 1), image_batches(2), loader)
    assert soup.best_score == pytest.approx(float(trainer.callback_metrics["loss"]), rel=1e-5)


def test_loaders_may_be_nested(tmp_path):
    class OfTwo(Stranger):
        def validation_step(self, batch, batch_idx, dataloader_idx):
            self.log("loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    soup = GreedySoup("loss/dataloader_idx_1", "min", dirpath=tmp_path)
    trainer = quiet_trainer(max_epochs=1, callbacks=[soup])
    loaders = [[image_batches(4)], [image_batches(2)]]
    trainer.fit(randomise(OfTwo(), 1), image_batches(2), loaders)
    logged = trainer.callback_metrics["loss/dataloader_idx_1"]
    assert soup.best_score == pytest.approx(float(logged), rel=1e-5)
