"""Every 2D set of MedMNIST v2 (Yang et al., arXiv:2110.14795), through `medmnist` itself.

That package takes a while to import, so it is imported where it is used.
"""

import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from lightning_merge.data.images import LabelledImages, OfficialSplits
from lightning_merge.data.module import ClassificationDataModule
from lightning_merge.errors import ConfigError, DataError, one_line

SIZES = (28, 64, 128, 224)


class MedMNISTDataModule(ClassificationDataModule):
    """A 2D set of MedMNIST with its official train, validation and test splits.

    Multi-class, binary and ordinal sets are all `"multiclass"` here: binary ones have two
    logits and ordinal grades count as classes. Multi-label sets (ChestMNIST) are
    `"multilabel"`. Grey images have one channel. Images are shifted but never mirrored:
    left and right are classes in some sets.

    Args:
        name: MedMNIST's name of the set, such as `pneumoniamnist`.
        root: Folder of the `.npz` files; created when downloading.
        size: Pixels each way: 28, 64, 128 or 224.
        download: Whether a missing file is downloaded (about 1 MB to several GB).
        held_out: As for all data modules, but the default is the official validation split.
        **kwargs: Arguments of `ClassificationDataModule`.

    Raises:
        ConfigError: If there is no such 2D set or size.
    """

    def __init__(
        self,
        name: str = "pneumoniamnist",
        root: str = "data",
        size: int = 28,
        download: bool = False,
        held_out: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(held_out=held_out, **kwargs)
        from medmnist import INFO

        flat = [known for known in INFO if not known.endswith("3d")]
        if name not in flat:
            raise ConfigError(
                f"name {name!r} is not a 2D set of MedMNIST: choose one of {', '.join(flat)}"
            )
        if size not in SIZES:
            raise ConfigError(f"size is {size}: MedMNIST has 28, 64, 128 and 224")
        info = INFO[name]
        self.name = name
        self.root = Path(root).expanduser()
        self.download = download
        self.file = self.root / (f"{name}.npz" if size == 28 else f"{name}_{size}.npz")
        self.image_size = size
        self.in_chans = info["n_channels"]
        self.num_classes = len(info["label"])
        self.class_names = [info["label"][str(label)] for label in range(self.num_classes)]
        self.task = "multilabel" if info["task"].startswith("multi-label") else "multiclass"

    def prepare_data(self) -> None:
        """Download the file where it is missing and `download` is set.

        Raises:
            DataError: If the download fails.
        """
        if not self.download or self.file.is_file():
            return
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            self._open("train", download=True)
        except (RuntimeError, OSError) as error:
            raise DataError(
                f"{self.file} could not be downloaded: check the network and the folder, or get "
                "the file from https://medmnist.com and put it there"
            ) from error

    def load_splits(self) -> OfficialSplits:
        """Read the three official splits from the `.npz` file.

        Raises:
            DataError: If the file is missing or damaged.
        """
        if not self.file.is_file():
            raise DataError(
                f"{self.file} is missing: set download to true (--data.init_args.download true), "
                "or get the file from https://medmnist.com and put it there"
            )
        try:
            return OfficialSplits(**{part: self._read(part) for part in ("train", "val", "test")})
        except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error) as error:
            raise DataError(
                f"{self.file} is damaged ({one_line(error)}): delete it and download it again"
            ) from error

    def _read(self, part: str) -> LabelledImages:
        images, labels = self._open(part)
        tensor = torch.from_numpy(images)
        tensor = tensor.unsqueeze(1) if tensor.ndim == 3 else tensor.permute(0, 3, 1, 2)
        targets = torch.from_numpy(labels.astype("int64"))
        targets = targets.float() if self.task == "multilabel" else targets.flatten()
        return LabelledImages(tensor.contiguous(), targets)

    def _open(self, part: str, download: bool = False) -> tuple[NDArray[Any], NDArray[Any]]:
        import medmnist

        reader = getattr(medmnist, medmnist.INFO[self.name]["python_class"])
        data = reader(split=part, root=str(self.root), size=self._file_size, download=download)
        return data.imgs, data.labels
