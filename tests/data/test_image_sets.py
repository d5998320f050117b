"""Data sets of image files, and MNIST and USPS: tiny ones, written here in their layouts."""

import shutil

import numpy as np
import pytest
import torch
from made_folders import (
    pixels,
    write_celeba,
    write_chest_xray,
    write_class_folders,
    write_image,
    write_mnist,
    write_tiny_imagenet,
    write_usps,
)
from PIL import Image

from lightning_merge.data import (
    CelebADataModule,
    ChestXrayDataModule,
    ClassificationDataModule,
    ImageFiles,
    ImageFolderDataModule,
    LabelledImages,
    MNISTDataModule,
    Normalisation,
    OfficialSplits,
    TinyImageNetDataModule,
    USPSDataModule,
)
from lightning_merge.data.celeba import ATTRIBUTES
from lightning_merge.data.chest_xray import LABELS
from lightning_merge.errors import ConfigError, DataError

MEAN = np.array([0.485, 0.456, 0.406]).reshape(3, 1, 1)
STD = np.array([0.229, 0.224, 0.225]).reshape(3, 1, 1)


def normalised(image):
    """What a network should see of an `(H, W, 3)` image of the size asked for."""
    return torch.from_numpy((image.transpose(2, 0, 1) / 255 - MEAN) / STD).float()


def refused(call, error=DataError):
    with pytest.raises(error) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Images on disk


def test_files_are_cut_to_the_central_square_and_resized(tmp_path):
    wide = write_image(tmp_path / "wide.png", pixels("a", shape=(48, 80, 3)))
    tall = write_image(tmp_path / "tall.png", pixels("b", shape=(90, 40, 3)))
    files = ImageFiles([tmp_path / "wide.png", tmp_path / "tall.png"], 16, 3)
    assert len(files) == 2
    images = files[torch.tensor([1, 0, 1])]
    assert images.shape == (3, 3, 16, 16)
    assert images.dtype == torch.uint8
    for image, square in ((images[0], tall[25:65]), (images[1], wide[:, 16:64])):
        expected = Image.fromarray(square).resize((16, 16), Image.Resampling.BILINEAR)
        assert np.array_equal(image.permute(1, 2, 0).numpy(), np.asarray(expected))
    assert torch.equal(images[0], images[2])


def test_files_become_grey_or_colour_as_asked(tmp_path):
    colour = write_image(tmp_path / "colour.png", pixels("a", shape=(16, 16, 3)))
    grey = write_image(tmp_path / "grey.png", pixels("b", shape=(16, 16)))
    transparent = np.dstack([colour, np.full((16, 16), 9, np.uint8)])
    write_image(tmp_path / "transparent.png", transparent)
    paths = [tmp_path / f"{name}.png" for name in ("colour", "grey", "transparent")]
    images = ImageFiles(paths, 16, 3)[torch.arange(3)].permute(0, 2, 3, 1).numpy()
    assert np.array_equal(images[0], colour)
    assert np.array_equal(images[1], np.dstack([grey] * 3))
    assert np.array_equal(images[2], colour)
    greys = ImageFiles(paths, 16, 1)[torch.arange(3)]
    assert greys.shape == (3, 1, 16, 16)
    assert np.array_equal(greys[1, 0].numpy(), grey)
    luminance = colour.astype(float) @ [0.299, 0.587, 0.114]
    np.testing.assert_allclose(greys[0, 0].numpy(), luminance, atol=1)


@pytest.mark.parametrize("damage", ["empty", "text", "truncated", "bytes", "gone", "folder"])
@pytest.mark.parametrize("kind", ["png", "jpg"])
def test_a_damaged_image_is_named(tmp_path, damage, kind):
    path = tmp_path / f"broken.{kind}"
    write_image(path, pixels("a"))
    whole = path.read_bytes()
    changed = bytearray(whole)
    changed[10:60] = bytes(50)
    contents = {"empty": b"", "text": b"hello", "truncated": whole[:-200], "bytes": changed}
    path.unlink()
    if damage == "folder":
        path.mkdir()
    elif damage != "gone":
        path.write_bytes(contents[damage])
    message = refused(lambda: ImageFiles([path], 8, 3)[torch.tensor([0])])
    assert str(path) in message
    assert ("is missing" if damage == "gone" else "is damaged") in message


