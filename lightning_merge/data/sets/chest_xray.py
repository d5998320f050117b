"""ChestX-ray14 of the NIH (Wang et al., CVPR 2017): 112,120 radiographs with 14 labels."""

import csv
from pathlib import Path
from typing import Any

import torch

from lightning_merge.data.decode import check_images
from lightning_merge.data.image_files import ImageFiles
from lightning_merge.data.images import LabelledImages, OfficialSplits
from lightning_merge.data.module import ClassificationDataModule
from lightning_merge.data.normalisation import Normalisation
from lightning_merge.errors import DataError, one_line

_LABELS = """
    Atelectasis Cardiomegaly Effusion Infiltration Mass Nodule Pneumonia Pneumothorax
    Consolidation Edema Emphysema Fibrosis Pleural_Thickening Hernia
"""
LABELS = tuple(_LABELS.split())
SOURCE = "https://nihcc.app.box.com/v/ChestXray-NIHCC"


class ChestXrayDataModule(ClassificationDataModule):
    """Grey radiographs with any of 14 findings (multi-label; its metric is the mean AUROC).

    Train and test are the official lists, which divide by patient. There is no official
    validation list: train's patients whose number leaves 7 when divided by 8 are the
    validation split here (`held_out` would divide the images of one patient). Images are read
    when a batch needs them, shifted but never mirrored: the heart is on the left.
    ImageNet's published statistics normalise, averaged over the colours.

    The easy way to the same images at 28 to 224 pixels, by another division into train and
    validation, is `MedMNISTDataModule` with `name: chestmnist`, which downloads.

    Args:
        root: Folder with `Data_Entry_2017.csv` (or `Data_Entry_2017_v2020.csv`),
            `train_val_list.txt`, `test_list.txt` and the images, in `images` or
            `images_001/images` and so on.
        image_size: Height and width that images are resized to, in pixels (from 1024).
        held_out: As for all data modules, but the default is the validation split by patient.
        **kwargs: Arguments of `ClassificationDataModule`.

    Raises:
        ConfigError: If an argument is out of range.
    """

    def __init__(
        self, root: str = "data", image_size: int = 224, held_out: float = 0.0, **kwargs: Any
    ) -> None:
        super().__init__(held_out=held_out, **kwargs)
        check_images(image_size, 1)
        self.root = Path(root).expanduser()
        self.task = "multilabel"
        self.class_names = list(LABELS)
        self.num_classes = len(LABELS)
        self.in_chans = 1
        self.image_size = image_size
        self.published_normalisation = Normalisation.imagenet(1)

    def load_splits(self) -> OfficialSplits:
        """Read labels and lists, and find the images; none is opened.

        Raises:
            DataError: If a file is missing or damaged.
        """
        findings = self._read_findings()
        files = {path.name: path for path in sorted(self.root.glob("images*/**/*.png"))}
        train = self._read_list("train_val_list.txt")
        test = self._read_list("test_list.txt")
        absent = [name for name in train + test if name not in files]
        if absent:
            raise DataError(
                f"{self.root / 'images' / absent[0]} is missing, and {len(absent) - 1} more: "
                f"unpack images_001.tar.gz to images_012.tar.gz of {SOURCE} in {self.root}"
            )

        def take(names: list[str]) -> LabelledImages:
            try:
                found = [findings[name] for name in names]
            except KeyError as error:
                raise DataError(
                    f"{self._table()} does not name {one_line(error)}: replace it by that of "
                    f"{SOURCE}"
                ) from error
            targets = torch.stack(found) if found else torch.zeros(0, len(LABELS))
            paths = [files[name] for name in names]
            return LabelledImages(ImageFiles(paths, self.image_size, 1), targets)

        return OfficialSplits(
            train=take([name for name in train if _patient(name) % 8 != 7]),
            val=take([name for name in train if _patient(name) % 8 == 7]),
            test=take(test),
        )

    def _read_findings(self) -> dict[str, torch.Tensor]:
        """The labels of each image, `(14,)`, by its name."""
        path = self._table()
        if not path.is_file():
            raise self._missing(path)
        positions = {label: position for position, label in enumerate(LABELS)}
        findings = {}
        try:
            with path.open(newline="") as file:
                for row in csv.DictReader(file):
                    target = torch.zeros(len(LABELS))
                    for label in row["Finding Labels"].split("|"):
                        if label != "No Finding":
                            target[positions[label]] = 1
                    findings[row["Image Index"]] = target
        except (KeyError, AttributeError, UnicodeDecodeError, csv.Error) as error:
            raise DataError(
                f"{path} is damaged ({type(error).__name__}: {one_line(error)}): replace it by "
                f"that of {SOURCE}"
            ) from error
        return findings

    def _table(self) -> Path:
        newer = self.root / "Data_Entry_2017_v2020.csv"
        return newer if newer.is_file() else self.root / "Data_Entry_2017.csv"

    def _read_list(self, name: str) -> list[str]:
        path = self.root / name
        if not path.is_file():
            raise self._missing(path)
        names = path.read_text(errors="replace").split()
        if not names or not all(name[:8].isdecimal() for name in names):
            raise DataError(f"{path} is damaged: replace it by that of {SOURCE}")
        return names

    def _missing(self, path: Path) -> DataError:
        return DataError(
            f"{path} is missing: get the data set from {SOURCE} and unpack it in {self.root}; "
            "or use MedMNISTDataModule with name chestmnist, which downloads"
        )


def _patient(name: str) -> int:
    # 00000013_005.png is image 5 of patient 13.
    return int(name[:8])
