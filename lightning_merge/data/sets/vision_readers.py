"""How the files of the sets in `vision_tasks` are read and downloaded, by torchvision mostly.

Nothing is decoded here: a reader lists the files of a split with their labels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_merge.data.class_folders import class_folders, list_classes
from lightning_merge.data.splits import hold_out

# EuroSAT comes undivided: which images are tested on must never change.
_EUROSAT_TEST, _EUROSAT_SEED = 0.2, 2019

_BOTH = ("train", "test")

SUN397_LISTS = "https://vision.princeton.edu/projects/2010/SUN/download/Partitions.zip"
_SUN397_FILES = {"train": "Training_01.txt", "test": "Testing_01.txt"}

RESISC45 = (
    "https://huggingface.co/datasets/torchgeo/resisc45/resolve/"
    "a826b44d938a883185f11ebe3d512d38b464312f"
)
_RESISC45_MD5 = {
    "NWPU-RESISC45.zip": "75206b2e16446591afa88e2628744886",
    "resisc45-train.txt": "b5a4c05a37de15e4ca886696a85c403e",
    "resisc45-val.txt": "a0770cee4c5ca20b8c32bbd61e114805",
    "resisc45-test.txt": "3dda9e4988b47eb1de9f07993653eb08",
}


@dataclass(frozen=True)
class Found:
    """One split: N files, or the images themselves, uint8 `(N, C, H, W)`, and classes `(N,)`.

    `classes` are the set's own names for them.
    """

    images: Sequence[str | Path] | NDArray[np.uint8]
    labels: Sequence[int]
    classes: Sequence[str]


@dataclass(frozen=True)
class VisionSet:
    """What there is to know of a set.

    Attributes:
        title: What an error calls it.
        classes: How many.
        folder: Where its files lie under the root.
        by_hand: How to get them without us.
        read: Lists a split of what lies under a root; raises whatever its reader raises.
        download: Downloads what is missing under a root; None where its source is gone.
        validated: Whether there is an official validation split.
        mirrored: Whether a mirrored image still shows the same class.
    """

    title: str
    classes: int
    folder: str
    by_hand: str
    read: Callable[[Path, str], Found]
    download: Callable[[Path], Any] | None
    validated: bool = False
    mirrored: bool = True


def _read_sun397(root: Path, split: str) -> Found:
    # torchvision's reader lists all images in the order of the file system, and divides nothing.
    folder = root / "SUN397"
    classes = [line[3:] for line in (folder / "ClassName.txt").read_text().split()]
    label = {name: position for position, name in enumerate(classes)}
    files = (folder / _SUN397_FILES[split]).read_text().split()
    labels = [label[file[3:].rpartition("/")[0]] for file in files]
    return Found([folder / file[1:] for file in files], labels, classes)


def _download_sun397(root: Path) -> None:
    from torchvision.datasets import SUN397
    from torchvision.datasets.utils import download_and_extract_archive

    # Its own download would go on to list all images.
    if not (root / "SUN397").is_dir():
        address, md5 = SUN397._DATASET_URL, SUN397._DATASET_MD5
        download_and_extract_archive(address, str(root), md5=md5)
    if not all((root / "SUN397" / file).is_file() for file in _SUN397_FILES.values()):
        download_and_extract_archive(SUN397_LISTS, str(root / "SUN397"))


def _read_stanford_cars(root: Path, split: str) -> Found:
    from torchvision.datasets import StanfordCars

    data = StanfordCars(str(root), split=split)
    files, labels = zip(*data._samples, strict=True)
    return Found(files, [int(label) for label in labels], data.classes)


def _read_resisc45(root: Path, split: str) -> Found:
    folder = root / "resisc45" / "NWPU-RESISC45"
    classes = class_folders(folder)
    label = {name: position for position, name in enumerate(classes)}
    files = (root / "resisc45" / f"resisc45-{split}.txt").read_text().split()
    named = [file.rpartition("_")[0] for file in files]
    images = [folder / name / file for name, file in zip(named, files, strict=True)]
    return Found(images, [label[name] for name in named], classes)


def _download_resisc45(root: Path) -> None:
    from torchvision.datasets.utils import download_and_extract_archive, download_url

    folder = root / "resisc45"
    for file, md5 in _RESISC45_MD5.items():
        address = f"{RESISC45}/{file}"
        if file.endswith(".txt"):
            download_url(address, str(folder), md5=md5)
        elif not (folder / "NWPU-RESISC45").is_dir():
            download_and_extract_archive(address, str(folder), md5=md5)


def _read_dtd(root: Path, split: str) -> Found:
    from torchvision.datasets import DTD

    data = DTD(str(root), split=split)
    return Found(data._image_files, data._labels, data.classes)


def _read_svhn(root: Path, split: str) -> Found:
    from torchvision.datasets import SVHN

    data = SVHN(str(root / "svhn"), split=split)
    return Found(data.data, data.labels, [str(digit) for digit in range(10)])


def _read_gtsrb(root: Path, split: str) -> Found:
    folder = root / "gtsrb" / "GTSRB" / "Training"
    classes = class_folders(folder)
    names = [str(int(name)) for name in classes]
    if split == "train":
        found = list_classes(folder, classes)
        return Found(found.paths, found.labels, names)
    from torchvision.datasets import GTSRB

    files, labels = zip(*GTSRB(str(root), split=split)._samples, strict=True)
    return Found(files, labels, names)


def _read_eurosat(root: Path, split: str) -> Found:
    folder = root / "eurosat" / "2750"
    classes = class_folders(folder)
    found = list_classes(folder, classes)
    every = np.arange(len(found.labels), dtype=np.int64)
    train, test = hold_out(np.array(found.labels), every, _EUROSAT_TEST, _EUROSAT_SEED)
    chosen = found.only((train if split == "train" else test).tolist())
    return Found(chosen.paths, chosen.labels, classes)


def _download(root: Path, name: str, splits: Sequence[str] = ()) -> None:
    """By torchvision's class of that name, split by split where these are files of their own."""
    from torchvision import datasets

    for chosen in [{"split": split} for split in splits] or [{}]:
        getattr(datasets, name)(str(root), **chosen, download=True)


