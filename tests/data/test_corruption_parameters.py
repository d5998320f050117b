"""Whose parameters a corruption has, and how options bring them there."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from test_corruptions import collect, natural, trail

from lightning_merge.data import CORRUPTIONS, Corruption, DigitsDataModule
from lightning_merge.errors import ConfigError

SETS = ("cifar-10-c", "tiny-imagenet-c", "imagenet-c", "fusionbench")


@pytest.mark.parametrize(
    ("parameters", "deviation"),
    [
        ("nearest", 0.18),
        ("imagenet-c", 0.18),
        ("tiny-imagenet-c", 0.12),
        ("cifar-10-c", 0.08),
        ("fusionbench", 0.08),
    ],
)
def test_noise_at_224_pixels_is_that_of_the_set(parameters, deviation):
    grey = torch.full((2, 3, 224, 224), 0.5, dtype=torch.float64)
    noise = Corruption("gaussian_noise", 3, parameters)(grey, range(2)) - grey
    # A little is cut off at black and white.
    assert noise.std().item() == pytest.approx(deviation, rel=0.02)


@pytest.mark.parametrize(
    ("size", "same"), [(32, "cifar-10-c"), (64, "tiny-imagenet-c"), (224, "imagenet-c")]
)
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_the_default_is_the_set_of_that_size(name, size, same):
    images = natural(2, size)
    default = Corruption(name, 3)(images, range(2))
    made = {chosen: Corruption(name, 3, chosen)(images, range(2)) for chosen in SETS}
    assert torch.equal(default, made[same])
    assert not torch.equal(made["cifar-10-c"], made["imagenet-c"])
    if size == 32:
        assert torch.equal(default, made["fusionbench"])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(224, 224), (28, 28), (60, 90)])
def test_fusionbench_pixelates_at_32_pixels(channels, size):
    images = natural(2, size, channels)
    found = Corruption("pixelate", 5, "fusionbench")(images, range(2))
    for image, result in zip(images, found, strict=True):
        picture = Image.fromarray(image.permute(1, 2, 0).squeeze(-1).numpy())
        small = picture.resize((20, 20), Image.Resampling.BOX).resize(
            (32, 32), Image.Resampling.BOX
        )
        expected = np.asarray(small.resize(size[::-1], Image.Resampling.BICUBIC)).astype(int)
        difference = result.permute(1, 2, 0).squeeze(-1).numpy().astype(int) - expected
        # Pillow rounds to bytes between its steps.
        assert np.abs(difference).max() <= 5
        assert np.abs(difference).mean() < 0.6


@pytest.mark.parametrize(
    ("parameters", "length"), [("fusionbench", 12), ("cifar-10-c", 84), ("imagenet-c", 30)]
)
def test_only_fusionbench_counts_lengths_in_pixels_at_any_size(parameters, length):
    offsets, _ = trail(224, 2, 0, parameters)
    assert np.linalg.norm(offsets, axis=1).max() == pytest.approx(length, abs=0.75)


def test_jpeg_and_contrast_of_fusionbench_are_cifars():
    images = natural(1, 96)
    file = io.BytesIO()
    Image.fromarray(images[0].permute(1, 2, 0).numpy()).save(file, "JPEG", quality=58)
    found = Corruption("jpeg_compression", 3, "fusionbench")(images, [0])
    assert np.array_equal(found[0].permute(1, 2, 0).numpy(), np.asarray(Image.open(file)))
    unit = torch.rand(1, 3, 96, 96, dtype=torch.float64)
    means = unit.mean((2, 3), keepdim=True)
    found = Corruption("contrast", 3, "fusionbench")(unit, [0])
    torch.testing.assert_close(found, means + 0.4 * (unit - means), rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [28, 90, 224])
@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("parameters", SETS)
def test_every_set_does_every_corruption_at_any_size(name, size, parameters):
    image = natural(1, size)
    found = Corruption(name, 4, parameters)(image, [0])
    assert found.shape == image.shape
    assert not torch.equal(found, image)


def test_a_data_module_passes_the_set_on_to_whatever_corrupts_its_images():
    settings = {"augment": False, "resize": 64, "channels": 3}
    dm = DigitsDataModule(corruption_parameters="fusionbench", **settings)
    option = DigitsDataModule(
        corruption_parameters="fusionbench", corruption="pixelate", severity=4, **settings
    )
    dm.setup()
    clean = dm.test_set.source.images[torch.arange(5)]
    expected = dm.normalisation(Corruption("pixelate", 4, "fusionbench")(clean, range(5)))
    assert torch.equal(collect(dm.corrupted("pixelate", 4).test_dataloader())[:5], expected)
    assert torch.equal(collect(option.test_dataloader())[:5], expected)
    plain = DigitsDataModule(**settings).corrupted("pixelate", 4)
    assert not torch.equal(collect(plain.test_dataloader())[:5], expected)


def test_a_set_that_there_is_not_is_refused():
    for call in (
        lambda: Corruption("contrast", 3, "cifar"),
        lambda: DigitsDataModule(corruption_parameters="cifar"),
    ):
        with pytest.raises(ConfigError, match=r"'cifar' of corruptions .* fusionbench") as caught:
            call()
        assert "\n" not in str(caught.value)
