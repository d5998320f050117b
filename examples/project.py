"""Stands for the project that you already have: a LightningModule, its data, its training.

Nothing in this file knows of lightning_merge.
"""

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split
from torchmetrics import Accuracy


class DigitsClassifier(LightningModule):
    """A small convolutional network for images of 8x8 pixels."""

    def __init__(self, channels: int = 16, lr: float = 0.003) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.network = nn.Sequential(
            nn.Conv2d(1, channels, 3, padding=1),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1),
            nn.BatchNorm2d(2 * channels),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(8 * channels, 10),
        )
        self.accuracy = Accuracy("multiclass", num_classes=10)

    def forward(self, images):
        return self.network(images)

    def training_step(self, batch, batch_idx):
        images, labels = batch
        return nn.functional.cross_entropy(self(images), labels)

    def validation_step(self, batch, batch_idx):
        images, labels = batch
        self.accuracy(self(images), labels)
        self.log("val_accuracy", self.accuracy, prog_bar=True)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.hparams.lr)


def loaders(batch_size: int = 64) -> tuple[DataLoader, DataLoader]:
    """The digits of scikit-learn: 1,437 to train on, 360 to validate on."""
    digits = load_digits()
    images = torch.tensor(digits.images[:, None] / 8 - 1, dtype=torch.float32)
    data = TensorDataset(images, torch.tensor(digits.target))
    train, validation = random_split(data, [1437, 360], torch.Generator().manual_seed(0))
    return (
        DataLoader(train, batch_size, shuffle=True, drop_last=True),
        DataLoader(validation, batch_size),
    )


def train(seed: int, path: str, max_epochs: int = 3) -> None:
    """Trains one network and saves it."""
    seed_everything(seed, verbose=False)
    trainer = Trainer(max_epochs=max_epochs, accelerator="cpu", logger=False, **QUIET)
    trainer.fit(DigitsClassifier(), *loaders())
    trainer.save_checkpoint(path)


QUIET = {
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
}