def _download_svhn(root: Path) -> None:
    _download(root / "svhn", "SVHN", _BOTH)


VISION_SETS = {
    "sun397": VisionSet(
        "SUN397",
        397,
        "SUN397",
        "unpack http://vision.princeton.edu/projects/2010/SUN/SUN397.tar.gz, and in its folder "
        f"{SUN397_LISTS}",
        _read_sun397,
        _download_sun397,
    ),
    "stanford_cars": VisionSet(
        "Stanford Cars",
        196,
        "stanford_cars",
        "put cars_train/, cars_test/, devkit/ and cars_test_annos_withlabels.mat there; their "
        "source is gone, https://github.com/pytorch/vision/issues/7545 says where copies are",
        _read_stanford_cars,
        None,
    ),
    "resisc45": VisionSet(
        "RESISC45",
        45,
        "resisc45",
        f"unpack NWPU-RESISC45.zip of {RESISC45} there, beside resisc45-train.txt, "
        "resisc45-val.txt and resisc45-test.txt",
        _read_resisc45,
        _download_resisc45,
        validated=True,
    ),
    "dtd": VisionSet(
        "DTD",
        47,
        "dtd",
        "unpack https://www.robots.ox.ac.uk/~vgg/data/dtd/download/dtd-r1.0.1.tar.gz there",
        _read_dtd,
        partial(_download, name="DTD"),
        validated=True,
    ),
    "svhn": VisionSet(
        "SVHN",
        10,
        "svhn",
        "put train_32x32.mat and test_32x32.mat of http://ufldl.stanford.edu/housenumbers there",
        _read_svhn,
        _download_svhn,
        mirrored=False,
    ),
    "gtsrb": VisionSet(
        "GTSRB",
        43,
        "gtsrb",
        "unpack GTSRB-Training_fixed.zip, GTSRB_Final_Test_Images.zip and GTSRB_Final_Test_GT.zip "
        "of https://sid.erda.dk/public/archives/daaeac0d7ce1152aea9b61d9f1e19370 there",
        _read_gtsrb,
        partial(_download, name="GTSRB", splits=_BOTH),
        mirrored=False,
    ),
    "eurosat": VisionSet(
        "EuroSAT",
        10,
        "eurosat",
        "unpack https://madm.dfki.de/files/sentinel/EuroSAT.zip there",
        _read_eurosat,
        partial(_download, name="EuroSAT"),
    ),
}
