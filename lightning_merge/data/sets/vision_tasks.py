"""The sets on which CLIP is fine-tuned and merged (Ilharco et al., 2023), beside MNIST."""

from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from lightning_merge.data.class_texts import readable
from lightning_merge.data.decode import check_images
from lightning_merge.data.image_files import ImageFiles
from lightning_merge.data.images import LabelledImages, OfficialSplits
from lightning_merge.data.module import ClassificationDataModule
from lightning_merge.data.normalisation import Normalisation
from lightning_merge.data.sets.vision_readers import VISION_SETS
from lightning_merge.errors import ConfigError, DataError, one_line

Name = Literal["sun397", "stanford_cars", "resisc45", "dtd", "svhn", "gtsrb", "eurosat"]


class VisionTaskDataModule(ClassificationDataModule):
    """SUN397, Stanford Cars, RESISC45, DTD, SVHN, GTSRB or EuroSAT.

    The splits are the official ones, of SUN397 and DTD the first of ten. RESISC45 has the
    published ones of Neumann et al. (arXiv:1911.06721). EuroSAT has none: a fifth of each class,
    drawn once and for all, is the test split. Where there is a validation split (DTD, RESISC45)
    it is the default for selection.

    SVHN, 32x32, is in memory. Images of the others are read when a batch needs them (see
    `decode`); ImageNet's published statistics normalise them.

    Args:
        name: Which set.
        root: Folder with the set's own: `SUN397`, `stanford_cars`, `resisc45`, `dtd`,
            `svhn`, `gtsrb` or `eurosat`.
        download: Whether missing files are downloaded (SUN397: 39 GB); Stanford Cars cannot be.
        image_size: Height and width that images are resized to, in pixels; SVHN's are 32 until
            `resize` changes that.
        held_out: As for all data modules, but None takes the official validation split where
            there is one, and else 0.1 of train.
        **kwargs: Arguments of `ClassificationDataModule`.

    Attributes:
        class_names: Numbers, and from `setup` on names that can be read.

    Raises:
        ConfigError: If there is no such set, or an argument is out of range.
    """

    def __init__(
        self,
        name: Name,
        root: str = "data",
        download: bool = False,
        image_size: int = 224,
        held_out: float | None = None,
        **kwargs: Any,
    ) -> None:
        if name not in VISION_SETS:
            raise ConfigError(f"name {name!r} is unknown: choose {', '.join(get_args(Name))}")
        check_images(image_size, 3)
        self.set = VISION_SETS[name]
        if held_out is None:
            held_out = 0.0 if self.set.validated else 0.1
        super().__init__(held_out=held_out, **kwargs)
        self.name = name
        self.root = Path(root).expanduser()
        self.download = download
        self.num_classes = self.set.classes
        self.class_names = [str(label) for label in range(self.num_classes)]
        self.in_chans = 3
        self.image_size = 32 if name == "svhn" else image_size
        self.horizontal_flip = self.set.mirrored
        self.prompt_set = name
        if name != "svhn":
            self.published_normalisation = Normalisation.imagenet(3)

    def prepare_data(self) -> None:
        """Download and unpack the files where they are missing and `download` is set.

        Raises:
            DataError: If the download fails, or there is none.
        """
        folder = self.root / self.set.folder
        if not self.download or (self.set.download is None and folder.is_dir()):
            return
        if self.set.download is None:
            raise DataError(
                f"{self.set.title} cannot be downloaded to {folder}: {self.set.by_hand}"
            )
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            self.set.download(self.root)
        except (RuntimeError, OSError) as error:
            reason = one_line(error)
            raise DataError(
                f"{self.set.title} could not be downloaded to {folder} ({reason}): check the "
                f"network and the folder, or {self.set.by_hand}"
            ) from error

    def load_splits(self) -> OfficialSplits:
        """List the files; only SVHN's images are read.

        Raises:
            DataError: If a file is missing or damaged.
        """
        return OfficialSplits(
            train=self._read("train"),
            test=self._read("test"),
            val=self._read("val") if self.set.validated else None,
        )

    def _read(self, split: str) -> LabelledImages:
        try:
            found = self.set.read(self.root, split)
        # Each reader has errors of its own, and scipy's derive from nothing narrower.
        except Exception as error:
            raise self._damaged(split, one_line(error)) from error
        if len(found.classes) != self.num_classes:
            raise self._damaged(split, f"{len(found.classes)} classes, not {self.num_classes}")
        self.class_names = [readable(self.prompt_set, name) for name in found.classes]
        targets = torch.as_tensor(np.asarray(found.labels)).long()
        if isinstance(found.images, np.ndarray):
            pixels: NDArray[np.uint8] = np.ascontiguousarray(found.images)
            return LabelledImages(torch.from_numpy(pixels), targets)
        return LabelledImages(ImageFiles(found.images, self._file_size, 3), targets)

    def _damaged(self, split: str, reason: str) -> DataError:
        download = "" if self.set.download is None else "set download to true, or "
        return DataError(
            f"{self.set.title}'s {split} files in {self.root / self.set.folder} are missing or "
            f"damaged ({reason}): {download}{self.set.by_hand}"
        )
