"""The checkpoint that `fit` keeps where a configuration has no ModelCheckpoint of its own."""

import os
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

# What modules commonly log in validation, the first of them first.
_USUAL = {
    "val_accuracy": "max",
    "val_acc": "max",
    "val/accuracy": "max",
    "val/acc": "max",
    "val_loss": "min",
    "val/loss": "min",
}


class BestCheckpoint(ModelCheckpoint):
    """Keeps the best epoch on validation data, and the last one to resume from.

    What is best is the module's `monitor` (and its `mode`), or else the first of `val_accuracy`,
    `val_acc` and `val_loss` that it logs. Without validation, or where none of these is logged,
    the last epoch is kept. Files are named after the model, the data, the seed and the metric:
    `resnet20_cifar-digits-part0-seed0-epoch=07-val_accuracy=0.9667.ckpt`.
    """

    def __init__(self) -> None:
        super().__init__(save_last=True)

    @property
    def state_key(self) -> str:
        """Always the same, because the metric is not known when a run is resumed."""
        return "BestCheckpoint"

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Names the files."""
        if stage == "fit":
            name = run_name(pl_module, getattr(trainer, "datamodule", None))
            self.filename = f"{name}-{{epoch:02d}}"
            self.CHECKPOINT_NAME_LAST = f"{name}-last"
        super().setup(trainer, pl_module, stage)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves, by the metric that is found the first time."""
        if not trainer.sanity_checking:
            self._choose(pl_module, trainer.callback_metrics)
        super().on_validation_end(trainer, pl_module)

    def _save_topk_checkpoint(self, trainer: Trainer, monitor_candidates: dict[str, Any]) -> None:
        super()._save_topk_checkpoint(trainer, monitor_candidates)
        # ModelCheckpoint writes the last one only where this step had a new best one.
        self._last_global_step_saved = trainer.global_step

    def _choose(self, module: LightningModule, logged: Mapping[str, Any]) -> None:
        if self.monitor is not None:
            return
        own = str(getattr(module, "monitor", ""))
        modes = {own: str(getattr(module, "mode", "max")), **_USUAL}
        name = next((name for name in modes if name in logged), None)
        if name is not None:
            self.monitor, self.mode = name, modes[name]
            self.filename = f"{self.filename}-{{{name}:.4f}}" if "/" not in name else self.filename


def run_name(module: LightningModule, data: object) -> str:
    """The model, the data with their part, and the seed, as a file's name has them."""
    parts = [str(dict(module.hparams).get("model") or type(module).__name__)]
    if data is not None:
        named = getattr(data, "name", None)
        kind = type(data).__name__.removesuffix("DataModule").lower()
        parts.append(named if isinstance(named, str) and named else kind)
        part = getattr(data, "part", None)
        parts += [f"part{part}"] if isinstance(part, int) else []
    seed = os.environ.get("PL_GLOBAL_SEED")
    parts += [f"seed{seed}"] if seed else []
    # Neither a folder nor one of ModelCheckpoint's own braces.
    return "-".join("".join(x if x.isalnum() or x in "_-." else "_" for x in one) for one in parts)


def kept_line(trainer: Trainer) -> str:
    """Which file is the best (or else the last) of a fit, and by what; empty if none was kept."""
    for callback in trainer.checkpoint_callbacks:
        path = getattr(callback, "best_model_path", "")
        if not path:
            continue
        score = getattr(callback, "best_model_score", None)
        monitor = getattr(callback, "monitor", None)
        if monitor is None or score is None:
            return f"last checkpoint: {path}"
        return f"best checkpoint: {path} ({monitor} {float(score):.4f})"
    return ""
