"""Tiny data sets of image files, written in the layouts in which the official ones come."""

import bz2
import gzip
import struct

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_merge.errors import DataError

MEAN = np.array([0.485, 0.456, 0.406]).reshape(3, 1, 1)
STD = np.array([0.229, 0.224, 0.225]).reshape(3, 1, 1)


def normalised(image):
    """What a network should see of an `(H, W, 3)` image of the size that is wanted."""
    return torch.from_numpy((image.transpose(2, 0, 1) / 255 - MEAN) / STD).float()


def refused(call, error=DataError):
    """The one line with which a call is refused."""
    with pytest.raises(error) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def pixels(*key, shape=(64, 64, 3)):
    """The made image of a name: coarse squares, which survive JPEG, its own for each key."""
    draw = np.random.default_rng(sum(map(ord, "".join(map(str, key)))))
    height, width = shape[:2]
    coarse = draw.integers(0, 256, (-(-height // 8), -(-width // 8), *shape[2:]), dtype=np.uint8)
    return coarse.repeat(8, 0).repeat(8, 1)[:height, :width]


def write_image(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
    return image


def write_class_folders(root, splits, classes, count=3, shape=(64, 64, 3)):
    """`root/<split>/<class>/<number>.png`; `{(split, class, number): image}`."""
    return {
        (split, name, number): write_image(
            root / split / name / f"{number}.png", pixels(split, name, number, shape=shape)
        )
        for split in splits
        for name in classes
        for number in range(count)
    }


def write_tiny_imagenet(root):
    """200 classes of two images to train on and one to test on, whose lists are shuffled."""
    folder = root / "tiny-imagenet-200"
    identifiers = [f"n{number:08d}" for number in range(200)]
    for name in identifiers:
        for number in range(2):
            file = folder / "train" / name / "images" / f"{name}_{number}.JPEG"
            write_image(file, pixels(name, number, shape=(64, 64, 3)))
        (folder / "train" / name / f"{name}_boxes.txt").write_text("")
    shuffled = np.random.default_rng(0).permutation(identifiers).tolist()
    (folder / "wnids.txt").write_text("\n".join(shuffled) + "\n")
    words = [f"{name}\tword {name}, other word" for name in [*shuffled, "n99999999"]]
    (folder / "words.txt").write_text("\n".join(words) + "\n")
    lines = []
    for number, name in enumerate(shuffled):
        # Grey, as some of the official ones are.
        write_image(folder / f"val/images/val_{number}.JPEG", pixels(number, shape=(64, 64)))
        lines.append(f"val_{number}.JPEG\t{name}\t0\t32\t44\t62\n")
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))
    return shuffled


def write_celeba(root, attributes, count=12):
    """Faces of 218x178; attributes `(count, 40)` of -1 and 1, and partitions, as they are."""
    folder = root / "celeba"
    draw = np.random.default_rng(0)
    values = draw.choice([-1, 1], (count, 40))
    parts = np.repeat([0, 1, 2], [count // 2, count // 4, count - count // 2 - count // 4])
    names = [f"{number + 1:06d}.jpg" for number in range(count)]
    for name in names:
        write_image(folder / "img_align_celeba" / name, pixels(name, shape=(218, 178, 3)))
    rows = [
        f"{name} " + " ".join(f"{v:2d}" for v in row)
        for name, row in zip(names, values, strict=True)
    ]
    header = [str(count), " ".join(attributes) + " "]
    (folder / "list_attr_celeba.txt").write_text("\n".join(header + rows) + "\n")
    lines = [f"{name} {part}\n" for name, part in zip(names, parts, strict=True)]
    (folder / "list_eval_partition.txt").write_text("".join(lines))
    return values, parts


def write_chest_xray(root, patients=24, table="Data_Entry_2017.csv"):
    """Two radiographs for each patient, the last quarter to test on; `{name: findings}`."""
    draw = np.random.default_rng(0)
    findings, lists = {}, {"train_val_list.txt": [], "test_list.txt": []}
    known = ["Mass", "Hernia", "Pleural_Thickening", "Atelectasis"]
    for patient in range(1, patients + 1):
        for number in range(2):
            name = f"{patient:08d}_{number:03d}.png"
            chosen = [label for label in known if draw.random() < 0.4]
            findings[name] = chosen
            part = f"images_{1 + patient % 2:03d}/images"
            write_image(root / part / name, pixels(name, shape=(64, 64)))
            test = patient > 3 * patients // 4
            lists["test_list.txt" if test else "train_val_list.txt"].append(name)
    rows = ["Image Index,Finding Labels,Follow-up #,Patient ID"]
    rows += [f"{name},{'|'.join(f) or 'No Finding'},0,1" for name, f in findings.items()]
    (root / table).write_text("\n".join(rows) + "\n")
    for name, names in lists.items():
        (root / name).write_text("\n".join(names) + "\n")
    return findings


def write_mnist(root, counts=(40, 10), packed=False):
    """The four files, and `{split: (images, labels)}`."""
    draw = np.random.default_rng(0)
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    made = {}
    for split, count in zip(("train", "t10k"), counts, strict=True):
        images = draw.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        made[split] = images, labels
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            head = struct.pack(f">{1 + array.ndim}i", 0x800 + array.ndim, *array.shape)
            content = head + array.tobytes()
            file = folder / f"{split}-{kind}-ubyte{'.gz' if packed else ''}"
            file.write_bytes(gzip.compress(content) if packed else content)
    return made


def write_usps(root, counts=(30, 10)):
    """The two files, of values in 256 steps from -1 to 1; `{file: (images, labels)}`."""
    draw = np.random.default_rng(0)
    made = {}
    for file, count in zip(("usps.bz2", "usps.t.bz2"), counts, strict=True):
        # Half a step above each byte: the reader truncates.
        images = draw.integers(0, 255, (count, 16, 16), dtype=np.uint8)
        labels = np.arange(count) % 10
        values = (images.reshape(count, -1) + 0.5) / 255 * 2 - 1
        lines = [
            f"{label + 1} " + " ".join(f"{i + 1}:{v:.6f}" for i, v in enumerate(row)) + "\n"
            for label, row in zip(labels, values, strict=True)
        ]
        (root / file).write_bytes(bz2.compress("".join(lines).encode()))
        made[file] = images, labels
    return made


def write_parquet(folder, splits, classes, count=2, hide=(), columns=("picture", "kind")):
    """A set in tables `data/<split>-...`, as on the Hub; `{split: (images, labels)}`."""
    from datasets import ClassLabel, Dataset, Features
    from datasets import Image as Images

    features = Features(zip(columns, (Images(), ClassLabel(names=classes)), strict=True))
    made = {}
    (folder / "data").mkdir(parents=True)
    for split in splits:
        labels = [label for label in range(len(classes)) for _ in range(count)]
        images = [pixels(split, number) for number in range(len(labels))]
        known = [-1] * len(labels) if split in hide else labels
        values = [Image.fromarray(image) for image in images], known
        data = Dataset.from_dict(dict(zip(columns, values, strict=True)), features=features)
        data.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
        made[split] = images, labels
    return made
