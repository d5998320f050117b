"""Folders of images, a folder for each class."""

import os
import shutil
import warnings
from unicodedata import normalize

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
from PIL import Image

from lightning_merge.data import (
    ImageFolderDataModule,
)
from lightning_merge.data.class_folders import LeftOut, images_below
from lightning_merge.errors import ConfigError


def test_folders_give_each_split_its_own_images(tmp_path):
    made = write_class_folders(tmp_path, ["train", "valid", "test"], ["b", "a", "c"])
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
    assert f"{tmp_path}/val/b has no images: put" in refused(lambda: dm.setup("fit"))
    (tmp_path / "val" / "b" / "scan.dcm").write_bytes(b"DICM")
    message = refused(lambda: dm.setup("fit"))
    assert "val/b has no images, only 1 file that is no image (b/scan.dcm): put" in message
    absent = ImageFolderDataModule(str(tmp_path), classes=["a", "z"], image_size=8)
    assert "train has no folder z" in refused(lambda: absent.setup("fit"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"classes": []}, "classes is"),
        ({"classes": ["a", "a"]}, "classes is"),
        ({"image_size": 0}, "image_size is 0"),
        ({"in_chans": 4}, "in_chans is 4"),
        ({"test_fraction": 0.0}, "test_fraction is 0.0"),
        ({"test_fraction": 1.0}, "test_fraction is 1.0"),
        ({"test_fraction": 0.2}, "val has images to test on"),
        ({"test_seed": -1}, "test_seed is -1"),
    ],
)
def test_folders_refuse_what_makes_no_sense(tmp_path, arguments, words):
    write_class_folders(tmp_path, ["train", "val"], ["a"], shape=(8, 8, 3))
    assert words in refused(lambda: ImageFolderDataModule(str(tmp_path), **arguments), ConfigError)


@pytest.mark.parametrize("name", ["__MACOSX", "@eaDir", "$RECYCLE.BIN", "lost+found"])
def test_folders_that_systems_make_are_no_classes(name, tmp_path):
    write_class_folders(tmp_path, ["train", "test"], ["a", "b"], count=2, shape=(8, 8, 3))
    for place in (f"train/{name}/a", f"train/b/{name}"):
        write_image(tmp_path / place / "0.png", pixels("x", shape=(8, 8, 3)))
    dm = ImageFolderDataModule(str(tmp_path), image_size=8, held_out=0)
    assert dm.class_names == ["a", "b"]
    with pytest.warns(UserWarning, match="2 folders that are hidden"):
        dm.setup("fit")
    assert len(dm.train_set) == 4


def test_what_is_no_image_of_a_class_is_left_out_and_counted_in_one_warning(tmp_path):
    write_class_folders(tmp_path, ["train", "test"], ["a", "b"], count=2, shape=(8, 8, 3))
    for place in ("train/.git", "train/a/.ipynb_checkpoints", "test/c"):
        write_image(tmp_path / place / "copy.png", pixels("x", shape=(8, 8, 3)))
    for file in ("train/a/._0.png", "train/a/notes.txt", "train/b/scan.dcm", "test/b/Thumbs.db"):
        (tmp_path / file).write_bytes(b"something")
    write_image(tmp_path / "train" / "loose.png", pixels("x", shape=(8, 8, 3)))
    dm = ImageFolderDataModule(str(tmp_path), image_size=8, held_out=0)
    assert dm.class_names == ["a", "b"]
    with pytest.warns(UserWarning, match="left out") as warned:
        dm.setup("fit")
    (line,) = [str(warning.message) for warning in warned]
    assert (len(dm.train_set), len(dm.test_set)) == (4, 4)
    assert "\n" not in line
    assert "3 files that are no images (train/a/notes.txt, train/b/scan.dcm and 1 more)" in line
    hidden = "train/.git, train/a/.ipynb_checkpoints and 1 more"
    assert f"3 files and folders that are hidden ({hidden})" in line
    assert "2 files and folders that are of no class (train/loose.png, test/c)" in line
    chosen = ImageFolderDataModule(str(tmp_path), image_size=8, held_out=0, classes=["b"])
    with pytest.warns(UserWarning, match="1 file that is of no class"):
        chosen.setup("fit")


def test_a_link_back_is_not_followed_for_ever(tmp_path):
    write_class_folders(tmp_path, ["train", "test"], ["a"], count=3, shape=(8, 8, 3))
    (tmp_path / "train" / "a" / "again").symlink_to(tmp_path / "train" / "a")
    outside = tmp_path / "elsewhere"
    write_image(outside / "far.png", pixels("x", shape=(8, 8, 3)))
    (tmp_path / "train" / "a" / "more").symlink_to(outside)
    dm = ImageFolderDataModule(str(tmp_path), image_size=8, held_out=0)
    dm.setup("fit")
    assert len(dm.train_set) == 4


