"""Data that do not fit a module, found at the first batch and not after an epoch."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_merge.batches import classes_of, inputs_of
from lightning_merge.errors import ConfigError


class FirstBatch(Callback):
    """Checks the first batch of every stage against what the module says of itself.

    A module with too many outputs would be trained and tested without a word; one with too few,
    or for other images, fails somewhere inside torch.
    """

    def on_train_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Checks the first one."""
        del dataloader_idx
        if batch_idx == 0:
            check_batch(pl_module, getattr(trainer, "datamodule", None), batch)

    on_validation_batch_start = on_test_batch_start = on_predict_batch_start = on_train_batch_start


def check_batch(module: LightningModule, data: object, batch: Any) -> None:
    """Checks that a batch can be what a module was made for; a `ConfigError` if it cannot.

    The module says `num_classes` and `in_chans` among its hyper-parameters, the data module, if
    there is one, may say `num_classes` and `task`; what they do not say is not checked.
    """
    said = dict(module.hparams)
    name = said.get("model") or type(module).__name__
    classes, channels = said.get("num_classes"), said.get("in_chans")
    source = "the data" if data is None else type(data).__name__
    images = inputs_of(batch)
    if isinstance(channels, int) and images.dim() == 4 and images.shape[1] != channels:
        raise ConfigError(
            f"{name} has in_chans {channels}, and the images of {source} have {images.shape[1]} "
            f"channels: set in_chans to {images.shape[1]}, or change the data's channels"
        )
    if not isinstance(classes, int):
        return
    there = getattr(data, "num_classes", None)
    # Two classes have one logit or two.
    fitting = {1, 2} if getattr(data, "task", None) == "binary" else {there}
    if isinstance(there, int) and classes not in fitting:
        raise ConfigError(
            f"{name} has num_classes {classes}, and {source} has {there}: set num_classes to "
            f"{there}, or give the data that it was trained on"
        )
    given = classes_of(batch)
    largest = int(given.max()) if given is not None and len(given) else -1
    if largest >= max(classes, 2):
        raise ConfigError(
            f"{name} has num_classes {classes}, and {source} has a class {largest} (counted from "
            f"0): set num_classes to {largest + 1} or more"
        )
