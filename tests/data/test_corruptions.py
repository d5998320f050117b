"""Corruptions, on made images with the spectrum of natural ones."""

import io
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from lightning_merge.data import (
    CORRUPTIONS,
    Corruption,
    DigitsDataModule,
    ImageDataset,
    LabelledImages,
    Normalisation,
)
from lightning_merge.errors import ConfigError

RANDOM = ("gaussian_noise", "impulse_noise", "motion_blur", "spatter")


def natural(count, size, channels=3, seed=0):
    """Images whose power falls with the square of the frequency; uint8."""
    height, width = (size, size) if isinstance(size, int) else size
    draw = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])
    frequency[0, 0] = np.inf
    spectrum = np.fft.fft2(draw.standard_normal((count, channels, height, width))) / frequency
    images = np.fft.ifft2(spectrum).real
    images /= images.std((1, 2, 3), keepdims=True)
    return torch.from_numpy((images * 50 + 128).clip(0, 255).astype(np.uint8))


def error(corrupted, clean):
    return ((corrupted.double() - clean.double()) / 255).square().mean().item()


@pytest.mark.parametrize("size", [28, 32, 64, 96, 224])
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_severities_grow(name, size):
    images = natural(6 if size > 100 else 40, size)
    errors = [
        error(Corruption(name, severity)(images, range(len(images))), images)
        for severity in range(1, 6)
    ]
    assert errors[0] > 0
    if name == "spatter" and size < 120:
        # Water up to severity 3, mud from 4 on: as published, the two do not compare.
        assert errors[0] < errors[1] < errors[2]
        assert errors[3] < errors[4]
    elif name == "motion_blur" and size < 45:
        # As published, severity 4 has a longer trail than 3 of the same width: no byte of it.
        assert errors[0] < errors[1] < errors[2] <= errors[3] < errors[4]
    else:
        assert all(smaller < larger for smaller, larger in pairwise(errors))


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("channels", [1, 3])
def test_any_size_keeps_shape_type_and_range(name, channels):
    for size in (8, (17, 30), (70, 33)):
        images = natural(3, size, channels)
        before = images.clone()
        corrupt = Corruption(name, 5)
        corrupted = corrupt(images, range(3))
        assert corrupted.shape == images.shape
        assert corrupted.dtype == torch.uint8
        assert torch.equal(images, before)
        assert not torch.equal(corrupted, images)
        for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
            unit = (images.double() / 255).to(dtype)
            result = corrupt(unit, range(3))
            assert result.dtype == dtype
            assert 0 <= result.min() <= result.max() <= 1
            if dtype in (torch.float32, torch.float64):
                # A level is the rounding to bytes.
                assert (result * 255 - corrupted).abs().max() <= 0.5 + 1e-3


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_an_image_is_corrupted_alike_in_any_order_and_company(name):
    images = natural(7, 32)
    together = Corruption(name, 4)(images, range(7))
    order = torch.tensor([5, 0, 3])
    assert torch.equal(Corruption(name, 4)(images[order], order), together[order])
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    assert torch.equal(Corruption(name, 4)(images, torch.arange(7)), together)
    same = images[:1].expand(7, -1, -1, -1)
    differ = {tuple(image.flatten().tolist()) for image in Corruption(name, 4)(same, range(7))}
    assert (len(differ) > 1) == (name in RANDOM)


def test_gaussian_noise_has_the_published_deviation():
    images = torch.full((20, 3, 64, 64), 0.5, dtype=torch.float64)
    for severity, deviation in enumerate((0.04, 0.08, 0.12), 1):
        noise = Corruption("gaussian_noise", severity)(images, range(20)) - images
        assert noise.std().item() == pytest.approx(deviation, rel=0.01)
        assert noise.mean().item() == pytest.approx(0, abs=0.002)


def test_impulse_noise_sets_the_published_fraction_to_black_or_white():
    images = torch.full((20, 3, 224, 224), 100, dtype=torch.uint8)
    for severity, fraction in ((1, 0.03), (5, 0.27)):
        struck = Corruption("impulse_noise", severity)(images, range(20))
        changed = struck[struck != 100]
        assert len(changed) / struck.numel() == pytest.approx(fraction, rel=0.02)
        assert set(changed.tolist()) == {0, 255}
        assert (changed == 255).float().mean().item() == pytest.approx(0.5, abs=0.01)


def test_contrast_shrinks_the_distance_to_each_channels_mean():
    images = torch.rand(5, 3, 32, 32, dtype=torch.float64)
    corrupted = Corruption("contrast", 2)(images, range(5))
    means = images.mean((2, 3), keepdim=True)
    torch.testing.assert_close(corrupted, means + 0.5 * (images - means), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("size", "quality"), [(32, 58), (64, 50), (224, 15), (28, 58), (160, 15)])
