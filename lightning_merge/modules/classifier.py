"""An image classifier over any timm name, as a LightningModule."""

from difflib import get_close_matches
from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import nn

from lightning_merge.errors import ConfigError
from lightning_merge.modules.classification import ClassificationModule
from lightning_merge.modules.metrics import MetricChoice
from lightning_merge.modules.per_class import Task


class ImageClassifier(ClassificationModule):
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
        metrics: Which metrics to report: `accuracy`, `top5`, `auroc`, `medical` (sensitivity,
            specificity, F1 and calibration error), or any of torchmetrics by `class_path` and
            `init_args` (`lightning_merge.modules.metrics.classification_metrics`). Of a multiclass
            task these rates are means over its classes: of two, sensitivity and specificity are
            one number, and only a `binary` task has those of class 1. By default
            accuracy, with `top5` from six classes on, with `auroc` where the task is not
            multiclass.
        channels_last: Whether convolutions compute in channels-last order, the faster one
            on current CPUs and GPUs.
        compiled: Whether `torch.compile` compiles the network while it is fitted, which pays off
            in long trainings. Checkpoints are the same.
        optimizer: Called with the parameters.
        lr_scheduler: Called with the optimizer; stepped once an epoch.

    Raises:
        ConfigError: If the name, the task or a metric is unknown.
    """

    def __init__(
        self,
        model: str = "resnet20_cifar",
        num_classes: int = 10,
        in_chans: int = 3,
        task: Task = "multiclass",
        pretrained: bool = False,
        model_kwargs: dict[str, Any] | None = None,
        metrics: list[MetricChoice] | None = None,
        channels_last: bool = True,
        compiled: bool = False,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__(num_classes, task, metrics, channels_last, optimizer, lr_scheduler)
        self.save_hyperparameters(ignore=["optimizer", "lr_scheduler"])
        self.compiled = compiled
        self.network = self._configure_network(
            model, num_classes, in_chans, pretrained, model_kwargs or {}
        )

    def on_fit_start(self) -> None:
        """Has the network compiled, in place: its weights keep their names."""
        super().on_fit_start()
        if self.compiled:
            # Not `network.compile()`: what that calls is a frame of torch's own, which torch 2.11
            # passes over without a word.
            call = self.network._call_impl
            compiled = torch.compile(lambda *args, **kwargs: call(*args, **kwargs))
            self.network._compiled_call_impl = compiled

    def teardown(self, stage: str) -> None:
        """Has it run as it is written again: other uses look into it, and none is so long."""
        super().teardown(stage)
        if self.compiled:
            self.network._compiled_call_impl = None

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