def test_statistics_of_images_on_disk_are_those_in_memory(tmp_path):
    write_class_folders(tmp_path, ["train"], ["a"], count=5, shape=(8, 8, 3))
    files = ImageFiles(sorted(tmp_path.rglob("*.png")), 8, 3)
    assert Normalisation.of(files) == Normalisation.of(files[torch.arange(5)])


class OnDisk(ClassificationDataModule):
    """The same squares from files or from memory."""

    def __init__(self, folder, memory, **kwargs):
        super().__init__(**kwargs)
        self.folder, self.memory = folder, memory
        self.num_classes, self.in_chans, self.image_size = 2, 3, 8

    def load_splits(self):
        files = ImageFiles(sorted(self.folder.rglob("*.png")), 8, 3)
        images = files[torch.arange(len(files))] if self.memory else files
        data = LabelledImages(images, torch.arange(len(files)) % 2)
        return OfficialSplits(train=data, test=data)


@pytest.mark.parametrize("workers", [0, 1])
def test_the_same_batches_come_from_disk_and_from_memory(tmp_path, workers):
    write_class_folders(tmp_path, ["train"], ["a", "b"], count=10, shape=(8, 8, 3))
    batches = []
    for memory in (True, False):
        dm = OnDisk(
            tmp_path,
            memory,
            split="80-20",
            part=0,
            batch_size=4,
            num_workers=workers,
            corruption="gaussian_noise",
            augment=workers == 0,
            held_out=0.2,
        )
        torch.manual_seed(0)
        batches.append(
            [
                tensor
                for loader in ("train", "statistics", "val", "test")
                for batch in getattr(dm, f"{loader}_dataloader")()
                for tensor in batch
            ]
        )
        batches[-1].append(dm.split_hash)
    assert len(batches[0]) == len(batches[1]) > 20
    for first, second in zip(*batches, strict=True):
        assert first == second if isinstance(first, str) else torch.equal(first, second)


# Folders


def test_folders_give_each_split_its_own_images(tmp_path):
    made = write_class_folders(tmp_path, ["train", "valid", "test"], ["b", "a", "c"])
    (tmp_path / "train" / "a" / "notes.txt").write_text("not an image")
    dm = ImageFolderDataModule(str(tmp_path), image_size=64, augment=False)
    assert (dm.num_classes, dm.class_names, dm.in_chans) == (3, ["a", "b", "c"], 3)
    dm.setup("fit")
    for split, data in (("train", dm.train_set), ("valid", dm.val_set), ("test", dm.test_set)):
        assert data.targets.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
        for position in range(9):
            image, target = data[position]
            expected = made[split, "abc"[target], position % 3]
            torch.testing.assert_close(image, normalised(expected), rtol=0, atol=1e-5)


def test_folders_restricted_to_classes_in_the_order_given(tmp_path):
    made = write_class_folders(tmp_path, ["train", "val"], ["n1", "n2", "n3", "n4"])
    dm = ImageFolderDataModule(
        str(tmp_path), classes=["n4", "n2"], image_size=64, augment=False, held_out=0.0
    )
    assert (dm.num_classes, dm.class_names) == (2, ["n4", "n2"])
    dm.setup("fit")
    assert (len(dm.train_set), len(dm.test_set), dm.val_set) == (6, 6, None)
    for position in range(6):
        image, target = dm.test_set[position]
        expected = made["val", ["n4", "n2"][target], position % 3]
        torch.testing.assert_close(image, normalised(expected), rtol=0, atol=1e-5)
    assert sorted(dm.train_set.targets.tolist()) == [0, 0, 0, 1, 1, 1]


