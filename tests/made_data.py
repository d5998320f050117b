"""Tiny data sets, written in the official layouts."""

import hashlib
import pickle

import numpy as np

SIZES = {"train": 20, "val": 6, "test": 10}


def write_medmnist(folder, name, shape, labels):
    generator = np.random.default_rng(0)
    arrays = {}
    for split, count in SIZES.items():
        arrays[f"{split}_images"] = generator.integers(0, 256, (count, *shape), dtype=np.uint8)
        arrays[f"{split}_labels"] = labels(generator, count).astype(np.uint8)
    np.savez(folder / f"{name}.npz", **arrays)
    return arrays


def classes(count):
    return lambda _, examples: np.arange(examples).reshape(-1, 1) % count


def write_cifar(tmp_path, monkeypatch):
    """CIFAR-10 and CIFAR-100 of a few images each; their own checksums replace the official."""
    from torchvision.datasets import CIFAR10, CIFAR100

    def write(reader, file, content):
        path = tmp_path / reader.base_folder / file
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(pickle.dumps(content))
        return hashlib.md5(path.read_bytes()).hexdigest()

    def write_split(reader, files, key, classes):
        listed = []
        for number, (file, _) in enumerate(files):
            draw = np.random.default_rng(number)
            pixels = draw.integers(1, 256, (2 * classes, 3072), dtype=np.uint8)
            labels = list(range(classes)) * 2
            listed.append([file, write(reader, file, {"data": pixels, key: labels})])
        return listed

    for reader, key, count in ((CIFAR10, "labels", 10), (CIFAR100, "fine_labels", 100)):
        for name in ("train_list", "test_list"):
            monkeypatch.setattr(
                reader, name, write_split(reader, getattr(reader, name), key, count)
            )
        names = {reader.meta["key"]: [str(label) for label in range(count)]}
        md5 = write(reader, reader.meta["filename"], names)
        monkeypatch.setattr(reader, "meta", {**reader.meta, "md5": md5})
    return tmp_path
