import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Subset

from lightning_merge.data import ImageDataset, LabelledImages, Normalisation


@pytest.fixture
def source():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (30, 3, 8, 8), dtype=torch.uint8, generator=generator)
    return LabelledImages(images, torch.arange(30) % 4)


def test_statistics_are_those_of_numpy(source):
    pixels = source.images.numpy().astype(np.float64) / 255
    normalisation = Normalisation.of(source.images)
    assert normalisation.mean == pytest.approx(pixels.mean((0, 2, 3)), abs=1e-12)
    assert normalisation.std == pytest.approx(pixels.std((0, 2, 3)), abs=1e-12)


def test_normalised_images_have_mean_zero_and_deviation_one(source):
    images = Normalisation.of(source.images)(source.images)
    assert images.dtype == torch.float32
    assert images.mean((0, 2, 3)).tolist() == pytest.approx([0, 0, 0], abs=1e-5)
    assert images.std((0, 2, 3), correction=0).tolist() == pytest.approx([1, 1, 1], abs=1e-5)


def test_a_channel_of_one_colour_stays_finite():
    images = torch.full((3, 1, 4, 4), 7, dtype=torch.uint8)
    assert torch.equal(Normalisation.of(images)(images), torch.zeros(3, 1, 4, 4))


def test_batches_are_the_single_examples(source):
    normalisation = Normalisation((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    data = ImageDataset(source, normalisation, torch.tensor([29, 3, 8]))
    assert len(data) == 3
    assert data.targets.tolist() == [1, 3, 0]
    batch, targets = next(iter(DataLoader(Subset(data, [2, 0]), batch_size=2)))
    assert targets.tolist() == [0, 1]
    for image, position in zip(batch, (8, 29), strict=True):
        for channel, mean, std in zip(range(3), (0.1, 0.2, 0.3), (0.5, 0.6, 0.7), strict=True):
            direct = (source.images[position, channel].double() / 255 - mean) / std
            torch.testing.assert_close(image[channel].double(), direct, rtol=0, atol=1e-6)
    assert torch.equal(data[2][0], batch[0])


def test_augmented_batches_leave_the_source_alone(source):
    before = source.images.clone()
    data = ImageDataset(source, Normalisation((0,) * 3, (1,) * 3), padding=2, flip=True)
    batch, _ = next(iter(DataLoader(data, batch_size=30)))
    assert not torch.equal(batch, data.normalisation(before))
    assert torch.equal(source.images, before)
