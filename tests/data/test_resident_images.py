"""A batch that is made on the device is the one that a `DataLoader` makes on the CPU."""

import copy

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from lightning.pytorch.utilities.data import _update_dataloader
from strangers import quiet_trainer
from torch import nn
from torch.utils.data import DistributedSampler

from lightning_merge import distributed
from lightning_merge.callbacks import BatchNormReset, GreedySoup
from lightning_merge.data import ClassificationDataModule, LabelledImages, OfficialSplits
from lightning_merge.data.resident_images import resident
from lightning_merge.distributed import rank_batches
from lightning_merge.errors import ConfigError
from lightning_merge.loaders import few_test_batches, ordered_batches_of, statistics_batches_of
from lightning_merge.orders import in_random_order, share_of
from lightning_merge.recalibrate import reset_batchnorm
from lightning_merge.reloading import afresh, reloaded, with_batches

CPU = torch.device("cpu")
LOADERS = [f"{name}_dataloader" for name in ("train", "statistics", "val", "test", "predict")]


class Photographs(ClassificationDataModule):
    """Small colour images that are mirrored, too."""

    horizontal_flip = True

    def __init__(self, count=43, **settings):
        super().__init__(**{"batch_size": 8, "eval_batch_size": 10, **settings})
        self.count = count
        self.num_classes, self.in_chans, self.image_size = 3, 3, 16

    def load_splits(self):
        return OfficialSplits(self.drawn(self.count, 0), self.drawn(13, 1))

    def drawn(self, count, seed):
        draw = torch.Generator().manual_seed(seed)
        images = torch.randint(0, 256, (count, 3, 16, 16), dtype=torch.uint8, generator=draw)
        return LabelledImages(images, torch.arange(count) % 3)


