"""What every classifier of this package does with a batch: its loss, its metrics, its steps."""

from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from lightning_merge.batches import inputs_of
from lightning_merge.division import records_of
from lightning_merge.errors import ConfigError
from lightning_merge.modules.metrics import MetricChoice, classification_metrics
from lightning_merge.modules.per_class import Task
from lightning_merge.modules.targets import certain, check_targets


class ClassificationModule(LightningModule):
    """Trains, validates, tests and predicts on batches `(image, target)`.

    A subclass has a `network` that gives logits `(N, num_classes)`, or overrides `forward`.

    Args:
        num_classes: How many classes; 1 for `binary`.
        task: What the targets mean, see `ImageClassifier`.
        metrics: Which metrics to report, see `classification_metrics`; None for the usual ones.
        channels_last: Whether images are brought to channels-last order.
        optimizer: Called with the parameters.
        lr_scheduler: Called with the optimizer; None for none.

    Raises:
        ConfigError: If a metric or the number of classes does not fit the task.

    Attributes:
        monitor: The name of the metric by which one classifier is better than another.
        mode: Whether more of it is better (`max`).
        memory_format: The order to which `forward` brings images; may be changed.
        reads_text: Whether the constructor makes the head of `class_names` and `prompts`.
        image_size: Height and width that images must have, in pixels; None for any.
        image_mean: What each channel, scaled to [0, 1], is to be shifted by; None for anything.
        image_std: What it is then to be divided by.
    """

    monitor = "val_accuracy"
    mode = "max"

    #: When the learning rate's schedule goes on: each `epoch` or each `step`.
    schedule = "epoch"

    reads_text: ClassVar[bool] = False
    image_size: int | None = None
    image_mean: tuple[float, ...] | None = None
    image_std: tuple[float, ...] | None = None

    network: nn.Module
    _train_loss: Tensor | float = 0.0
    _train_examples = 0

    def __init__(
        self,
        num_classes: int,
        task: Task = "multiclass",
        metrics: list[MetricChoice] | None = None,
        channels_last: bool = False,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__()
        _check_classes(task, num_classes)
        self.task = task
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.loss = nn.CrossEntropyLoss() if task == "multiclass" else nn.BCEWithLogitsLoss()
        collection = classification_metrics(task, num_classes, metrics)
        trained = classification_metrics(task, num_classes, ["accuracy"])
        for metric in trained.values():
            # The loss has read the targets; a look at them makes a GPU wait in every step.
            getattr(metric, "wrapped_metric", metric).validate_args = False
        self.train_metrics = trained.clone(prefix="train_")
        self.val_metrics = collection.clone(prefix="val_")
        self.test_metrics = collection.clone(prefix="test_")

    def forward(self, images: Tensor) -> Tensor:
        """Logits of shape `(N, num_classes)` for images `(N, C, H, W)`."""
        return self.network(images.contiguous(memory_format=self.memory_format))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The loss of one batch; `train_loss` and `train_accuracy` are logged once an epoch."""
        if batch_idx == 0:
            self._train_loss, self._train_examples = 0.0, 0
        loss, logits, targets = self._evaluate(batch, checked=batch_idx == 0)
        self.train_metrics.update(logits, targets)
        # A sum of sixteen bits would soon be rounded to itself, or overflow.
        self._train_loss = self._train_loss + loss.detach().float() * len(targets)
        self._train_examples += len(targets)
        return loss

    def on_train_epoch_end(self) -> None:
        """Logs what the training steps added up: `log` in each costs a tenth of a small one."""
        super().on_train_epoch_end()
        if self._train_examples:
            examples = self._train_examples
            loss = self._train_loss / examples
            self.log("train_loss", loss, sync_dist=True, batch_size=examples)
            self.log_dict(self.train_metrics, prog_bar=True)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Logs `val_loss` and the metrics as `val_...`."""
        del batch_idx
        loss, logits, targets = self._evaluate(batch)
        self.val_metrics.update(logits, targets)
        self.log("val_loss", loss, batch_size=len(targets), sync_dist=True)
        self.log_dict(self.val_metrics, prog_bar=True)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Logs `test_loss` and the metrics as `test_...`."""
        del batch_idx
        loss, logits, targets = self._evaluate(batch)
        self.test_metrics.update(logits, targets)
        self.log("test_loss", loss, batch_size=len(targets), sync_dist=True)
        self.log_dict(self.test_metrics)

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Probabilities of shape `(N, num_classes)`; `(N,)` where the task is binary."""
        del batch_idx
        logits = self(inputs_of(batch))
        if self.task == "multiclass":
            return logits.softmax(dim=1)
        return self._shape(logits).sigmoid()

    def configure_optimizers(self) -> Any:
        """What `optimizer` and `lr_scheduler` make of the parameters."""
        optimizer = self.optimizer(self.parameters())
        if self.lr_scheduler is None:
            return optimizer
        schedule = {"scheduler": self.lr_scheduler(optimizer), "interval": self.schedule}
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds how the data module prepares and divides images, where it says so."""
        super().on_save_checkpoint(checkpoint)
        checkpoint.update(records_of(getattr(self._trainer, "datamodule", None)))

    def _evaluate(
        self, batch: tuple[Tensor, Tensor], checked: bool = True
    ) -> tuple[Tensor, Tensor, Tensor]:
        images, targets = batch
        logits = self._shape(self(images))
        # A GPU would wait for a look in every step.
        if checked or targets.device.type == "cpu":
            check_targets(targets, self.task, logits.shape[-1])
        # Sixteen bits leave two or three digits of a loss.
        exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
        wanted = targets if self.task == "multiclass" else targets.to(exact.dtype)
        return self.loss(exact, wanted), logits, certain(targets, self.task)

    def _shape(self, logits: Tensor) -> Tensor:
        return logits.squeeze(1) if self.task == "binary" else logits


def _check_classes(task: Task, num_classes: int) -> None:
    if task == "binary" and num_classes != 1:
        raise ConfigError(
            f"a binary task has one logit: num_classes is {num_classes}; set it to 1, or "
            "choose the multiclass task"
        )
    if task != "binary" and num_classes < 2:
        raise ConfigError(
            f"a {task} task has two classes or more: num_classes is {num_classes}; set it to "
            "theirs, or choose the binary task and 1"
        )
