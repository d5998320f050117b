"""Folders of images, a folder for each class."""

import numpy as np
import pytest
import torch
from made_folders import (
    normalised,
    pixels,
    refused,
    write_class_folders,
    write_image,
)

from lightning_merge.data import (
    ImageFolderDataModule,
)
from lightning_merge.errors import ConfigError


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
