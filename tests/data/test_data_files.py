"""Data sets in files: tiny ones, written here in the official layouts."""

import pickle

import numpy as np
import pytest
import torch
from made_data import classes, write_medmnist
from torchvision.datasets import CIFAR10

from lightning_merge.data import CIFARDataModule, MedMNISTDataModule
from lightning_merge.errors import ConfigError, DataError


@pytest.mark.parametrize(
    ("name", "shape", "count", "channels"),
    [
        ("pneumoniamnist", (28, 28), 2, 1),  # binary-class
        ("retinamnist", (28, 28, 3), 5, 3),  # ordinal-regression
        ("bloodmnist", (28, 28, 3), 8, 3),  # multi-class
    ],
)
def test_medmnist_single_label(tmp_path, name, shape, count, channels):
    arrays = write_medmnist(tmp_path, name, shape, classes(count))
    dm = MedMNISTDataModule(name=name, root=str(tmp_path), augment=False)
    described = (dm.task, dm.num_classes, dm.in_chans, dm.image_size, len(dm.class_names))
    assert described == ("multiclass", count, channels, 28, count)
    dm.prepare_data()
    dm.setup("fit")
    assert (len(dm.train_set), len(dm.val_set), len(dm.test_set)) == (20, 6, 10)
    pixels = arrays["train_images"].reshape(20, 28, 28, channels) / 255
    mean, std = pixels.mean((0, 1, 2)), pixels.std((0, 1, 2))
    for split, data in (("train", dm.train_set), ("val", dm.val_set), ("test", dm.test_set)):
        images = arrays[f"{split}_images"].reshape(-1, 28, 28, channels) / 255
        batch, targets = zip(*(data[i] for i in range(len(data))), strict=True)
        expected = ((images - mean) / std).transpose(0, 3, 1, 2)
        np.testing.assert_allclose(torch.stack(batch).numpy(), expected, atol=1e-5)
        assert torch.stack(targets).dtype == torch.int64
        assert torch.stack(targets).tolist() == arrays[f"{split}_labels"][:, 0].tolist()


def test_medmnist_multilabel(tmp_path):
    arrays = write_medmnist(
        tmp_path, "chestmnist", (28, 28), lambda draw, count: draw.integers(0, 2, (count, 14))
    )
    dm = MedMNISTDataModule(
        name="chestmnist", root=str(tmp_path), split="random", part=0, augment=False
    )
    assert (dm.task, dm.num_classes) == ("multilabel", 14)
    images, targets = next(iter(dm.statistics_dataloader()))
    assert images.shape == (10, 1, 28, 28)
    assert targets.dtype == torch.float32
    assert targets.tolist() == arrays["train_labels"][dm.train_set.indices].tolist()


def test_medmnist_larger_sizes_have_their_own_file(tmp_path):
    write_medmnist(tmp_path, "breastmnist_64", (64, 64), classes(2))
    dm = MedMNISTDataModule(name="breastmnist", root=str(tmp_path), size=64)
    assert next(iter(dm.train_dataloader()))[0].shape == (20, 1, 64, 64)
    assert (dm.train_set.padding, dm.train_set.flip) == (8, False)


def test_medmnist_held_out_replaces_the_official_validation(tmp_path):
    write_medmnist(tmp_path, "breastmnist", (28, 28), classes(2))
    dm = MedMNISTDataModule(name="breastmnist", root=str(tmp_path), held_out=0.2)
    dm.setup("fit")
    assert (len(dm.train_set), len(dm.val_set)) == (16, 4)
    assert dm.val_set.source is dm.train_set.source


def test_medmnist_missing_file_says_how_to_get_it(tmp_path):
    dm = MedMNISTDataModule(name="breastmnist", root=str(tmp_path))
    dm.prepare_data()
    with pytest.raises(DataError, match=r"breastmnist\.npz is missing.*download true") as error:
        dm.setup("fit")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("damage", ["empty", "truncated", "bytes", "text", "no labels"])
def test_medmnist_damaged_file(tmp_path, damage):
    arrays = write_medmnist(tmp_path, "breastmnist", (28, 28), classes(2))
    file = tmp_path / "breastmnist.npz"
    whole = file.read_bytes()
    if damage == "no labels":
        arrays.pop("test_labels")
        np.savez(file, **arrays)
    else:
        flipped = bytearray(whole)
        flipped[2000:2100] = bytes(100)
        file.write_bytes(
            {"empty": b"", "truncated": whole[:-300], "bytes": flipped, "text": b"hello"}[damage]
        )
    dm = MedMNISTDataModule(name="breastmnist", root=str(tmp_path))
    with pytest.raises(DataError, match=r"breastmnist\.npz is damaged") as error:
        dm.setup("fit")
    assert "\n" not in str(error.value)


