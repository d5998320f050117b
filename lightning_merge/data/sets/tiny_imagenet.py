"""Tiny ImageNet (Le and Yang, 2015): 200 classes of ImageNet at 64x64, as Stanford packs it."""

from pathlib import Path
from typing import Any

import torch

from lightning_merge.data.class_folders import list_classes
from lightning_merge.data.decode import check_images
from lightning_merge.data.image_files import ImageFiles
from lightning_merge.data.images import LabelledImages, OfficialSplits
from lightning_merge.data.module import ClassificationDataModule
from lightning_merge.data.normalisation import Normalisation
from lightning_merge.errors import DataError

URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
MD5 = "90528d7ca1a48142e341f4ef8d21d0de"
FOLDER = "tiny-imagenet-200"


class TinyImageNetDataModule(ClassificationDataModule):
    """100,000 images to train on and 10,000 to test on.

    The labels of the official test images were never published: the official validation
    split is the test split here, as in "Rethinking Weight-Averaged Model-merging" (its link
    leads to a copy with these two splits), and validation is held out of train. Labels
    follow the sorted WordNet identifiers. Images are read when a batch needs them, shifted
    and mirrored. ImageNet's published statistics normalise.

    Args:
        root: Folder with `tiny-imagenet-200`.
        download: Whether it is downloaded (250 MB) and unpacked where it is missing.
        image_size: Height and width that images are resized to, in pixels.
        **kwargs: Arguments of `ClassificationDataModule`.

    Attributes:
        class_names: Numbers, and from `setup` on the first word for each class.

    Raises:
        ConfigError: If an argument is out of range.
    """

    horizontal_flip = True

    def __init__(
        self, root: str = "data", download: bool = False, image_size: int = 64, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        check_images(image_size, 3)
        self.root = Path(root).expanduser()
        self.folder = self.root / FOLDER
        self.download = download
        self.num_classes = 200
        self.in_chans = 3
        self.image_size = image_size
        self.class_names = [str(label) for label in range(200)]
        self.published_normalisation = Normalisation.imagenet(3)

    def prepare_data(self) -> None:
        """Download and unpack the archive where it is missing and `download` is set.

        Raises:
            DataError: If the download fails.
        """
        if not self.download or self.folder.is_dir():
            return
        from torchvision.datasets.utils import download_and_extract_archive

        try:
            download_and_extract_archive(URL, str(self.root), md5=MD5)
        except (RuntimeError, OSError) as error:
            raise DataError(
                f"Tiny ImageNet could not be downloaded to {self.root}: check the network and "
                f"the folder, or unpack {URL} there"
            ) from error

    def load_splits(self) -> OfficialSplits:
        """List the files; no image is opened.

        Raises:
            DataError: If a file is missing, or a list is damaged.
        """
        if not self.folder.is_dir():
            raise DataError(
                f"{self.folder} is missing: set download to true (--data.init_args.download "
                f"true), or unpack {URL} in {self.root}"
            )
        identifiers = sorted(self._read("wnids.txt").split())
        rows = [line.partition("\t") for line in self._read("words.txt").splitlines()]
        words = {name: word for name, _, word in rows if word}
        if len(set(identifiers)) != self.num_classes:
            raise self._damaged("wnids.txt", f"{len(set(identifiers))} classes, not 200")
        self.class_names = [words.get(name, name).split(",")[0] for name in identifiers]
        train = list_classes(self.folder / "train", identifiers)
        return OfficialSplits(
            train=train.labelled(self._file_size, 3), test=self._read_test(identifiers)
        )

    def _read_test(self, identifiers: list[str]) -> LabelledImages:
        annotations = "val/val_annotations.txt"
        rows = [line.split("\t") for line in self._read(annotations).splitlines() if line]
        labels = {name: label for label, name in enumerate(identifiers)}
        try:
            targets = torch.tensor([labels[row[1]] for row in rows])
        except (KeyError, IndexError) as error:
            raise self._damaged(annotations, f"unknown class {error}") from error
        files = [self.folder / "val" / "images" / row[0] for row in rows]
        return LabelledImages(ImageFiles(files, self._file_size, 3), targets)

    def _read(self, name: str) -> str:
        try:
            return (self.folder / name).read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise self._damaged(name, type(error).__name__) from error

    def _damaged(self, name: str, reason: str) -> DataError:
        return DataError(
            f"{self.folder / name} is missing or damaged ({reason}): delete {self.folder} and "
            f"unpack {URL} again"
        )
