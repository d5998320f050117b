"""Images of different sets at one size, and parts of a test set."""

import numpy as np
import pytest
import torch
from PIL import Image
from test_data_module import Squares, collect, ready

from lightning_merge.data import AdaptedImages, Corruption, Normalisation
from lightning_merge.data.normalisation import adapted_normalisation
from lightning_merge.errors import ConfigError


def colour(count=5, size=12):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("size", [7, 31])
def test_resizing_is_pillows(size):
    images = colour()
    found = AdaptedImages(images, size)[torch.tensor([4, 0])]
    assert found.dtype == torch.uint8
    for image, index in zip(found, (4, 0), strict=True):
        pixels = Image.fromarray(images[index].permute(1, 2, 0).numpy())
        expected = np.asarray(pixels.resize((size, size), Image.Resampling.BILINEAR))
        # Pillow rounds after each of the two axes.
        assert np.abs(image.permute(1, 2, 0).numpy().astype(int) - expected.astype(int)).max() <= 1


def test_colour_to_grey_is_pillows_and_grey_to_colour_repeats():
    images = colour()
    grey = AdaptedImages(images, channels=1)[torch.arange(5)]
    for found, image in zip(grey, images, strict=True):
        expected = np.asarray(Image.fromarray(image.permute(1, 2, 0).numpy()).convert("L"))
        assert np.abs(found[0].numpy().astype(int) - expected.astype(int)).max() <= 1
    back = AdaptedImages(grey, channels=3)[torch.arange(5)]
    assert torch.equal(back, grey.expand(-1, 3, -1, -1))
    assert torch.equal(AdaptedImages(images, 12, 3)[torch.arange(5)], images)


def test_published_statistics_follow_the_channels():
    grey = Normalisation((0.1,), (0.3,))
    assert adapted_normalisation(grey, 1, 3) == Normalisation((0.1,) * 3, (0.3,) * 3)
    assert adapted_normalisation(grey, 1, 1) is grey
    assert adapted_normalisation(Normalisation((0.1,) * 3, (0.3,) * 3), 3, 1) is None
    assert adapted_normalisation(None, 1, 3) is None


def test_a_data_module_gives_all_its_parts_at_the_size():
    dm = ready(resize=20, channels=3, val=True, held_out=0, augment=False, batch_size=50)
    assert (dm.image_size, dm.in_chans) == (20, 3)
    plain = ready(val=True, held_out=0)
    assert (plain.image_size, plain.in_chans) == (16, 1)
    for loader, source in (
        (dm.statistics_dataloader(), plain.train_set.source),
        (dm.val_dataloader(), plain.val_set.source),
        (dm.test_dataloader(), plain.test_set.source),
    ):
        images, targets = collect(loader)
        expected = AdaptedImages(source.images, 20, 3)[torch.arange(len(images))]
        torch.testing.assert_close(images, dm.normalisation(expected))
        assert torch.equal(targets, source.targets)
    train, _ = collect(dm.statistics_dataloader())
    assert float(train.mean().abs()) < 1e-3
    assert dm.split_hash == plain.split_hash


def test_corruptions_are_done_at_the_size():
    dm = ready(resize=20, channels=3, corruption="contrast", severity=4)
    plain = ready(resize=20, channels=3)
    clean = plain.test_set.source.images[torch.arange(9)]
    expected = Corruption("contrast", 4)(clean, range(9))
    torch.testing.assert_close(collect(dm.test_dataloader())[0], dm.normalisation(expected))


@pytest.mark.parametrize("kept", [0, 1 << 28])
def test_a_corrupted_twin_is_what_the_option_gives(kept, monkeypatch):
    monkeypatch.setattr("lightning_merge.data.image_dataset._KEPT_BYTES", kept)
    dm = ready(test_examples=5)
    clean = collect(dm.test_dataloader())[0]
    twin = dm.corrupted("gaussian_noise", 5)
    option = ready(test_examples=5, corruption="gaussian_noise", severity=5)
    for found, expected in zip(
        collect(twin.test_dataloader()), collect(option.test_dataloader()), strict=True
    ):
        assert torch.equal(found, expected)
    assert twin.reads == dm.reads == 1
    assert torch.equal(collect(dm.test_dataloader())[0], clean)
    again = twin.corrupted("contrast", 1)
    only = ready(test_examples=5, corruption="contrast", severity=1)
    assert not torch.equal(collect(again.test_dataloader())[0], clean)
    if kept == 0:
        expected = collect(only.test_dataloader())[0]
        assert torch.equal(collect(again.test_dataloader())[0], expected)
    with pytest.raises(ConfigError, match="fog"):
        dm.corrupted("fog")


def test_test_examples_are_drawn_at_random_once_and_for_all():
    everything = ready()
    some = ready(test_examples=5, split_seed=3)
    other = ready(test_examples=5, split_seed=4)
    assert torch.equal(some.test_set.indices, other.test_set.indices)
    chosen = some.test_set.indices.tolist()
    assert len(set(chosen)) == 5
    assert chosen == sorted(chosen) != list(range(5))
    assert torch.equal(some.test_set.targets, everything.test_set.targets[chosen])
    assert len(ready(test_examples=99).test_set) == 9


@pytest.mark.parametrize("wrong", [{"resize": 0}, {"channels": 2}, {"test_examples": 0}])
def test_what_is_out_of_range_is_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Squares(**wrong)
