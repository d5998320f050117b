"""An image classifier over any timm name, as a LightningModule."""

from difflib import get_close_matches
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torchmetrics import MetricCollection

from lightning_merge.errors import ConfigError

Task = Literal["multiclass", "binary", "multilabel"]


class ImageClassifier(LightningModule):
    """Trains, validates and tests one network of timm on batches `(image, target)`.

    `multiclass` wants targets of shape `(N,)` and trains with cross entropy; `binary` has
    one logit and targets `(N,)` of 0 and 1; `multilabel` has targets `(N, num_classes)`;
    the last two train with binary cross entropy.

    Args:
        model: Any name that `timm.create_model` knows, those of this package among them
            (`resnet20_cifar`, `vgg11_cifar`, `vgg11_bn_cifar`, `linear_classifier`).
        num_classes: How many classes; 1 for `binary`.
        in_chans: Channels of the images.
        task: What the targets mean.
        pretrained: Whether timm is to load (and download) its weights.
        model_kwargs: Further arguments of `timm.create_model`, for example `width`.
        metrics: Which of `accuracy`, `top5` and `auroc` to report. By default accuracy,
            with `top5` from six classes on, with `auroc` where the task is not multiclass.
        channels_last: Whether convolutions compute in channels-last order, the faster one
            on current CPUs and GPUs.
        optimizer: Called with the parameters.
        lr_scheduler: Called with the optimizer; stepped once an epoch.

    Raises:
        ConfigError: If the name, the task or a metric is unknown.

    Attributes:
        monitor: The name of the metric by which one classifier is better than another.
        mode: Whether more of it is better (`max`).
    """

    monitor = "val_accuracy"
    mode = "max"

    def __init__(
        self,
        model: str = "resnet20_cifar",
        num_classes: int = 10,
        in_chans: int = 3,
        task: Task = "multiclass",
        pretrained: bool = False,
        model_kwargs: dict[str, Any] | None = None,
        metrics: list[str] | None = None,
        channels_last: bool = True,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["optimizer", "lr_scheduler"])
        self.task = task
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.network = self._configure_network(
            model, num_classes, in_chans, pretrained, model_kwargs or {}
        )
        self.loss = nn.CrossEntropyLoss() if task == "multiclass" else nn.BCEWithLogitsLoss()
        collection = _metrics(task, num_classes, metrics)
        self.train_metrics = _metrics(task, num_classes, ["accuracy"]).clone(prefix="train_")
        self.val_metrics = collection.clone(prefix="val_")
        self.test_metrics = collection.clone(prefix="test_")

    def forward(self, images: Tensor) -> Tensor:
        """Logits of shape `(N, num_classes)` for images `(N, C, H, W)`."""
        logits: Tensor = self.network(images.contiguous(memory_format=self.memory_format))
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The loss of one batch; logs `train_loss` and `train_accuracy`."""
        del batch_idx
        loss, logits, targets = self._evaluate(batch)
        self.train_metrics.update(logits, targets)
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=len(targets))
        self.log_dict(self.train_metrics, on_step=False, on_epoch=True, prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Logs `val_loss` and the metrics as `val_...`."""
        del batch_idx
        loss, logits, targets = self._evaluate(batch)
        self.val_metrics.update(logits, targets)
        self.log("val_loss", loss, batch_size=len(targets))
        self.log_dict(self.val_metrics, prog_bar=True)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Logs `test_loss` and the metrics as `test_...`."""
        del batch_idx
        loss, logits, targets = self._evaluate(batch)
        self.test_metrics.update(logits, targets)
        self.log("test_loss", loss, batch_size=len(targets))
        self.log_dict(self.test_metrics)

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Probabilities of shape `(N, num_classes)`; `(N,)` where the task is binary."""
        del batch_idx
        images = batch if isinstance(batch, Tensor) else batch[0]
        logits = self(images)
        if self.task == "multiclass":
            return logits.softmax(dim=1)
        return self._shape(logits).sigmoid()

    def configure_optimizers(self) -> Any:
        """What `optimizer` and `lr_scheduler` make of the parameters."""
        optimizer = self.optimizer(self.parameters())
        if self.lr_scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": self.lr_scheduler(optimizer)}

    def _configure_network(
        self,
        model: str,
        num_classes: int,
        in_chans: int,
        pretrained: bool,
        model_kwargs: dict[str, Any],
    ) -> nn.Module:
        import timm

        import lightning_merge.networks  # noqa: F401  (registers our names with timm)

        if self.task == "binary" and num_classes != 1:
            raise ConfigError(
                f"a binary task has one logit: num_classes is {num_classes}; set it to 1, or "
                "choose the multiclass task"
            )
        if not timm.is_model(model.split("/")[-1]) and ":" not in model:
            near = get_close_matches(model, timm.list_models(), n=3)
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            raise ConfigError(f"timm knows no model '{model}'{hint}")
        network: nn.Module = timm.create_model(
            model,
            pretrained=pretrained,
            num_classes=num_classes,
            in_chans=in_chans,
            **model_kwargs,
        )
        return network.to(memory_format=self.memory_format)

    def _evaluate(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        images, targets = batch
        logits = self._shape(self(images))
        wanted = targets if self.task == "multiclass" else targets.to(logits.dtype)
        return self.loss(logits, wanted), logits, targets.long()

    def _shape(self, logits: Tensor) -> Tensor:
        return logits.squeeze(1) if self.task == "binary" else logits


def _metrics(task: Task, num_classes: int, names: list[str] | None) -> MetricCollection:
    from torchmetrics import AUROC, Accuracy

    if names is None:
        names = ["accuracy"]
        names += ["auroc"] if task != "multiclass" else ["top5"] if num_classes > 5 else []
    size: dict[str, Any] = {
        "multiclass": {"num_classes": num_classes},
        "multilabel": {"num_labels": num_classes},
        "binary": {},
    }[task]
    made: dict[str, Any] = {}
    for name in names:
        if name == "accuracy":
            made[name] = Accuracy(task=task, **{**size, "average": "micro"})
        elif name == "top5" and task == "multiclass" and num_classes > 5:
            made[name] = Accuracy(task=task, top_k=5, **{**size, "average": "micro"})
        elif name == "auroc":
            made[name] = AUROC(task=task, **size)
        else:
            raise ConfigError(
                f"metric '{name}' does not fit a {task} task of {num_classes} classes: choose "
                "accuracy, auroc, or (multiclass, six classes or more) top5"
            )
    return MetricCollection(made)