def test_medmnist_downloads_in_prepare_data_only_and_only_once(tmp_path, monkeypatch):
    import medmnist

    calls = []

    def download(self):
        calls.append(self.flag)
        write_medmnist(tmp_path / "new", "breastmnist", (28, 28), classes(2))

    monkeypatch.setattr(medmnist.BreastMNIST, "download", download)
    dm = MedMNISTDataModule(name="breastmnist", root=str(tmp_path / "new"), download=True)
    with pytest.raises(DataError, match="is missing"):
        dm.setup("fit")
    assert calls == []
    for _ in range(2):
        dm.prepare_data()
    dm.setup("fit")
    assert calls == ["breastmnist"]
    assert len(dm.train_set) == 20


def test_medmnist_failed_download(tmp_path, monkeypatch):
    import medmnist

    def download(_self):
        raise RuntimeError("a\nlong\nstory")

    monkeypatch.setattr(medmnist.BreastMNIST, "download", download)
    dm = MedMNISTDataModule(name="breastmnist", root=str(tmp_path), download=True)
    with pytest.raises(DataError, match="could not be downloaded") as error:
        dm.prepare_data()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"name": "organmnist3d"}, "organmnist3d.*not a 2D set.*bloodmnist"),
        ({"name": "mnist"}, "'mnist' is not"),
        ({"size": 32}, "size is 32.*64"),
    ],
)
def test_medmnist_refuses_what_it_has_not(arguments, words):
    with pytest.raises(ConfigError, match=words):
        MedMNISTDataModule(**arguments)


@pytest.mark.parametrize(("count", "examples"), [(10, 100), (100, 200)])
def test_cifar_reads_the_official_layout(cifar, count, examples):
    dm = CIFARDataModule(num_classes=count, root=str(cifar), held_out=0.0, augment=False)
    assert (dm.num_classes, dm.in_chans, dm.image_size, dm.task) == (count, 3, 32, "multiclass")
    assert len(dm.class_names) == count
    dm.prepare_data()
    dm.setup("fit")
    assert (len(dm.train_set), len(dm.test_set), dm.val_set) == (examples, 2 * count, None)
    file = cifar / ("cifar-10-batches-py/data_batch_1" if count == 10 else "cifar-100-python/train")
    first = pickle.loads(file.read_bytes())["data"][3].reshape(3, 32, 32) / 255
    mean = [0.4914, 0.4822, 0.4465] if count == 10 else [0.5071, 0.4865, 0.4409]
    std = [0.2470, 0.2435, 0.2616] if count == 10 else [0.2673, 0.2564, 0.2762]
    expected = (first - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
    image, target = dm.train_set[3]
    np.testing.assert_allclose(image.numpy(), expected, atol=1e-5)
    assert target == 3


def test_cifar_training_images_are_shifted_and_mirrored(cifar):
    dm = CIFARDataModule(root=str(cifar))
    dm.setup("fit")
    assert (dm.train_set.padding, dm.train_set.flip) == (4, True)
    assert (dm.val_set.padding, dm.val_set.flip) == (0, False)
    assert (dm.test_set.padding, dm.test_set.flip) == (0, False)


def test_cifar_restricted_to_some_classes(cifar):
    whole = CIFARDataModule(num_classes=100, root=str(cifar), held_out=0.0)
    some = CIFARDataModule(num_classes=100, root=str(cifar), held_out=0.0, classes=[70, 3, 99])
    whole.setup("fit")
    some.setup("fit")
    assert (some.num_classes, some.class_names) == (3, ["rose", "bear", "worm"])
    for data, complete in ((some.train_set, whole.train_set), (some.test_set, whole.test_set)):
        assert data.targets.tolist() == [1, 0, 2] * 2
        kept = torch.isin(complete.targets, torch.tensor([3, 70, 99]))
        assert torch.equal(data.source.images, complete.source.images[kept])


@pytest.mark.parametrize("classes", [[], [1, 1], [10], [-1]])
def test_cifar_refuses_classes_it_has_not(classes):
    with pytest.raises(ConfigError, match="classes is"):
        CIFARDataModule(classes=classes)


def test_cifar_has_10_or_100_classes():
    with pytest.raises(ConfigError, match="num_classes is 20"):
        CIFARDataModule(num_classes=20)


def test_cifar_missing_or_damaged_says_how_to_get_it(cifar):
    missing = CIFARDataModule(root=str(cifar / "elsewhere"))
    missing.prepare_data()
    with pytest.raises(DataError, match=r"cifar-10-batches-py is missing.*download true") as error:
        missing.setup("fit")
    assert "\n" not in str(error.value)
    with open(cifar / "cifar-10-batches-py" / "test_batch", "ab") as file:
        file.write(b"x")
    with pytest.raises(DataError, match="cifar-10-batches-py has missing or damaged files"):
        CIFARDataModule(root=str(cifar)).setup("fit")


def test_cifar_failed_download(tmp_path, monkeypatch):
    def download(_self):
        raise RuntimeError("Error downloading")

    monkeypatch.setattr(CIFAR10, "download", download)
    with pytest.raises(DataError, match="could not be downloaded"):
        CIFARDataModule(root=str(tmp_path / "new"), download=True).prepare_data()
