"""Any set of images in folders: `train`, `val` and `test`, and in each a folder per class."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np

from lightning_merge.data.class_folders import (
    ClassFiles,
    LeftOut,
    class_folders,
    folder_named,
    is_hidden,
    list_classes,
)
from lightning_merge.data.decode import check_images
from lightning_merge.data.images import LabelledImages, OfficialSplits
from lightning_merge.data.module import ClassificationDataModule
from lightning_merge.data.normalisation import Normalisation
from lightning_merge.data.splits import hold_out
from lightning_merge.errors import ConfigError, DataError, printable


class ImageFolderDataModule(ClassificationDataModule):
    """Images in `root/train/<class>/`, `root/val/<class>/` and `root/test/<class>/`.

    `val` may also be called `valid` or `validation`. Where `test` is missing or its images
    have no class (as in ImageNet), `val` is the test split. With `test_fraction` there is
    neither: the images in `root/<class>/` (or in `root/train/<class>/`) are divided.
    ImageNet-200 of NP Merge (Table III) is ImageNet's folder restricted to 200 `classes`; the
    paper does not list them.

    Images are read when a batch needs them, see `decode`. Hidden files and folders, and files
    that are no images, are left out and counted in a warning. ImageNet's published statistics
    normalise.

    Args:
        root: Folder with `train` and the others, or the class folders.
        classes: Use these class folders only, numbered 0, 1, ... in the order given; None for
            all of `train`, in the order of their names.
        image_size: Height and width that images are resized to, in pixels.
        in_chans: 3 for colour, 1 for grey, whatever the files have.
        horizontal_flip: Whether a mirrored image still shows the same class.
        held_out: As for all data modules, but None takes the folder's own validation split
            where there is one beside the test split, and else 0.1 of train.
        test_fraction: Which fraction of each class is the test split, where the folder has
            none; None for a folder that has one.
        test_seed: Which images those are, whatever `split_seed`.
        **kwargs: Arguments of `ClassificationDataModule`.

    Raises:
        ConfigError: If an argument is out of range, or the folder has a test split and
            `test_fraction` is given.
        DataError: If a folder is missing.
    """

    def __init__(
        self,
        root: str = "data",
        classes: list[str] | None = None,
        image_size: int = 224,
        in_chans: int = 3,
        horizontal_flip: bool = True,
        held_out: float | None = None,
        test_fraction: float | None = None,
        test_seed: int = 0,
        **kwargs: Any,
    ) -> None:
        check_images(image_size, in_chans)
        if test_fraction is not None and not 0 < test_fraction < 1:
            raise ConfigError(
                f"test_fraction is {test_fraction}: choose a fraction between 0 and 1"
            )
        if test_seed < 0:
            raise ConfigError(f"test_seed is {test_seed}: choose 0 or more")
        self.root = Path(root).expanduser()
        divided = test_fraction is not None
        train, val, test = _undivided(self.root) if divided else _find_splits(self.root)
        if held_out is None:
            held_out = 0.1 if val is None else 0.0
        super().__init__(held_out=held_out, **kwargs)
        self.folders = class_folders(train) if classes is None else list(classes)
        if not self.folders or len(set(self.folders)) < len(self.folders):
            raise ConfigError(
                f"classes is {classes}: choose different folders of {printable(train)}"
            )
        self.class_names = [printable(name) for name in self.folders]
        self.classes = classes
        self.train, self.val, self.test = train, val, test
        self.test_fraction = test_fraction
        self.test_seed = test_seed
        self.num_classes = len(self.class_names)
        self.image_size = image_size
        self.in_chans = in_chans
        self.horizontal_flip = horizontal_flip
        self.published_normalisation = Normalisation.imagenet(in_chans)

    def load_splits(self) -> OfficialSplits:
        """List the files; none is opened. What is left out is counted in a warning.

        Raises:
            DataError: If a class has no images in a split.
        """
        left_out = LeftOut()
        train = self._list(self.train, left_out)
        val = None if self.val is None else self._list(self.val, left_out)
        test = None if self.test is None else self._list(self.test, left_out)
        left_out.warn(self.root)
        if test is None:
            train, test = self._divide(train)
        return OfficialSplits(
            train=self._labelled(train),
            test=self._labelled(test),
            val=None if val is None else self._labelled(val),
        )

    def _labelled(self, files: ClassFiles) -> LabelledImages:
        return files.labelled(self._file_size, self._file_channels)

    def _list(self, folder: Path, left_out: LeftOut) -> ClassFiles:
        wanted = {folder_named(folder, name).name for name in self.folders}
        for entry in sorted(folder.iterdir()):
            if is_hidden(entry.name):
                left_out.hidden.append(entry)
            elif entry.name not in wanted and (self.classes is None or not entry.is_dir()):
                left_out.of_no_class.append(entry)
        return list_classes(folder, self.folders, left_out)

    def _divide(self, files: ClassFiles) -> list[ClassFiles]:
        """Train and test."""
        assert self.test_fraction is not None
        labels = np.array(files.labels)
        # Not scikit-learn's stratified split: it refuses a class of one image, and divides all
        # classes anew where an image is added to one.
        divided = hold_out(labels, np.arange(len(labels)), self.test_fraction, self.test_seed)
        untested = set(files.labels) - set(labels[divided[1]].tolist())
        if len(untested) == self.num_classes:
            raise DataError(
                f"test_fraction {self.test_fraction} of the images in {printable(self.root)} is "
                "less than one of each class: choose a larger fraction, or add images"
            )
        if untested:
            names = ", ".join(self.class_names[label] for label in sorted(untested))
            warnings.warn(
                f"{printable(self.root)}: test_fraction {self.test_fraction} leaves no image to "
                f"test on of {names}",
                stacklevel=2,
            )
        return [files.only(indices.tolist()) for indices in divided]


def _undivided(root: Path) -> tuple[Path, None, None]:
    """Where the class folders are that are to be divided."""
    for name in ("test", "val", "valid", "validation"):
        if class_folders(root / name) and class_folders(root / "train"):
            raise ConfigError(
                f"test_fraction is given, but {printable(root / name)} has images to test on: "
                "leave it out"
            )
    inside = root / "train"
    folder = inside if class_folders(inside) else root
    if not class_folders(folder):
        raise DataError(
            f"{printable(root)} is missing or has no class folders: put the images into "
            f"{printable(root)}/<class>/, or give another root (--data.init_args.root)"
        )
    return folder, None, None


def _find_splits(root: Path) -> tuple[Path, Path | None, Path]:
    """Train, validation and test; validation is None where there is only one of the two."""
    train = root / "train"
    shown = printable(root)
    if not class_folders(train):
        divide = (
            f"; or divide the class folders in {shown} (--data.init_args.test_fraction 0.2)"
            if class_folders(root)
            else ""
        )
        raise DataError(
            f"{shown}/train is missing or has no class folders: put the images into "
            f"{shown}/train/<class>/ and {shown}/test/<class>/ (or val), or give another root "
            f"(--data.init_args.root){divide}"
        )
    candidates = (root / name for name in ("val", "valid", "validation"))
    val = next((folder for folder in candidates if class_folders(folder)), None)
    test = root / "test"
    if class_folders(test):
        return train, val, test
    if val is None:
        raise DataError(
            f"{shown} has neither test/<class>/ nor val/<class>/: put the images to test on there, "
            "or divide train (--data.init_args.test_fraction 0.2)"
        )
    return train, None, val
