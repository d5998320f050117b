"""Images on disk: how they are cut, normalised and refused."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from made_folders import (
    pixels,
    refused,
    write_class_folders,
    write_image,
)
from PIL import Image
from torchvision import transforms

from lightning_merge.data import (
    ClassificationDataModule,
    ImageFiles,
    LabelledImages,
    Normalisation,
    OfficialSplits,
)
from lightning_merge.data.decode import UnreadableImageError, decode


@pytest.mark.parametrize(
    "shape", [(48, 80), (90, 41), (33, 32), (16, 16), (5, 9), (16, 23), (90, 9)]
)
def test_files_are_what_torchvisions_resize_and_centre_crop_make_of_them(tmp_path, shape):
    draw = np.random.default_rng(0)
    write_image(tmp_path / "noise.png", draw.integers(0, 256, (*shape, 3), dtype=np.uint8))
    plain = transforms.Compose([transforms.Resize(16), transforms.CenterCrop(16)])
    with Image.open(tmp_path / "noise.png") as opened:
        for channels, mode in ((3, "RGB"), (1, "L")):
            files = ImageFiles([tmp_path / "noise.png"] * 2, 16, channels)
            assert len(files) == 2
            images = files[torch.tensor([1, 0, 1])]
            assert images.dtype == torch.uint8
            expected = np.asarray(plain(opened.convert(mode))).reshape(16, 16, channels)
            for image in images:
                assert np.array_equal(image.permute(1, 2, 0).numpy(), expected)


def test_a_strip_is_cut_without_being_resized_whole(tmp_path):
    draw = np.random.default_rng(0)
    write_image(tmp_path / "strip.png", draw.integers(0, 256, (3, 1000), dtype=np.uint8))
    image = ImageFiles([tmp_path / "strip.png"], 24, 1)[torch.tensor([0])][0, 0].numpy()
    plain = transforms.Compose([transforms.Resize(24), transforms.CenterCrop(24)])
    expected = np.asarray(plain(Image.open(tmp_path / "strip.png")))
    assert np.abs(image.astype(int) - expected).max() <= 1
    write_image(tmp_path / "strip.png", np.full((1, 1 << 20), 9, np.uint8))
    assert (ImageFiles([tmp_path / "strip.png"], 512, 1)[torch.tensor([0])] == 9).all()


def test_files_become_grey_or_colour_as_wanted(tmp_path):
    colour = write_image(tmp_path / "colour.png", pixels("a", shape=(16, 16, 3)))
    grey = write_image(tmp_path / "grey.png", pixels("b", shape=(16, 16)))
    paths = [tmp_path / f"{name}.png" for name in ("colour", "grey")]
    images = ImageFiles(paths, 16, 3)[torch.arange(2)].permute(0, 2, 3, 1).numpy()
    assert np.array_equal(images[0], colour)
    assert np.array_equal(images[1], np.dstack([grey] * 3))
    greys = ImageFiles(paths, 16, 1)[torch.arange(2)]
    assert greys.shape == (2, 1, 16, 16)
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


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_is_one_line_from_a_loading_process_too(tmp_path, workers):
    write_class_folders(tmp_path, ["train"], ["a"], count=4, shape=(8, 8, 3))
    broken = tmp_path / "train" / "a" / "2.png"
    broken.write_bytes(broken.read_bytes()[:45])
    dm = OnDisk(tmp_path, memory=False, num_workers=workers, held_out=0)
    message = refused(lambda: list(dm.test_dataloader()))
    assert message.startswith(f"{broken} is damaged")
    assert "replace it" in message


@pytest.mark.parametrize(
    "name", ["line\nbreak.png", "\x1b[2Jwiped.png", b"by\xfftes.png", "ünï.png"]
)
def test_strange_names_are_read_and_named_in_one_printable_line(tmp_path, name):
    path = os.path.join(os.fsencode(tmp_path), os.fsencode(name))
    with open(path, "wb") as file:
        Image.new("L", (8, 8), 7).save(file, "PNG")
    files = ImageFiles([os.fsdecode(path)], 8, 1)
    assert (files[torch.tensor([0])] == 7).all()
    Path(os.fsdecode(path)).write_bytes(b"no image")
    message = refused(lambda: files[torch.tensor([0])])
    assert message.isprintable()
    message.encode("utf-8")
    assert str(tmp_path) in message


def test_an_image_that_is_far_larger_than_its_file_is_refused(tmp_path):
    Image.new("1", (6000, 3000)).save(tmp_path / "blank.png")
    with open(tmp_path / "blank.png", "rb") as opened:
        for file in (str(tmp_path / "blank.png"), opened):
            with pytest.raises(UnreadableImageError, match="6000 x 3000 pixels in a file of"):
                decode(file, "blank.png", 8, 1)
    Image.new("1", (3000, 2000)).save(tmp_path / "smaller.png")
    assert decode(str(tmp_path / "smaller.png"), "smaller.png", 8, 1).shape == (1, 8, 8)