@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_is_pillows_own(size, quality, channels):
    images = natural(2, size, channels)
    corrupted = Corruption("jpeg_compression", 3)(images, range(2))
    for image, result in zip(images, corrupted, strict=True):
        file = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).squeeze(-1).numpy()).save(
            file, "JPEG", quality=quality
        )
        expected = np.asarray(Image.open(file)).reshape(size, size, channels)
        assert np.array_equal(result.permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize("channels", [1, 3])
def test_pixelate_is_pillows_boxes(channels):
    images = natural(2, (64, 48), channels)
    corrupted = Corruption("pixelate", 5)(images, range(2))
    # 48 pixels are nearer to Tiny-ImageNet-C's 64 than to CIFAR-10-C's 32.
    for image, result in zip(images, corrupted, strict=True):
        picture = Image.fromarray(image.permute(1, 2, 0).squeeze(-1).numpy())
        small = picture.resize((24, 32), Image.Resampling.BOX)
        expected = np.asarray(small.resize((48, 64), Image.Resampling.BOX)).astype(int)
        difference = result.permute(1, 2, 0).squeeze(-1).numpy().astype(int) - expected
        # Pillow rounds to bytes between its two steps.
        assert np.abs(difference).max() <= 1


def test_motion_blur_leaves_a_straight_trail_of_a_points_light():
    angles = set()
    steps = np.arange(31)
    weights = np.exp(-((steps / 5) ** 2) / 2)
    for index in range(12):
        offsets, light = trail(224, 2, index)
        assert light.sum() == pytest.approx(1, abs=1e-5)
        lengths = np.linalg.norm(offsets, axis=1)
        assert lengths.max() == pytest.approx(30, abs=0.75)  # to twice the radius, on one side
        direction = offsets[lengths.argmax()] / lengths.max()
        across = offsets @ np.array([-direction[1], direction[0]])
        # Half a pixel each way, and as much again in the direction that was read off.
        assert np.abs(across).max() < 1.4
        along = offsets @ direction
        assert along.min() > -0.75
        expected = (steps * weights).sum() / weights.sum()
        assert (along * light).sum() == pytest.approx(expected, abs=0.3)
        angles.add(round(float(np.degrees(np.arctan2(direction[0], abs(direction[1]))))))
    assert max(map(abs, angles)) <= 47
    assert len(angles) > 8
    assert min(angles) < 0 < max(angles)


@pytest.mark.parametrize(("size", "severity", "length"), [(448, 2, 60), (32, 3, 12), (28, 3, 10)])
def test_lengths_follow_the_size(size, severity, length):
    offsets, _ = trail(size, severity, 0)
    assert np.linalg.norm(offsets, axis=1).max() == pytest.approx(length, abs=0.75)


def trail(size, severity, index, parameters="nearest"):
    """Where the light of one pixel goes: offsets `(M, 2)` in rows and columns, and how much."""
    image = torch.zeros(1, 1, size, size)
    image[0, 0, size // 2, size // 2] = 1
    blurred = Corruption("motion_blur", severity, parameters)(image, [index])
    blurred = blurred[0, 0].double().numpy()
    return np.argwhere(blurred > 0) - size // 2, blurred[blurred > 0]


def test_spatter_adds_pale_water_or_covers_with_mud():
    black = torch.zeros(30, 3, 32, 32)
    water = Corruption("spatter", 3)(black, range(30)).movedim(1, -1).reshape(-1, 3)
    wet = water[water.sum(1) > 0]
    assert 0.1 < len(wet) / len(water) < 0.6
    torch.testing.assert_close(wet[:, 0] * 238, wet[:, 1] * 175, rtol=0, atol=1e-4)
    torch.testing.assert_close(wet[:, 1], wet[:, 2])
    white = torch.ones(30, 3, 32, 32)
    mud = Corruption("spatter", 5)(white, range(30)).movedim(1, -1).reshape(-1, 3)
    clean = (mud == 1).all(1)
    assert 0.02 < 1 - clean.float().mean() < 0.6
    # At least 0.8 of what lies there is mud.
    assert mud[~clean].max(0).values.tolist() <= [0.2 + 0.8 * c / 255 + 1e-6 for c in (63, 42, 20)]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("fog", 1), "'fog' is unknown.*gaussian_noise"),
        (("contrast", 0), "severity is 0"),
        (("contrast", 6), "severity is 6"),
    ],
)
def test_what_there_is_not_is_refused(arguments, words):
    with pytest.raises(ConfigError, match=words) as caught:
        Corruption(*arguments)
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match=words):
        DigitsDataModule(corruption=arguments[0], severity=arguments[1])


def test_normalised_images_and_other_channels_are_refused():
    with pytest.raises(ConfigError, match="before they are normalised"):
        Corruption("contrast")(torch.randn(2, 3, 8, 8), [0, 1])
    with pytest.raises(ConfigError, match="before they are normalised"):
        Corruption("contrast")(torch.full((1, 1, 8, 8), torch.nan), [0])
    with pytest.raises(ConfigError, match="4 channels"):
        Corruption("contrast")(torch.rand(2, 4, 8, 8), [0, 1])


def test_only_the_test_images_of_a_data_module_are_corrupted():
    clean = DigitsDataModule(augment=False)
    dm = DigitsDataModule(augment=False, corruption="gaussian_noise", severity=5)
    clean.setup()
    dm.setup()
    assert dm.split_hash == clean.split_hash
    assert torch.equal(collect(dm.val_dataloader()), collect(clean.val_dataloader()))
    assert torch.equal(dm.train_set[3][0], clean.train_set[3][0])
    source = dm.test_set.source.images
    expected = dm.normalisation(Corruption("gaussian_noise", 5)(source, range(len(source))))
    assert torch.equal(collect(dm.test_dataloader()), expected)
    assert torch.equal(collect(dm.predict_dataloader()), expected)


def test_workers_and_batches_do_not_change_a_corruption():
    source = LabelledImages(natural(9, 32), torch.arange(9))
    data = ImageDataset(source, Normalisation.imagenet(3), corruption=Corruption("spatter", 2))
    alone = collect(DataLoader(data, batch_size=9))
    helped = collect(DataLoader(data, batch_size=2, num_workers=2))
    assert torch.equal(alone, helped)
    assert torch.equal(data[4][0], alone[4])
    some = ImageDataset(
        source, data.normalisation, torch.tensor([7, 2]), corruption=data.corruption
    )
    assert torch.equal(collect(DataLoader(some, batch_size=2)), alone[[7, 2]])


def collect(loader):
    return torch.cat([images for images, _ in loader])