def test_val_is_the_test_split_where_test_has_no_classes(tmp_path):
    write_class_folders(tmp_path, ["train", "val"], ["a", "b"], count=10, shape=(8, 8, 3))
    write_image(tmp_path / "test" / "unlabelled.png", pixels("x", shape=(8, 8, 3)))
    dm = ImageFolderDataModule(str(tmp_path), image_size=8)
    dm.setup("fit")
    assert (len(dm.train_set), len(dm.val_set), len(dm.test_set)) == (18, 2, 20)
    assert dm.val_set.source is dm.train_set.source
    assert (dm.train_set.padding, dm.train_set.flip) == (1, True)
    unmirrored = ImageFolderDataModule(str(tmp_path), image_size=8, horizontal_flip=False)
    unmirrored.setup("fit")
    assert unmirrored.train_set.flip is False


def test_grey_folders_have_the_mean_of_imagenets_statistics(tmp_path):
    write_class_folders(tmp_path, ["train", "val"], ["a"], shape=(8, 8))
    dm = ImageFolderDataModule(str(tmp_path), image_size=8, in_chans=1, augment=False)
    images, _ = next(iter(dm.test_dataloader()))
    expected = (pixels("val", "a", 0, shape=(8, 8)) / 255 - 0.449) / 0.226
    np.testing.assert_allclose(images[0, 0].numpy(), expected, atol=1e-5)


def test_folders_say_what_is_missing_and_where_it_goes(tmp_path):
    message = refused(lambda: ImageFolderDataModule(str(tmp_path / "none")))
    assert f"{tmp_path / 'none' / 'train'} is missing" in message
    write_class_folders(tmp_path, ["train"], ["a", "b"], shape=(8, 8, 3))
    assert "neither test/<class>/ nor val/<class>/" in refused(
        lambda: ImageFolderDataModule(str(tmp_path))
    )
    write_class_folders(tmp_path, ["val"], ["a"], shape=(8, 8, 3))
    dm = ImageFolderDataModule(str(tmp_path), image_size=8)
    assert "val has no folder b" in refused(lambda: dm.setup("fit"))
    (tmp_path / "val" / "b").mkdir()
    assert "val has no images in some class's folder" in refused(lambda: dm.setup("fit"))
    absent = ImageFolderDataModule(str(tmp_path), classes=["a", "z"], image_size=8)
    assert "train has no folder z" in refused(lambda: absent.setup("fit"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"classes": []}, "classes is"),
        ({"classes": ["a", "a"]}, "classes is"),
        ({"image_size": 0}, "image_size is 0"),
        ({"in_chans": 4}, "in_chans is 4"),
    ],
)
def test_folders_refuse_what_makes_no_sense(tmp_path, arguments, words):
    write_class_folders(tmp_path, ["train", "val"], ["a"], shape=(8, 8, 3))
    assert words in refused(lambda: ImageFolderDataModule(str(tmp_path), **arguments), ConfigError)


# Tiny ImageNet


def test_tiny_imagenet(tmp_path):
    shuffled = write_tiny_imagenet(tmp_path)
    dm = TinyImageNetDataModule(str(tmp_path), held_out=0.5, augment=False)
    assert (dm.num_classes, dm.in_chans, dm.image_size, dm.task) == (200, 3, 64, "multiclass")
    dm.prepare_data()
    dm.setup("fit")
    assert (len(dm.train_set), len(dm.val_set), len(dm.test_set)) == (200, 200, 200)
    assert dm.class_names[:2] == ["word n00000000", "word n00000001"]
    names = sorted(shuffled)
    assert [names[target] for target in dm.test_set.targets] == shuffled
    image, target = dm.train_set[7]
    file = tmp_path / "tiny-imagenet-200/train" / names[target] / "images"
    held = [np.asarray(Image.open(path)) for path in sorted(file.iterdir())]
    assert any(torch.allclose(image, normalised(image_), atol=1e-5) for image_ in held)
    grey = np.asarray(Image.open(tmp_path / "tiny-imagenet-200/val/images/val_11.JPEG"))
    expected = normalised(np.dstack([grey] * 3))
    torch.testing.assert_close(dm.test_set[11][0], expected, rtol=0, atol=1e-5)


