"""Images on disk: how they are cut, normalised and refused."""

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

from lightning_merge.data import (
    ClassificationDataModule,
    ImageFiles,
    LabelledImages,
    Normalisation,
    OfficialSplits,
)


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
