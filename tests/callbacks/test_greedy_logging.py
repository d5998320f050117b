"""A soup is judged by the Trainer's own metric, whichever way a module logs it."""

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from strangers import Stranger, image_batches, quiet_trainer, randomise
from test_greedy_callback import validation_data
from torch import nn
from torch.utils.data import DataLoader
from torchmetrics import Accuracy

from lightning_merge.callbacks import GreedySoup


class Logging(Stranger):
    """Logs in every way that Lightning offers."""

    def __init__(self) -> None:
        super().__init__()
        self.accuracy = Accuracy("multiclass", num_classes=4)
        self.drawn = 0

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        images, targets = batch["x"], batch["y"]
        logits = self(images)
        losses = nn.functional.cross_entropy(logits, targets, reduction="none")
        self.accuracy(logits, targets)
        if len(self.trainer.num_val_batches) == 1:
            self.log("object", self.accuracy)
        self.log("mean", losses.mean())
        self.log("sum", losses.sum(), reduce_fx="sum")
        self.log("max", losses.max(), reduce_fx=torch.max)
        self.log_dict({"both": losses.mean()}, on_step=True, on_epoch=True)
        self.metrics.update(logits, targets)
        if self.logger is not None:
            self.logger.experiment.draw("an image")


def dicts(loader):
    return DataLoader(
        loader.dataset,
        batch_size=20,
        collate_fn=lambda pairs: {
            "x": torch.stack([x for x, _ in pairs]),
            "y": torch.stack([y for _, y in pairs]),
        },
    )


@pytest.mark.parametrize(
    ("monitor", "loaders"),
    [
        ("object", 1),
        ("mean", 1),
        ("sum", 1),
        ("max", 1),
        ("both_epoch", 1),
        ("acc", 1),
        ("acc", 2),
        ("mean/dataloader_idx_1", 2),
    ],
)
def test_the_metric_is_the_trainers_however_it_is_logged(tmp_path, monitor, loaders):
    soup = GreedySoup(monitor, dirpath=tmp_path)
    trainer = quiet_trainer(max_epochs=1, callbacks=[soup], limit_val_batches=4)
    data = [dicts(validation_data(seed)) for seed in (8, 9)][:loaders]
    trainer.fit(randomise(Logging(), 1), image_batches(), data[0] if loaders == 1 else data)
    metrics = trainer.callback_metrics
    assert float(metrics[monitor]) != 0
    assert float(metrics[f"{monitor}_soup"]) == pytest.approx(float(metrics[monitor]), rel=1e-6)


def test_what_a_module_writes_to_a_logger_itself_is_not_written_twice(tmp_path):
    drawn = []

    class Drawing(CSVLogger):
        @property
        def experiment(self):
            inner = super().experiment
            inner.draw = drawn.append
            return inner

    soup = GreedySoup("mean", "min", dirpath=tmp_path)
    trainer = quiet_trainer(max_epochs=2, callbacks=[soup], logger=Drawing(tmp_path))
    trainer.fit(randomise(Logging(), 1), image_batches(), dicts(validation_data()))
    assert len(drawn) == 2 * len(dicts(validation_data()))
