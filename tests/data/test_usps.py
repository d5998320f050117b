"""USPS from LIBSVM's text and from HDF5."""

import bz2
import hashlib

import numpy as np
import pytest
import torch

from lightning_merge.data import USPSDataModule
from lightning_merge.errors import DataError


def made():
    """Shades as in both files: k / 2000, from 0 to 1."""
    draw = np.random.default_rng(0)
    found = {}
    for split, count in (("train", 30), ("test", 12)):
        shades = draw.integers(0, 2001, (count, 256)) / 2000
        shades[0, :2] = 0, 1
        found[split] = shades, np.arange(count) % 10
    return found


def write_bz2(root, monkeypatch):
    from torchvision.datasets import USPS

    listed = {}
    for split, (shades, targets) in made().items():
        lines = [
            f"{label + 1} " + " ".join(f"{i + 1}:{2 * v - 1:.6f}" for i, v in enumerate(row)) + " "
            for row, label in zip(shades, targets, strict=True)
        ]
        name = "usps.bz2" if split == "train" else "usps.t.bz2"
        (root / name).write_bytes(bz2.compress("\n".join(lines).encode()))
        md5 = hashlib.md5((root / name).read_bytes()).hexdigest()
        listed[split] = ["https://nowhere.invalid", name, md5]
    monkeypatch.setattr(USPS, "split_list", listed)


def write_hdf5(root, square=False):
    h5py = pytest.importorskip("h5py")
    with h5py.File(root / "usps.h5", "w") as file:
        for split, (shades, targets) in made().items():
            shape = (-1, 16, 16) if square else (-1, 256)
            file[f"{split}/data"] = shades.reshape(shape).astype(np.float32)
            file[f"{split}/target"] = targets.astype(np.int32)


def splits(root):
    return USPSDataModule(root=str(root)).load_splits()


@pytest.mark.parametrize("square", [False, True])
def test_both_files_hold_the_same_digits(tmp_path, monkeypatch, square):
    text, hdf5 = tmp_path / "text", tmp_path / "hdf5"
    text.mkdir()
    hdf5.mkdir()
    write_bz2(text, monkeypatch)
    write_hdf5(hdf5, square)
    for a, b, split in zip(
        (splits(text).train, splits(text).test),
        (splits(hdf5).train, splits(hdf5).test),
        ("train", "test"),
        strict=True,
    ):
        shades, targets = made()[split]
        assert a.images.shape == b.images.shape == (len(targets), 1, 16, 16)
        assert b.images.dtype == torch.uint8
        assert torch.equal(a.targets.long(), b.targets.long())
        assert b.targets.tolist() == targets.tolist()
        # One is written with 6 digits, the other one in float32.
        assert (a.images.int() - b.images.int()).abs().max() <= 1
        expected = torch.from_numpy(shades.reshape(-1, 1, 16, 16) * 255)
        assert float((b.images - expected).abs().max()) <= 1


def test_the_text_is_read_where_both_are_there(tmp_path, monkeypatch):
    write_bz2(tmp_path, monkeypatch)
    (tmp_path / "usps.h5").write_bytes(b"no HDF5")
    assert len(splits(tmp_path).train.targets) == 30


def test_hdf5_is_not_downloaded_over(tmp_path, monkeypatch):
    write_hdf5(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr(
        "lightning_merge.data.sets.handwritten.USPSDataModule._open", lambda *_, **__: 1 / 0
    )
    USPSDataModule(root=str(tmp_path), download=True).prepare_data()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_damaged_files_and_a_missing_package_are_named(tmp_path, monkeypatch):
    pytest.importorskip("h5py")
    (tmp_path / "usps.h5").write_bytes(b"no HDF5")
    with pytest.raises(DataError, match=r"USPS's train files .* damaged"):
        splits(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    with pytest.raises(DataError, match="pip install h5py"):
        splits(tmp_path)
    with pytest.raises(DataError, match=r"usps\.bz2"):
        splits(tmp_path / "nothing")
