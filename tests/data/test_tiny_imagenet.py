"""Tiny ImageNet: a tiny one, written in its layout."""

import shutil

import numpy as np
import torch
from made_folders import (
    normalised,
    refused,
    write_tiny_imagenet,
)
from PIL import Image

from lightning_merge.data import (
    TinyImageNetDataModule,
)


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