def test_tiny_imagenet_says_what_is_missing_or_damaged(tmp_path):
    missing = TinyImageNetDataModule(str(tmp_path))
    missing.prepare_data()
    message = refused(lambda: missing.setup("fit"))
    assert "tiny-imagenet-200 is missing" in message
    assert "download true" in message
    write_tiny_imagenet(tmp_path)
    folder = tmp_path / "tiny-imagenet-200"
    for name, content in (
        ("val/val_annotations.txt", "val_0.JPEG\tn12345678\t0\n"),
        ("wnids.txt", "n00000001\n"),
        ("words.txt", None),
    ):
        before = (folder / name).read_text()
        (folder / name).unlink()
        if content is not None:
            (folder / name).write_text(content)
        message = refused(lambda: TinyImageNetDataModule(str(tmp_path)).setup("fit"))
        assert f"{folder / name} is missing or damaged" in message
        (folder / name).write_text(before)
    shutil.rmtree(folder / "train" / "n00000042")
    message = refused(lambda: TinyImageNetDataModule(str(tmp_path)).setup("fit"))
    assert "train has no folder n00000042" in message


def test_tiny_imagenet_downloads_in_prepare_data_only_and_only_once(tmp_path, monkeypatch):
    from torchvision.datasets import utils

    calls = []

    def download(url, root, md5):
        calls.append((url, md5))
        write_tiny_imagenet(tmp_path / "new")

    monkeypatch.setattr(utils, "download_and_extract_archive", download)
    dm = TinyImageNetDataModule(str(tmp_path / "new"), download=True)
    refused(lambda: dm.setup("fit"))
    assert calls == []
    for _ in range(2):
        dm.prepare_data()
    dm.setup("fit")
    assert len(calls) == 1
    assert len(dm.test_set) == 200

    def fail(url, root, md5):
        raise RuntimeError("File not found or\ncorrupted.")

    monkeypatch.setattr(utils, "download_and_extract_archive", fail)
    elsewhere = TinyImageNetDataModule(str(tmp_path / "elsewhere"), download=True)
    assert "could not be downloaded" in refused(elsewhere.prepare_data)


# CelebA


def test_celeba_with_all_attributes_and_with_one(tmp_path):
    values, parts = write_celeba(tmp_path, ATTRIBUTES)
    every = CelebADataModule(str(tmp_path), image_size=178, augment=False)
    assert (every.task, every.num_classes, every.class_names[31]) == ("multilabel", 40, "Smiling")
    smiling = CelebADataModule(str(tmp_path), attribute="Smiling", image_size=178)
    assert (smiling.task, smiling.num_classes) == ("multiclass", 2)
    assert smiling.class_names == ["not Smiling", "Smiling"]
    for dm in (every, smiling):
        dm.prepare_data()
        dm.setup("fit")
        for number, data in enumerate((dm.train_set, dm.val_set, dm.test_set)):
            expected = (values[parts == number] + 1) // 2
            if dm is smiling:
                expected = expected[:, 31]
            assert data.targets.tolist() == expected.tolist()
    assert every.test_set.targets.dtype == torch.float32
    assert smiling.test_set.targets.dtype == torch.int64
    face = np.asarray(Image.open(tmp_path / "celeba/img_align_celeba/000007.jpg"))
    torch.testing.assert_close(every.val_set[0][0], normalised(face[20:198]), rtol=0, atol=1e-5)


def test_celeba_says_what_is_missing_or_damaged(tmp_path):
    message = refused(lambda: CelebADataModule(str(tmp_path)).setup("fit"))
    assert "img_align_celeba is missing" in message
    assert "mmlab.ie.cuhk.edu.hk" in message
    write_celeba(tmp_path, ATTRIBUTES)
    folder = tmp_path / "celeba"
    attributes = (folder / "list_attr_celeba.txt").read_text()
    partition = (folder / "list_eval_partition.txt").read_text()
    for name, content, words in (
        ("list_attr_celeba.txt", None, "is missing"),
        ("list_attr_celeba.txt", attributes[:-9], "is damaged"),
        ("list_eval_partition.txt", partition.replace("0\n", "zero\n", 1), "is damaged"),
        ("list_eval_partition.txt", partition[13:], "name different images"),
    ):
        before = (folder / name).read_text()
        (folder / name).unlink()
        if content is not None:
            (folder / name).write_text(content)
        message = refused(lambda: CelebADataModule(str(tmp_path)).setup("fit"))
        assert name in message
        assert words in message
        (folder / name).write_text(before)
    assert "'Happy' is unknown" in refused(lambda: CelebADataModule(attribute="Happy"), ConfigError)