class Network(pl.LightningModule):
    """A network with one norm, which notes the classes and images that it is given."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten())
        self.net.append(nn.Linear(4 * 14 * 14, 3))
        self.seen = {"train": [], "val": [], "test": []}

    def forward(self, images):
        return self.net(images)

    def training_step(self, batch, batch_idx):
        return self.loss(batch, "train")

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.loss(batch, "val"), batch_size=len(batch[1]))

    def test_step(self, batch, batch_idx):
        self.loss(batch, "test")

    def loss(self, batch, stage):
        if not self.trainer.sanity_checking:
            self.seen[stage].append([part.clone() for part in batch])
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def both(**settings):
    return Photographs(**settings), Photographs(on_device=True, **settings)


def epochs(loader, count=2, seed=5):
    torch.manual_seed(seed)
    return [batch for _ in range(count) for batch in loader]


def assert_same(found, wanted):
    assert len(found) == len(wanted) > 0
    for ours, theirs in zip(found, wanted, strict=True):
        assert all(torch.equal(*pair) for pair in zip(ours, theirs, strict=True))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"augment": False},
        {"split": "80-20", "part": 1, "examples_per_class": 5},
        {"resize": 12, "channels": 1},
        {"corruption": "gaussian_noise", "test_examples": 9},
    ],
)
@pytest.mark.parametrize("name", LOADERS)
def test_every_loader_gives_the_batches_of_the_cpu(settings, name):
    plain, ours = both(**settings)
    assert_same(*(epochs(getattr(data, name)()) for data in (ours, plain)))


def test_a_corrupted_twin_has_images_of_its_own(monkeypatch):
    monkeypatch.setattr("lightning_merge.data.image_dataset._KEPT_BYTES", 0)
    plain, ours = both()
    clean = epochs(ours.test_dataloader())
    twins = [data.corrupted("contrast", 5) for data in (ours, plain)]
    found, wanted = (epochs(twin.test_dataloader()) for twin in twins)
    assert_same(found, wanted)
    assert not torch.equal(found[0][0], clean[0][0])
    assert_same(epochs(ours.test_dataloader()), clean)


def test_the_bytes_are_there_once():
    ours = Photographs(on_device=True)
    sources = [getattr(ours, name)().dataset.source for name in LOADERS]
    assert len({id(source.images) for source in sources}) == 2
    assert all(source.images.dtype == torch.uint8 for source in sources)


def test_what_reads_loaders_for_statistics_reads_the_same():
    plain, ours = both(held_out=0.0)
    network = Network()
    readings = [
        lambda data: in_random_order(data.train_dataloader(), 3),
        lambda data: in_random_order(data.statistics_dataloader(), 3),
        lambda data: share_of(data.statistics_dataloader(), 2),
        lambda data: statistics_batches_of(data, network, CPU, examples=21, seed=4),
        lambda data: statistics_batches_of(data, network, CPU, augmented=True),
        lambda data: ordered_batches_of(data, network, CPU),
        lambda data: few_test_batches(data, network, CPU, 7),
        lambda data: reloaded(data.test_dataloader(), indices=[3, 1, 11], batch_size=2),
        lambda data: reloaded(data.train_dataloader(), shuffle_seed=2),
        lambda data: afresh(data.train_dataloader()),
        lambda data: (part for part, *_ in CombinedLoader(data.test_dataloader())),
    ]
    for number, reading in enumerate(readings):
        found, wanted = (epochs(reading(data), 1) for data in (ours, plain))
        if number < 2:
            # A last batch of three, none dropped.
            assert sum(len(batch[1]) for batch in found) == 43
        assert_same(found, wanted)


def test_reset_statistics_are_those_of_the_images_themselves():
    ours = Photographs(on_device=True)
    network = Network()
    reset_batchnorm(network, ours.statistics_dataloader())
    images = ours.normalisation(ours.train_set.source.images[ours.train_set.indices])
    values = network.net[0](images).detach().double()
    assert torch.allclose(network.net[1].running_mean.double(), values.mean((0, 2, 3)), atol=1e-6)
    assert torch.allclose(network.net[1].running_var.double(), values.var((0, 2, 3)), atol=1e-6)


@pytest.mark.parametrize("name", ["train_dataloader", "test_dataloader"])
def test_each_rank_has_its_share(name, monkeypatch):
    """As Lightning divides a loader, and as a greedy soup divides the validation."""
    shares = []
    for data in both():
        loader, batches = getattr(data, name)(), []
        for rank in (0, 1):
            sampler = DistributedSampler(loader.dataset, 2, rank, shuffle=False)
            batches += epochs(_update_dataloader(loader, sampler), 1)
        shares.append(batches)
    assert_same(*shares)
    for rank in (0, 1):
        monkeypatch.setattr(distributed, "ranks", lambda rank=rank: (rank, 2))
        divided = rank_batches(13, 3)
        found, wanted = (epochs(with_batches(d.test_dataloader(), divided), 1) for d in both())
        assert_same(found, wanted)


def test_training_validation_and_test_are_those_of_the_cpu():
    torch.manual_seed(0)
    start, trained = Network(), []
    for data in both(held_out=0.2):
        module = copy.deepcopy(start)
        torch.manual_seed(9)
        trainer = quiet_trainer(max_epochs=1, callbacks=[BatchNormReset(), GreedySoup("val_loss")])
        trainer.fit(module, datamodule=data)
        trainer.test(module, datamodule=data, verbose=False)
        trained.append(module)
    plain, ours = trained
    for stage, batches in plain.seen.items():
        assert_same(ours.seen[stage], batches)
    for name, value in plain.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value), name


def test_what_does_not_fit_is_refused(monkeypatch):
    with pytest.raises(ConfigError, match="num_workers to 0, not 2"):
        Photographs(on_device=True, num_workers=2)
    data = Photographs(resize=12)
    data.setup()

    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(torch.Tensor, "new_empty", full)
    with pytest.raises(ConfigError, match="cpu has no room for 43 images"):
        resident(data.train_set, CPU)
