"""A network of images and what else is known of them: merged where it can be, refused else."""

import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from strangers import randomise
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_merge import merge
from lightning_merge.errors import ConfigError

CLASSES = 3


class WithAge(LightningModule):
    def __init__(self):
        super().__init__()
        self.image, self.age = nn.Linear(6, 8), nn.Linear(1, 8)
        self.head = nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, CLASSES))

    def forward(self, image, age):
        return self.head(self.image(image).relu() + self.age(age).relu())

    def training_step(self, batch, batch_idx):
        image, target, age = batch
        return nn.functional.cross_entropy(self(image, age), target)

    def validation_step(self, batch, batch_idx):
        image, target, age = batch
        self.log("val_acc", (self(image, age).argmax(1) == target).float().mean())

    def test_step(self, batch, batch_idx):
        image, target, age = batch
        self.log("test_acc", (self(image, age).argmax(1) == target).float().mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Patients(LightningDataModule):
    def __init__(self):
        super().__init__()
        image = torch.randn(24, 6, generator=torch.Generator().manual_seed(3))
        self.data = TensorDataset(image, torch.arange(24) % CLASSES, image[:, :1] * 2)

    def train_dataloader(self):
        return DataLoader(self.data, batch_size=8, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.data, batch_size=8)

    def test_dataloader(self):
        return self.val_dataloader()


def merged(**recipe):
    networks = [randomise(WithAge(), seed) for seed in (1, 2)]
    found = merge(
        networks,
        {"name": "R", **recipe},
        Patients(),
        trainer={"accelerator": "cpu", "logger": False, "enable_progress_bar": False},
        progress=False,
    )
    return networks, found


@pytest.mark.parametrize("aggregate", ["Average", "NPMerge", "FineTune"])
def test_what_reads_no_data_by_itself_merges(aggregate):
    networks, found = merged(aggregate=aggregate)
    mean = torch.stack([one.image.weight for one in networks]).mean(0)
    assert torch.equal(found.merged["R"].image.weight.cpu(), mean) == (aggregate == "Average")


def test_a_greedy_soup_goes_by_what_the_validation_logs():
    networks, found = merged(aggregate="GreedySoup")
    image, target, age = Patients().data.tensors

    def right(network):
        with torch.no_grad():
            return int((network.eval()(image, age).argmax(1) == target).sum())

    mean = found.merged["R"].cpu()
    assert right(mean) >= max(map(right, networks))


@pytest.mark.parametrize(
    "recipe",
    [
        {"aggregate": "Average", "align": "WeightMatching"},
        {"aggregate": "Average", "align": "ActivationMatching"},
        {"aggregate": "Average", "recalibrate": "batchnorm"},
        {"aggregate": "Average", "recalibrate": "least-squares"},
        {"aggregate": "RegMean"},
        {"aggregate": "Fisher"},
        {"aggregate": "ZipIt"},
    ],
)
def test_what_reads_them_says_what_it_cannot_give(recipe):
    with pytest.raises(ConfigError, match=r"'R': WithAge.forward takes image, age, and .* alone"):
        merged(**recipe)
