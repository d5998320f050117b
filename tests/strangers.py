"""LightningModules and networks as people write them who have never heard of us."""

from typing import ClassVar

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import Accuracy, MetricCollection


def randomise(module: nn.Module, seed: int) -> nn.Module:
    """Gives every parameter and statistic a value that no default has."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)
        for name, buffer in module.named_buffers():
            if name.endswith("running_var"):
                buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
            elif name.endswith("running_mean"):
                buffer.copy_(torch.randn(buffer.shape, generator=generator))
            elif name.endswith("num_batches_tracked"):
                buffer.fill_(int(torch.randint(3, 100, (), generator=generator)))
    return module


def small_network(channels: int = 6, classes: int = 4) -> nn.Sequential:
    """Convolution, BatchNorm, ReLU twice, then a linear layer; for 3x8x8 images."""
    return nn.Sequential(
        nn.Conv2d(3, channels, 3, padding=1),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1),
        nn.BatchNorm2d(2 * channels),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2 * channels, classes),
    )


class Stranger(LightningModule):
    """Logs in steps and in hooks, has hyper-parameters, metrics, and a counter of its own."""

    def __init__(self, channels: int = 6, classes: int = 4, lr: float = 0.1) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = small_network(channels, classes)
        self.metrics = MetricCollection({"acc": Accuracy("multiclass", num_classes=classes)})
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.hooks: list[str] = []
        self.forward_alias = self.forward

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        self.calls += 1
        logits = self.forward_alias(batch[0])
        loss = nn.functional.cross_entropy(logits, batch[1])
        self.log("loss_in_step", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.metrics.update(self(batch[0]), batch[1])

    def on_validation_epoch_end(self):
        self.log_dict(self.metrics.compute())
        self.metrics.reset()

    def test_step(self, batch, batch_idx):
        self.metrics.update(self(batch[0]), batch[1])

    def on_test_epoch_end(self):
        self.log_dict({f"test_{k}": v for k, v in self.metrics.compute().items()})
        self.metrics.reset()

    def on_train_epoch_end(self):
        self.hooks.append("train_epoch_end")
        self.log("in_hook", float(self.current_epoch))

    def on_after_backward(self):
        self.hooks.append("after_backward")

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.hparams.lr)


class ByHand(Stranger):
    """Optimizes manually."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False


class Regression(LightningModule):
    """A linear map, fitted by least squares."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 5, bias=False)

    def training_step(self, batch, batch_idx):
        return nn.functional.mse_loss(self.layer(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Tied(LightningModule):
    """An autoencoder whose decoder is the encoder's weight, transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(12, 12, bias=False)
        self.decoder = nn.Linear(12, 12, bias=False)
        self.decoder.weight = self.encoder.weight

    def forward(self, x):
        return self.decoder(torch.tanh(self.encoder(x)))

    def training_step(self, batch, batch_idx):
        return ((self(batch[0]) - batch[0]) ** 2).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def image_batches(count: int = 6, size: int = 16, classes: int = 4, seed: int = 7):
    """A loader of random 3x8x8 images whose mean tells the class, in a fixed order."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(0, classes, (count * size,), generator=generator)
    images = torch.randn(count * size, 3, 8, 8, generator=generator)
    images += targets[:, None, None, None] - classes / 2
    return DataLoader(TensorDataset(images, targets), batch_size=size)


def quiet_trainer(**changes) -> Trainer:
    """A Trainer that writes nothing and says nothing."""
    settings = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }
    return Trainer(**{**settings, **changes})


class KeepPredictions(BasePredictionWriter):
    """Keeps what a run predicts, where a test finds it."""

    kept: ClassVar[list] = []

    def __init__(self) -> None:
        super().__init__(write_interval="epoch")

    def write_on_epoch_end(self, trainer, pl_module, predictions, batch_indices):
        KeepPredictions.kept = [torch.cat(predictions)]
