"""MNIST and USPS: tiny ones, written in their layouts."""

import numpy as np
import pytest
from made_folders import (
    refused,
    write_mnist,
    write_usps,
)

from lightning_merge.data import (
    MNISTDataModule,
    USPSDataModule,
)


def test_mnist(tmp_path):
    made = write_mnist(tmp_path)
    dm = MNISTDataModule(str(tmp_path), held_out=0.0, augment=False)
    assert (dm.num_classes, dm.in_chans, dm.image_size, dm.horizontal_flip) == (10, 1, 28, False)
    dm.prepare_data()
    dm.setup("fit")
    for split, data in (("train", dm.train_set), ("t10k", dm.test_set)):
        images, labels = made[split]
        assert data.targets.tolist() == labels.tolist()
        for position in (0, len(labels) - 1):
            expected = (images[position] / 255 - 0.1307) / 0.3081
            np.testing.assert_allclose(data[position][0][0].numpy(), expected, atol=1e-5)


def test_mnist_unpacks_what_lies_there_packed(tmp_path, monkeypatch):
    import hashlib

    from torchvision.datasets import MNIST

    write_mnist(tmp_path, packed=True)
    dm = MNISTDataModule(str(tmp_path), download=True)
    assert "MNIST/raw are missing or damaged" in refused(lambda: dm.setup("fit"))
    sums = [
        (file, hashlib.md5((tmp_path / "MNIST" / "raw" / file).read_bytes()).hexdigest())
        for file, _ in MNIST.resources
    ]
    monkeypatch.setattr(MNIST, "resources", sums)
    monkeypatch.setattr(MNIST, "mirrors", ["nowhere://"])
    dm.prepare_data()
    dm.setup("fit")
    assert len(dm.test_set) == 10


def test_usps(tmp_path):
    made = write_usps(tmp_path)
    dm = USPSDataModule(str(tmp_path), held_out=0.0, augment=False)
    assert (dm.num_classes, dm.in_chans, dm.image_size, dm.horizontal_flip) == (10, 1, 16, False)
    dm.setup("fit")
    for file, data in (("usps.bz2", dm.train_set), ("usps.t.bz2", dm.test_set)):
        images, labels = made[file]
        assert data.targets.tolist() == labels.tolist()
        assert np.array_equal(data.source.images[:, 0].numpy(), images)


@pytest.mark.parametrize("kind", [MNISTDataModule, USPSDataModule])
def test_handwritten_digits_say_what_is_missing_or_damaged(tmp_path, kind, monkeypatch):
    from torchvision.datasets import MNIST

    dm = kind(str(tmp_path))
    dm.prepare_data()
    message = refused(lambda: dm.setup("fit"))
    assert f"{dm.title}'s train files" in message
    assert "download true" in message
    write = {MNISTDataModule: write_mnist, USPSDataModule: write_usps}[kind]
    write(tmp_path)
    files = ["MNIST/raw/t10k-images-idx3-ubyte", "usps.t.bz2"]
    damaged = next(tmp_path / file for file in files if (tmp_path / file).is_file())
    damaged.write_bytes(damaged.read_bytes()[:-50])
    assert f"{dm.title}'s test files" in refused(lambda: kind(str(tmp_path)).setup("fit"))

    def fail(*_args, **_kwargs):
        raise OSError("no\nnetwork")

    monkeypatch.setattr(MNIST, "download", fail)
    monkeypatch.setattr("torchvision.datasets.usps.download_url", fail)
    absent = kind(str(tmp_path / "new"), download=True)
    assert "could not be downloaded" in refused(absent.prepare_data)
