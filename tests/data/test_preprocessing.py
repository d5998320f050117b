"""What a data module says of its images' preparation, done by hand with torchvision on files."""

import numpy as np
import pytest
import torch
from made_data import classes, write_medmnist
from made_folders import write_image
from PIL import Image
from torchvision import transforms

from lightning_merge.data import DigitsDataModule, ImageFolderDataModule, MedMNISTDataModule


def by_hand(opened, stated):
    """The usual transforms, and nothing else."""
    channels, height, width = stated["input_size"]
    assert height == width
    assert stated["crop_pct"] == 1.0
    mode = transforms.InterpolationMode(stated["interpolation"])
    return transforms.Compose(
        [
            transforms.Resize(height, mode),
            transforms.CenterCrop(height),
            transforms.ToTensor(),
            transforms.Normalize(stated["mean"], stated["std"]),
        ]
    )(opened.convert("L" if channels == 1 else "RGB"))


@pytest.fixture
def folder(tmp_path):
    draw = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            for number, shape in enumerate([(40, 60, 3), (50, 31, 3), (24, 24)]):
                image = draw.integers(0, 256, shape, dtype=np.uint8)
                write_image(tmp_path / split / name / f"{number}.png", image)
    return str(tmp_path)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"in_chans": 1},
        {"resize": 18},
        {"resize": 40, "channels": 1},
        {"in_chans": 1, "channels": 3},
        {"normalise": "clip"},
        {"normalise": "imagenet", "channels": 1, "resize": 9},
    ],
)
def test_files_through_torchvisions_transforms_are_what_the_network_sees(folder, options):
    dm = ImageFolderDataModule(folder, image_size=24, held_out=0, **options)
    stated = dm.preprocessing
    size = options.get("resize", 24)
    channels = options.get("channels", options.get("in_chans", 3))
    assert stated["input_size"] == [channels, size, size]
    assert len(stated["mean"]) == len(stated["std"]) == channels
    assert stated["label_names"] == ["cat", "dog"]
    for position, path in enumerate(dm.test_set.source.images.paths.tolist()):
        with Image.open(path) as opened:
            image, _ = dm.test_set[position]
            torch.testing.assert_close(by_hand(opened, stated), image, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [(28, 28), (28, 28, 3)])
@pytest.mark.parametrize("options", [{}, {"resize": 40}, {"resize": 20, "normalise": "clip"}])
@pytest.mark.parametrize("channels", [None, 1, 3])
def test_images_in_memory_too(tmp_path, shape, options, channels):
    name, count = ("pneumoniamnist", 2) if len(shape) == 2 else ("retinamnist", 5)
    write_medmnist(tmp_path, name, shape, classes(count))
    dm = MedMNISTDataModule(name, root=str(tmp_path), channels=channels, **options)
    stated = dm.preprocessing
    native = 1 if len(shape) == 2 else 3
    assert stated["input_size"][0] == (channels or native)
    assert stated["label_names"] == dm.class_names
    raw = np.load(tmp_path / f"{name}.npz")["test_images"]
    for position in range(3):
        image, _ = dm.test_set[position]
        expected = by_hand(Image.fromarray(raw[position]), stated)
        # Resized in memory without Pillow's rounding between the axes, and grey before that.
        exact = not options and channels in (None, native)
        tolerance = 1e-5 if exact else 2.1 / 255 / min(stated["std"])
        torch.testing.assert_close(expected, image, rtol=0, atol=tolerance)


def test_grey_sets_have_the_statistics_of_their_train_split():
    dm = DigitsDataModule()
    stated = dm.preprocessing
    pixels = dm.train_set.source.images.numpy() / 255
    assert stated["input_size"] == [1, 8, 8]
    assert stated["mean"] == pytest.approx([pixels.mean()])
    assert stated["std"] == pytest.approx([pixels.std()])
    assert stated["label_names"] == list("0123456789")
    assert all(isinstance(value, float) for value in stated["mean"] + stated["std"])
