"""CelebA (Liu et al., ICCV 2015): 202,599 faces with 40 attributes."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lightning_merge.data.decode import check_images
from lightning_merge.data.image_files import ImageFiles
from lightning_merge.data.images import LabelledImages, OfficialSplits
from lightning_merge.data.module import ClassificationDataModule
from lightning_merge.data.normalisation import Normalisation
from lightning_merge.errors import ConfigError, DataError, one_line

_ATTRIBUTES = """
    5_o_Clock_Shadow Arched_Eyebrows Attractive Bags_Under_Eyes Bald Bangs Big_Lips Big_Nose
    Black_Hair Blond_Hair Blurry Brown_Hair Bushy_Eyebrows Chubby Double_Chin Eyeglasses Goatee
    Gray_Hair Heavy_Makeup High_Cheekbones Male Mouth_Slightly_Open Mustache Narrow_Eyes No_Beard
    Oval_Face Pale_Skin Pointy_Nose Receding_Hairline Rosy_Cheeks Sideburns Smiling Straight_Hair
    Wavy_Hair Wearing_Earrings Wearing_Hat Wearing_Lipstick Wearing_Necklace Wearing_Necktie Young
"""
ATTRIBUTES = tuple(_ATTRIBUTES.split())
SOURCE = "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html"


class CelebADataModule(ClassificationDataModule):
    """The aligned faces by the official train, validation and test splits.

    "Rethinking Weight-Averaged Model-merging" has CelebA as a task of two classes (its Table
    4) without naming them: give one `attribute`, such as `Smiling` or `Male`, for classes
    0 (without) and 1 (with it). Without one the task is all 40, multi-label.

    Images are read when a batch needs them (see `decode`), shifted and mirrored.
    ImageNet's published statistics normalise.

    Args:
        root: Folder whose `celeba` has `img_align_celeba` (the images), `list_attr_celeba.txt`
            and `list_eval_partition.txt`.
        attribute: The attribute to predict, by its official name; None for all 40.
        image_size: Height and width that images are resized to, in pixels.
        download: Whether missing files are downloaded (1.4 GB, from Google Drive, by
            torchvision and the package `gdown`).
        held_out: As for all data modules, but the default is the official validation split.
        **kwargs: Arguments of `ClassificationDataModule`.

    Raises:
        ConfigError: If there is no such attribute, or an argument is out of range.
    """

    horizontal_flip = True

    def __init__(
        self,
        root: str = "data",
        attribute: str | None = None,
        image_size: int = 64,
        download: bool = False,
        held_out: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(held_out=held_out, **kwargs)
        check_images(image_size, 3)
        if attribute is not None and attribute not in ATTRIBUTES:
            raise ConfigError(
                f"attribute {attribute!r} is unknown: choose one of {', '.join(ATTRIBUTES)}"
            )
        self.root = Path(root).expanduser()
        self.folder = self.root / "celeba"
        self.attribute = attribute
        self.download = download
        self.in_chans = 3
        self.image_size = image_size
        self.published_normalisation = Normalisation.imagenet(3)
        if attribute is None:
            self.task = "multilabel"
            self.class_names = list(ATTRIBUTES)
        else:
            self.class_names = [f"not {attribute}", attribute]
        self.num_classes = len(self.class_names)

    def prepare_data(self) -> None:
        """Download and unpack the files where they are missing and `download` is set.

        Raises:
            DataError: If the download fails.
        """
        if not self.download or (self.folder / "img_align_celeba").is_dir():
            return
        from torchvision.datasets import CelebA

        try:
            CelebA(str(self.root), download=True)
        except (RuntimeError, OSError, ImportError) as error:
            reason = one_line(error)
            raise DataError(
                f"CelebA could not be downloaded to {self.folder} ({reason}): get "
                f"img_align_celeba.zip, list_attr_celeba.txt and list_eval_partition.txt from "
                f"{SOURCE} and unpack them there"
            ) from error

    def load_splits(self) -> OfficialSplits:
        """Read attributes and partition; no image is opened.

        Raises:
            DataError: If a file is missing, or a list is damaged.
        """
        images = self.folder / "img_align_celeba"
        if not images.is_dir():
            raise self._missing(images)
        files, partition = self._read("list_eval_partition.txt", 0, [1])
        named, attributes = self._read("list_attr_celeba.txt", 2, range(1, len(ATTRIBUTES) + 1))
        if not np.array_equal(files, named):
            raise DataError(
                f"{self.folder}: list_attr_celeba.txt and list_eval_partition.txt name different "
                f"images: replace them by those of {SOURCE}"
            )
        present = attributes > 0
        if self.attribute is None:
            targets = torch.from_numpy(present).float()
        else:
            targets = torch.from_numpy(present[:, ATTRIBUTES.index(self.attribute)]).long()

        def take(number: int) -> LabelledImages:
            chosen = np.flatnonzero(partition[:, 0] == number)
            paths = [images / files[position] for position in chosen]
            return LabelledImages(ImageFiles(paths, self.image_size, 3), targets[chosen])

        return OfficialSplits(train=take(0), val=take(1), test=take(2))

    def _read(
        self, name: str, skip: int, columns: Any
    ) -> tuple[NDArray[np.str_], NDArray[np.int8]]:
        """The images' names, and the chosen columns beside them."""
        path = self.folder / name
        if not path.is_file():
            raise self._missing(path)
        try:
            names = np.loadtxt(path, dtype=str, skiprows=skip, usecols=[0], ndmin=1)
            values = np.loadtxt(path, dtype=np.int8, skiprows=skip, usecols=columns, ndmin=2)
        except (ValueError, OSError) as error:
            reason = one_line(error)
            raise DataError(
                f"{path} is damaged ({reason}): replace it by that of {SOURCE}"
            ) from error
        return names, values

    def _missing(self, path: Path) -> DataError:
        return DataError(
            f"{path} is missing: set download to true (--data.init_args.download true), or get "
            f"it from {SOURCE} and put it there"
        )
