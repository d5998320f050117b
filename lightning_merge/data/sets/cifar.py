"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009), through torchvision's reader."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from lightning_merge.data.images import LabelledImages, OfficialSplits
from lightning_merge.data.module import ClassificationDataModule
from lightning_merge.data.normalisation import Normalisation
from lightning_merge.errors import ConfigError, DataError

if TYPE_CHECKING:
    from torchvision.datasets import CIFAR10

CLASS_NAMES = {
    10: "airplane automobile bird cat deer dog frog horse ship truck",
    100: """
        apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus
        butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach
        couch crab crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster
        house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree
        motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear
        pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road
        rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar
        sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip
        turtle wardrobe whale willow_tree wolf woman worm
    """,
}
NORMALISATION = {
    10: Normalisation((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    100: Normalisation((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}


class CIFARDataModule(ClassificationDataModule):
    """CIFAR-10 or CIFAR-100 (fine labels), whole or restricted to some classes.

    There is no official validation split. Images are shifted by up to 4 pixels and mirrored.
    The published statistics normalise, also where only some classes are used.

    Args:
        num_classes: 10 or 100: which of the two sets.
        root: Folder with `cifar-10-batches-py` or `cifar-100-python`.
        download: Whether missing files are downloaded (about 170 MB).
        classes: Use these labels only, renamed 0, 1, ... in the order given; None for all.
            After that `num_classes` is how many they are.
        **kwargs: Arguments of `ClassificationDataModule`.

    Raises:
        ConfigError: If there is no such set, or `classes` are not labels of it.
    """

    horizontal_flip = True

    def __init__(
        self,
        num_classes: Literal[10, 100] = 10,
        root: str = "data",
        download: bool = False,
        classes: list[int] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if num_classes not in CLASS_NAMES:
            raise ConfigError(f"num_classes is {num_classes}: CIFAR has 10 or 100")
        labels = list(range(num_classes)) if classes is None else list(classes)
        if (
            not labels
            or len(set(labels)) < len(labels)
            or not set(labels) <= set(range(num_classes))
        ):
            raise ConfigError(
                f"classes is {classes}: choose different labels from 0 to {num_classes - 1}"
            )
        self.labels = labels
        self.source_classes = num_classes
        self.root = Path(root).expanduser()
        self.download = download
        self.num_classes = len(labels)
        self.in_chans = 3
        self.image_size = 32
        names = CLASS_NAMES[num_classes].split()
        self.class_names = [names[label] for label in labels]
        self.published_normalisation = NORMALISATION[num_classes]

    def prepare_data(self) -> None:
        """Download and unpack the archive where it is missing and `download` is set.

        Raises:
            DataError: If the download fails.
        """
        if not self.download:
            return
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            self._open(train=True, download=True)
        except (RuntimeError, OSError) as error:
            raise DataError(
                f"CIFAR-{self.source_classes} could not be downloaded to {self.root}: check the "
                f"network and the folder, or unpack {self._reader().url} there"
            ) from error

    def load_splits(self) -> OfficialSplits:
        """Read train and test, and keep the chosen classes.

        Raises:
            DataError: If a file is missing or damaged.
        """
        return OfficialSplits(train=self._read(train=True), test=self._read(train=False))

    def _read(self, train: bool) -> LabelledImages:
        try:
            data = self._open(train)
        except (RuntimeError, OSError, EOFError) as error:
            folder = self.root / self._reader().base_folder
            state = "has missing or damaged files" if folder.is_dir() else "is missing"
            raise DataError(
                f"{folder} {state}: set download to true (--data.init_args.download true), or "
                f"unpack {self._reader().url} in {self.root}"
            ) from error
        images = torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous()
        targets = torch.tensor(data.targets)
        renamed = torch.full((self.source_classes,), -1)
        renamed[self.labels] = torch.arange(self.num_classes)
        targets = renamed[targets]
        chosen = targets >= 0
        return LabelledImages(images[chosen], targets[chosen])

    def _open(self, train: bool, download: bool = False) -> "CIFAR10":
        return self._reader()(str(self.root), train=train, download=download)

    def _reader(self) -> "type[CIFAR10]":
        from torchvision.datasets import CIFAR10, CIFAR100

        return CIFAR10 if self.source_classes == 10 else CIFAR100
