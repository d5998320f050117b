"""Image classification sets of the Hugging Face Hub, through `datasets` (an optional extra)."""

import io
from collections.abc import Iterable
from typing import IO, TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_merge.data.decode import check_images
from lightning_merge.data.image_files import EncodedImages
from lightning_merge.data.images import LabelledImages, OfficialSplits
from lightning_merge.data.module import ClassificationDataModule
from lightning_merge.data.normalisation import Normalisation
from lightning_merge.errors import ConfigError, DataError, one_line

if TYPE_CHECKING:
    from datasets import Dataset


class HuggingFaceDataModule(ClassificationDataModule):
    """A set with a column of images and a column of classes, such as `zh-plus/tiny-imagenet`.

    Missing files are downloaded when it is prepared, to Hugging Face's own cache or `root`.
    Images are read when a batch needs them, see `decode`. ImageNet's published statistics
    normalise. Needs `pip install 'lightning-merge[datasets]'`.

    Args:
        path: The set's name on the Hub, or a folder that `datasets` can read.
        num_classes: How many classes it has.
        config: Which of its configurations; None where there is only one.
        train: Name of the split to train on.
        test: Name of the split to test on; the labels of many official ones are hidden.
        val: Name of the validation split, which `held_out: 0` uses; None for none.
        image: Name of the column of images.
        label: Name of the column of classes, whole numbers from 0.
        revision: Commit, tag or branch on the Hub, for the same data tomorrow; None for the
            newest.
        root: Folder for what is downloaded; None for Hugging Face's cache.
        image_size: Height and width that images are resized to, in pixels.
        in_chans: 3 for colour, 1 for grey, whatever the set has.
        horizontal_flip: Whether a mirrored image still shows the same class.
        held_out: As for all data modules, but None takes `val` where that is given, and else
            0.1 of train.
        **kwargs: Arguments of `ClassificationDataModule`.

    Attributes:
        class_names: Numbers, and from `setup` on the names that the set knows.

    Raises:
        ConfigError: If an argument is out of range.
    """

    def __init__(
        self,
        path: str,
        num_classes: int,
        config: str | None = None,
        train: str = "train",
        test: str = "test",
        val: str | None = None,
        image: str = "image",
        label: str = "label",
        revision: str | None = None,
        root: str | None = None,
        image_size: int = 224,
        in_chans: int = 3,
        horizontal_flip: bool = True,
        held_out: float | None = None,
        **kwargs: Any,
    ) -> None:
        if held_out is None:
            held_out = 0.1 if val is None else 0.0
        super().__init__(held_out=held_out, **kwargs)
        check_images(image_size, in_chans)
        if num_classes < 1:
            raise ConfigError(f"num_classes is {num_classes}: choose 1 or more")
        self.path = path
        self.config = config
        self.train, self.val, self.test = train, val, test
        self.image = image
        self.label = label
        self.revision = revision
        self.root = root
        self.num_classes = num_classes
        self.image_size = image_size
        self.in_chans = in_chans
        self.horizontal_flip = horizontal_flip
        self.class_names = [str(position) for position in range(num_classes)]
        self.published_normalisation = Normalisation.imagenet(in_chans)

    def prepare_data(self) -> None:
        """Download what is not in the cache.

        Raises:
            ConfigError: If the package `datasets` is not installed.
            DataError: If the set, its configuration or a split cannot be had.
        """
        for split in filter(None, (self.train, self.val, self.test)):
            self._open(split)

    def load_splits(self) -> OfficialSplits:
        """Read the classes; no image is decoded.

        Raises:
            ConfigError: If the package `datasets` is not installed.
            DataError: If the set cannot be had, or its columns are not as described.
        """
        return OfficialSplits(
            train=self._read(self.train),
            test=self._read(self.test),
            val=None if self.val is None else self._read(self.val),
        )

    def _read(self, split: str) -> LabelledImages:
        data = self._open(split)
        from datasets import ClassLabel, Image

        for column in (self.image, self.label):
            if column not in data.column_names:
                raise DataError(
                    f"{self.path} has no column {column!r}: choose one of "
                    f"{', '.join(data.column_names)} (--data.init_args.image, .label)"
                )
        feature = data.features[self.label]
        known = feature.names if isinstance(feature, ClassLabel) else None
        if known is not None and len(known) != self.num_classes:
            raise DataError(
                f"{self.path} has {len(known)} classes, not {self.num_classes}: set num_classes"
            )
        labels = data.with_format("numpy", columns=[self.label])[:][self.label]
        if labels.ndim != 1 or labels.dtype.kind != "i":
            raise DataError(
                f"column {self.label!r} of {self.path} has no whole numbers: choose another"
            )
        if len(labels) and not (labels.min() >= 0 and labels.max() < self.num_classes):
            raise DataError(
                f"split {split!r} of {self.path} has labels from {labels.min()} to "
                f"{labels.max()}, not 0 to {self.num_classes - 1}: choose a split with labels, "
                "or set num_classes"
            )
        if known is not None:
            self.class_names = list(known)
        try:
            images = data.select_columns([self.image]).cast_column(self.image, Image(decode=False))
        # Arrow's errors have no ancestor of their own.
        except Exception as error:
            raise DataError(
                f"column {self.image!r} of {self.path} has no images ({one_line(error)}): choose "
                "another (--data.init_args.image)"
            ) from error
        name = f"{self.path} ({split})"
        return LabelledImages(
            _HubImages(images, name, self.image_size, self.in_chans),
            torch.from_numpy(labels).long(),
        )

    def _open(self, split: str) -> "Dataset":
        try:
            from datasets import load_dataset
            from datasets.exceptions import DatasetsError
        except ImportError as error:
            raise ConfigError(
                "HuggingFaceDataModule needs the package datasets: pip install "
                "'lightning-merge[datasets]'"
            ) from error
        try:
            return load_dataset(
                self.path, self.config, split=split, revision=self.revision, cache_dir=self.root
            )
        except (OSError, ValueError, RuntimeError, DatasetsError) as error:
            reason = one_line(error)
            raise DataError(
                f"split {split!r} of {self.path} could not be had ({reason}): check the name, "
                "config, split and revision, and the network"
            ) from error


class _HubImages(EncodedImages):
    """A column of encoded images."""

    def __init__(self, data: "Dataset", name: str, size: int, channels: int) -> None:
        super().__init__(size, channels)
        self.data = data
        self.name = name

    def __len__(self) -> int:
        return len(self.data)

    def open(self, positions: Tensor) -> Iterable[tuple[str | IO[bytes], str]]:
        """The files, or their contents."""
        (column,) = self.data.column_names
        rows = self.data[positions.tolist()][column]
        for position, row in zip(positions.tolist(), rows, strict=True):
            # A set in folders gives paths, one in tables the files themselves.
            file = row["path"] if row["bytes"] is None else io.BytesIO(row["bytes"])
            yield file, f"image {position} of {self.name}"