def test_of_a_folder_and_links_to_it_the_first_by_name_is_read(tmp_path):
    names = [str(number) for number in np.random.default_rng(0).permutation(40)]
    for real, link in zip(names[:20], names[20:], strict=True):
        write_image(tmp_path / real / "x.png", pixels(real, shape=(8, 8, 3)))
        (tmp_path / link).symlink_to(tmp_path / real)
    expected = sorted(min(pair) for pair in zip(names[:20], names[20:], strict=True))
    found = images_below(tmp_path, LeftOut())
    assert [os.path.relpath(path, tmp_path) for path in found] == [f"{n}/x.png" for n in expected]


def test_a_gif_is_read_by_its_first_frame(tmp_path):
    write_class_folders(tmp_path, ["train", "test"], ["a"], count=1, shape=(8, 8, 3))
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "train/a/z.GIF", save_all=True, append_images=frames[1:])
    dm = ImageFolderDataModule(str(tmp_path), image_size=8, held_out=0)
    dm.setup("fit")
    assert len(dm.train_set) == 2
    assert dm.train_set.source.images[torch.tensor([1])][0, :, 4, 4].tolist() == [255, 0, 0]


@pytest.mark.parametrize("inside", ["", "train"])
def test_a_folder_of_classes_is_divided_by_class_on_request(tmp_path, inside):
    write_class_folders(tmp_path, [inside], ["a", "b"], count=10, shape=(8, 8, 3))
    for number in range(10, 30):
        write_image(tmp_path / inside / "b" / f"{number}.png", pixels(number, shape=(8, 8, 3)))
    message = refused(lambda: ImageFolderDataModule(str(tmp_path)))
    assert "test_fraction 0.2" in message

    def divided(**changed):
        settings = {"image_size": 8, "held_out": 0, "test_fraction": 0.2, **changed}
        dm = ImageFolderDataModule(str(tmp_path), **settings)
        dm.setup()
        return dm, *(set(part.source.images.paths.tolist()) for part in (dm.train_set, dm.test_set))

    dm, train, test = divided()
    assert dm.class_names == ["a", "b"]
    assert torch.bincount(dm.test_set.targets).tolist() == [2, 6]
    assert torch.bincount(dm.train_set.targets).tolist() == [8, 24]
    assert not train & test
    assert len(train | test) == 40
    for path, label in zip(
        dm.test_set.source.images.paths.tolist(), dm.test_set.targets.tolist(), strict=True
    ):
        assert path.decode().split("/")[-2] == "ab"[label]
    assert divided(split_seed=3)[2] == test
    assert divided(test_seed=1)[2] != test
    held, rest, same = divided(held_out=0.25)
    assert same == test
    assert len(rest) == 32
    assert (len(held.train_set), len(held.val_set)) == (24, 8)
    write_image(tmp_path / inside / "a" / "new.png", pixels("new", shape=(8, 8, 3)))
    grown = divided()[2]
    assert {path for path in grown if b"/b/" in path} == {path for path in test if b"/b/" in path}


def test_a_division_that_leaves_a_class_untested_is_reported(tmp_path):
    write_class_folders(tmp_path, [""], ["a", "b"], count=1, shape=(8, 8, 3))
    dm = ImageFolderDataModule(str(tmp_path), image_size=8, test_fraction=0.2)
    assert "less than one of each class" in refused(dm.setup)
    for number in range(1, 10):
        write_image(tmp_path / "b" / f"{number}.png", pixels(number, shape=(8, 8, 3)))
    dm = ImageFolderDataModule(str(tmp_path), image_size=8, test_fraction=0.2)
    with pytest.warns(UserWarning, match="leaves no image to test on of a$"):
        dm.setup()
    assert dm.test_set.targets.tolist() == [1, 1]


def test_names_that_would_break_a_line_are_classes_all_the_same(tmp_path):
    names = ["a\nb", "c\x1b[0m", os.fsdecode(b"d\xff"), "é"]
    write_class_folders(tmp_path, ["train", "test"], names, count=1, shape=(8, 8, 3))
    dm = ImageFolderDataModule(str(tmp_path), image_size=8, held_out=0)
    dm.setup()
    assert dm.class_names == ["a\\nb", "c\\x1b[0m", "d\\udcff", "é"]
    assert len(dm.train_set) == 4
    shutil.rmtree(tmp_path / "test" / names[0])
    again = ImageFolderDataModule(str(tmp_path), image_size=8)
    assert refused(again.setup).isprintable()


@pytest.mark.parametrize("classes", [None, ["\u00e9t\u00e9", "z"]])
def test_accents_may_be_encoded_otherwise_in_each_split(tmp_path, classes):
    made = {}
    for split, form in (("train", "NFD"), ("val", "NFC"), ("test", "NFD")):
        names = [normalize(form, "\u00e9t\u00e9"), "z"]
        made |= write_class_folders(tmp_path, [split], names, count=1, shape=(8, 8, 3))
    dm = ImageFolderDataModule(str(tmp_path), classes=classes, image_size=8, augment=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dm.setup()
    for split, data in (("train", dm.train_set), ("val", dm.val_set), ("test", dm.test_set)):
        own = {name for of, name, _ in made if of == split and name != "z"}.pop()
        image = data[data.targets.tolist().index(0)][0]
        torch.testing.assert_close(image, normalised(made[split, own, 0]), rtol=0, atol=1e-5)
