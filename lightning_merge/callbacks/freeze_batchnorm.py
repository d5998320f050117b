"""BatchNorm statistics that stay as they are while a network is fine-tuned."""

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.nn.modules.batchnorm import _BatchNorm


class FreezeBatchNorm(Callback):
    """Keeps BatchNorm in evaluation mode during training: its statistics are used, not updated.

    Networks that are fine-tuned so from one start keep that start's statistics. The difference
    between two of them is then made by gradients alone, as task vectors want it, and their merge
    computes with statistics that every one of them was trained under. Weights and biases of
    BatchNorm are trained like all others.

    After the fit each layer is in the mode that it was in.
    """

    def __init__(self) -> None:
        self._modes: dict[str, bool] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remembers the layers' modes."""
        del trainer
        self._modes = {
            name: layer.training
            for name, layer in pl_module.named_modules()
            if isinstance(layer, _BatchNorm)
        }

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int
    ) -> None:
        """Freezes, before each batch: validation and the module's own hooks may undo it."""
        del trainer, batch, batch_idx
        for name in self._modes:
            pl_module.get_submodule(name).eval()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gives the layers their modes back."""
        del trainer
        for name, mode in self._modes.items():
            pl_module.get_submodule(name).train(mode)
