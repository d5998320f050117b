import pytest
import torch

from lightning_merge.data.augment import random_crop, random_flip


def every_shift(image, padding):
    """All crops of one zero-padded image, by slicing."""
    channels, height, width = image.shape
    padded = torch.zeros(channels, height + 2 * padding, width + 2 * padding, dtype=image.dtype)
    padded[:, padding : padding + height, padding : padding + width] = image
    steps = range(2 * padding + 1)
    return [padded[:, y : y + height, x : x + width] for y in steps for x in steps]


@pytest.mark.parametrize("padding", [1, 3])
def test_crop_gives_each_image_one_of_its_shifts_and_all_occur(padding):
    torch.manual_seed(0)
    image = torch.randint(1, 256, (2, 6, 5), dtype=torch.uint8)
    shifts = torch.stack(every_shift(image, padding)).flatten(1)
    cropped = random_crop(image.expand(2000, -1, -1, -1), padding)
    assert cropped.shape == (2000, 2, 6, 5)
    assert cropped.dtype == torch.uint8
    matches = (cropped.flatten(1).unsqueeze(1) == shifts).all(-1)
    assert (matches.sum(1) == 1).all()
    assert matches.any(0).all()


def test_crop_keeps_each_images_own_content():
    images = torch.arange(1, 11, dtype=torch.uint8).view(10, 1, 1, 1).expand(10, 3, 8, 8)
    cropped = random_crop(images, 2)
    assert (cropped.amax((1, 2, 3)) == images.amax((1, 2, 3))).all()


def test_no_padding_changes_nothing():
    images = torch.rand(4, 1, 8, 8)
    assert torch.equal(random_crop(images, 0), images)


def test_flip_mirrors_about_half_of_the_images():
    torch.manual_seed(0)
    images = torch.rand(400, 2, 5, 6)
    flipped = random_flip(images)
    same = (flipped == images).flatten(1).all(1)
    mirrored = (flipped == images.flip(3)).flatten(1).all(1)
    assert (same ^ mirrored).all()
    assert 150 < mirrored.sum() < 250


def test_draws_follow_torchs_seed():
    images = torch.rand(20, 1, 8, 8)
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(random_flip(random_crop(images, 2)))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
