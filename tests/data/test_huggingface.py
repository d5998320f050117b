"""Sets of the Hugging Face Hub, from files as the Hub keeps them; nothing is downloaded."""

import sys

import numpy as np
import pytest
import torch
from made_folders import pixels, write_class_folders

from lightning_merge.data import HuggingFaceDataModule
from lightning_merge.errors import ConfigError, DataError


def refused(call, error=DataError):
    with pytest.raises(error) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_without_the_package_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    dm = HuggingFaceDataModule("somebody/something", 10)
    for call in (dm.prepare_data, dm.setup):
        assert "pip install 'lightning-merge[datasets]'" in refused(call, ConfigError)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"num_classes": 0}, "num_classes is 0"), ({"in_chans": 2}, "in_chans is 2")],
)
def test_what_makes_no_sense_is_refused(arguments, words):
    call = {"path": "somebody/something", "num_classes": 3, **arguments}
    assert words in refused(lambda: HuggingFaceDataModule(**call), ConfigError)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A set of three classes in tables; Hugging Face's cache is elsewhere and empty."""
    pytest.importorskip("datasets")
    from made_folders import write_parquet

    made = write_parquet(
        tmp_path / "set", ["train", "validation", "test"], ["x", "y", "z"], hide=["test"]
    )
    common = {
        "path": str(tmp_path / "set"),
        "num_classes": 3,
        "test": "validation",
        "image": "picture",
        "label": "kind",
        "root": str(tmp_path / "cache"),
        "image_size": 64,
        "augment": False,
    }
    return common, made


def test_columns_and_splits_as_named(hub):
    common, made = hub
    dm = HuggingFaceDataModule(**common, held_out=0.0)
    dm.prepare_data()
    dm.setup("fit")
    assert dm.class_names == ["x", "y", "z"]
    assert dm.val_set is None
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    for split, data in (("train", dm.train_set), ("validation", dm.test_set)):
        images, labels = made[split]
        assert data.targets.tolist() == labels == [0, 0, 1, 1, 2, 2]
        assert data.targets.dtype == torch.int64
        for position in (5, 0):
            expected = ((images[position] / 255 - mean) / std).transpose(2, 0, 1)
            np.testing.assert_allclose(data[position][0].numpy(), expected, atol=1e-5)
    batch, _ = next(iter(dm.test_dataloader()))
    assert torch.equal(batch[3], dm.test_set[3][0])


def test_validation_is_a_split_or_held_out(hub):
    common, _ = hub
    official = HuggingFaceDataModule(**common, val="validation")
    held = HuggingFaceDataModule(**common, split="random", part=0, held_out=0.4)
    for dm in (official, held):
        dm.setup("fit")
    assert (len(official.train_set), len(official.val_set)) == (6, 6)
    assert (len(held.train_set), len(held.val_set)) == (2, 3)
    assert held.val_set.source is held.train_set.source


def test_a_set_in_folders_and_a_damaged_image(tmp_path):
    pytest.importorskip("datasets")
    write_class_folders(tmp_path / "set", ["train", "test"], ["a", "b"], shape=(16, 16, 3))
    dm = HuggingFaceDataModule(
        str(tmp_path / "set"),
        2,
        root=str(tmp_path / "cache"),
        image_size=16,
        in_chans=1,
        held_out=0.0,
        augment=False,
    )
    dm.setup("fit")
    assert dm.class_names == ["a", "b"]
    image, target = dm.test_set[4]
    assert target == 1
    grey = pixels("test", "b", 1, shape=(16, 16, 3)) @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(image[0].numpy() * 0.226 + 0.449, grey / 255, atol=1 / 255)
    (tmp_path / "set/test/b/1.png").write_bytes(b"hello")
    message = refused(lambda: dm.test_set[4])
    assert f"image 4 of {tmp_path / 'set'} (test) is damaged" in message


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"path": "nowhere"}, "'train' of nowhere could not be had"),
        ({"train": "training"}, "'training' of"),
        ({"config": "large"}, "could not be had"),
        ({"image": "photo"}, "no column 'photo': choose one of picture, kind"),
        ({"label": "picture"}, "'picture' of"),
        ({"image": "kind"}, "column 'kind' of"),
        ({"num_classes": 4}, "has 3 classes, not 4"),
        ({"test": "test"}, "labels from -1 to -1"),
    ],
)
def test_what_the_set_has_not_is_said(hub, changed, words, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    common, _ = hub
    dm = HuggingFaceDataModule(**{**common, **changed})
    assert words in refused(lambda: dm.setup("fit"))