def test_celeba_failed_download_says_what_to_get(tmp_path, monkeypatch):
    from torchvision.datasets import CelebA

    def download(self):
        raise RuntimeError("quota\nexceeded")

    monkeypatch.setattr(CelebA, "download", download)
    dm = CelebADataModule(str(tmp_path), download=True)
    message = refused(dm.prepare_data)
    assert "quota exceeded" in message
    assert "img_align_celeba.zip" in message
    write_celeba(tmp_path, ATTRIBUTES)
    dm.prepare_data()


# ChestX-ray14


@pytest.mark.parametrize("table", ["Data_Entry_2017.csv", "Data_Entry_2017_v2020.csv"])
def test_chest_xray(tmp_path, table):
    findings = write_chest_xray(tmp_path, table=table)
    dm = ChestXrayDataModule(str(tmp_path), image_size=64, augment=False)
    described = (dm.task, dm.num_classes, dm.in_chans, dm.horizontal_flip)
    assert described == ("multilabel", 14, 1, False)
    dm.setup("fit")
    names = {
        "train": [name for name in findings if int(name[:8]) <= 18 and int(name[:8]) % 8 != 7],
        "val": [name for name in findings if int(name[:8]) in (7, 15)],
        "test": [name for name in findings if int(name[:8]) > 18],
    }
    assert sum(map(len, names.values())) == len(findings)
    assert any(findings[name] == [] for name in names["train"])
    for split, data in (("train", dm.train_set), ("val", dm.val_set), ("test", dm.test_set)):
        assert len(data) == len(names[split]) > 0
        for position, name in enumerate(names[split]):
            image, target = data[position]
            present = [LABELS[label] for label in target.nonzero().flatten()]
            assert sorted(present) == sorted(findings[name])
            expected = (pixels(name, shape=(64, 64)) / 255 - 0.449) / 0.226
            np.testing.assert_allclose(image[0].numpy(), expected, atol=1e-5)


def test_chest_xray_labels_are_those_of_chestmnist():
    from medmnist import INFO

    known = [INFO["chestmnist"]["label"][str(label)] for label in range(14)]
    ours = [label.lower().replace("pleural_thickening", "pleural") for label in LABELS]
    assert ours == known


def test_chest_xray_says_what_is_missing_or_damaged(tmp_path):
    message = refused(lambda: ChestXrayDataModule(str(tmp_path)).setup("fit"))
    assert "Data_Entry_2017.csv is missing" in message
    assert "nihcc.app.box.com" in message
    assert "chestmnist" in message
    findings = write_chest_xray(tmp_path)
    table = (tmp_path / "Data_Entry_2017.csv").read_text()
    first = next(iter(findings))
    for name, content, words in (
        ("test_list.txt", None, "is missing"),
        ("train_val_list.txt", "hello there\n", "is damaged"),
        ("Data_Entry_2017.csv", table.replace("Mass", "Moss"), "is damaged"),
        ("Data_Entry_2017.csv", table.replace("Finding", "Found"), "is damaged"),
        ("Data_Entry_2017.csv", table.replace(first, "x.png"), f"does not name '{first}'"),
    ):
        before = (tmp_path / name).read_text()
        (tmp_path / name).unlink()
        if content is not None:
            (tmp_path / name).write_text(content)
        message = refused(lambda: ChestXrayDataModule(str(tmp_path)).setup("fit"))
        assert name in message
        assert words in message
        (tmp_path / name).write_text(before)
    shutil.rmtree(tmp_path / "images_002")
    message = refused(lambda: ChestXrayDataModule(str(tmp_path)).setup("fit"))
    assert f"{first} is missing, and 23 more" in message


# MNIST and USPS


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
