"""MNIST (LeCun et al., 1998) and USPS (Hull, 1994), through torchvision's readers, or HDF5."""

from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from lightning_merge.data.images import LabelledImages, OfficialSplits
from lightning_merge.data.module import ClassificationDataModule
from lightning_merge.data.normalisation import Normalisation
from lightning_merge.errors import DataError

if TYPE_CHECKING:
    from torchvision.datasets import MNIST, USPS


class _HandwrittenDataModule(ClassificationDataModule):
    """Ten digits in grey, in memory, never mirrored; there is no official validation split."""

    #: What an error calls the set, and where its files lie under the root.
    title: str
    folder: str
    source: str
    prompt_set = "mnist"

    def __init__(self, root: str = "data", download: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.root = Path(root).expanduser()
        self.download = download
        self.num_classes = 10
        self.in_chans = 1
        self.class_names = [str(digit) for digit in range(10)]

    def prepare_data(self) -> None:
        """Download and unpack the files where they are missing and `download` is set."""
        if not self.download:
            return
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            for train in (True, False):
                self._open(train, download=True)
        except (RuntimeError, OSError) as error:
            raise DataError(
                f"{self.title} could not be downloaded to {self.root / self.folder}: check the "
                f"network and the folder, or {self.source}"
            ) from error

    def load_splits(self) -> OfficialSplits:
        """Read train and test."""
        return OfficialSplits(train=self._read(train=True), test=self._read(train=False))

    def _read(self, train: bool) -> LabelledImages:
        try:
            data = self._open(train)
        except DataError:
            raise
        # torchvision asserts what it expects of MNIST's files.
        except (RuntimeError, OSError, EOFError, ValueError, AssertionError, LookupError) as error:
            split = "train" if train else "test"
            raise DataError(
                f"{self.title}'s {split} files in {self.root / self.folder} are missing or "
                f"damaged: set download to true (--data.init_args.download true), or {self.source}"
            ) from error
        images = torch.as_tensor(data.data).unsqueeze(1)
        return LabelledImages(images, torch.as_tensor(data.targets))

    @abstractmethod
    def _open(self, train: bool, download: bool = False) -> "MNIST | USPS | _Read": ...


@dataclass(frozen=True)
class _Read:
    """The content of a file, named as in torchvision's sets."""

    data: NDArray[np.uint8]
    targets: NDArray[np.int64]


class MNISTDataModule(_HandwrittenDataModule):
    """MNIST: 60,000 digits to train on and 10,000 to test on, 28x28.

    Args:
        root: Folder with the four unpacked files in its `MNIST/raw`.
        download: Whether missing files are downloaded (12 MB); what lies there packed
            (`.gz`) is only unpacked.
        **kwargs: Arguments of `ClassificationDataModule`.
    """

    title = "MNIST"
    folder = "MNIST/raw"
    source = "unpack the four .gz files of https://ossci-datasets.s3.amazonaws.com/mnist/ there"
    published_normalisation = Normalisation((0.1307,), (0.3081,))

    def __init__(self, root: str = "data", download: bool = False, **kwargs: Any) -> None:
        super().__init__(root, download, **kwargs)
        self.image_size = 28

    def _open(self, train: bool, download: bool = False) -> "MNIST":
        from torchvision.datasets import MNIST

        return MNIST(str(self.root), train=train, download=download)


class USPSDataModule(_HandwrittenDataModule):
    """USPS: 7,291 digits of zip codes to train on and 2,007 to test on, 16x16.

    Args:
        root: Folder with `usps.bz2` and `usps.t.bz2` (LIBSVM's copy), or `usps.h5` with
            `train/data`, `train/target`, `test/data` and `test/target`: shades from 0 to 1,
            256 or 16x16 a digit. Of both the former is read. The latter needs `h5py`.
        download: Whether missing `.bz2` files are downloaded (about 8 MB).
        **kwargs: Arguments of `ClassificationDataModule`.
    """

    title = "USPS"
    folder = "."
    source = (
        "put usps.bz2 and usps.t.bz2 of "
        "https://www.csie.ntu.edu.tw/~cjlin/libsvmtools/datasets/multiclass.html#usps, or usps.h5, "
        "there"
    )

    def __init__(self, root: str = "data", download: bool = False, **kwargs: Any) -> None:
        super().__init__(root, download, **kwargs)
        self.image_size = 16

    def prepare_data(self) -> None:
        """Download the files where `download` is set and neither they nor `usps.h5` are there.

        Raises:
            DataError: If the download fails.
        """
        if not self._has_hdf5:
            super().prepare_data()

    @property
    def _has_hdf5(self) -> bool:
        packed = self.root / "usps.bz2"
        return (self.root / "usps.h5").is_file() and not packed.is_file()

    def _open(self, train: bool, download: bool = False) -> "USPS | _Read":
        if self._has_hdf5:
            return _read_hdf5(self.root / "usps.h5", "train" if train else "test")
        from torchvision.datasets import USPS

        return USPS(str(self.root), train=train, download=download)


def _read_hdf5(path: Path, split: str) -> _Read:
    try:
        import h5py
    except ImportError as error:
        raise DataError(
            f"{path} is read with h5py, which is not installed: pip install h5py, or put usps.bz2 "
            "and usps.t.bz2 there"
        ) from error
    with h5py.File(path) as file:
        shades = np.asarray(file[split]["data"], dtype=np.float64)
        targets = np.asarray(file[split]["target"], dtype=np.int64)
    if shades.min() < 0 or shades.max() > 1 or len(shades) != len(targets):
        raise ValueError("not shades from 0 to 1 with a target each")
    # Truncated, as torchvision does with the text files.
    return _Read((shades.reshape(-1, 16, 16) * 255).astype(np.uint8), targets)
