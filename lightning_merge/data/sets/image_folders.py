"""Any set of images in folders: `train`, `val` and `test`, and in each a folder per class."""

from pathlib import Path
from typing import Any

from lightning_merge.data.class_folders import class_folders, read_class_folders
from lightning_merge.data.image_files import check_images
from lightning_merge.data.images import LabelledImages, Normalisation
from lightning_merge.data.module import ClassificationDataModule, OfficialSplits
from lightning_merge.errors import ConfigError, DataError


class ImageFolderDataModule(ClassificationDataModule):
    """Images in `root/train/<class>/`, `root/val/<class>/` and `root/test/<class>/`.

    `val` may also be called `valid` or `validation`. Where `test` is missing or its images
    have no class (as in ImageNet), `val` is the test split. ImageNet-200 of NP Merge (Table
    III) is ImageNet's folder restricted to 200 `classes`; the paper does not list them.

    Images are read when a batch asks for them: the largest central square, resized.
    ImageNet's published statistics normalise.

    Args:
        root: Folder that holds `train` and the others.
        classes: Use these class folders only, numbered 0, 1, ... in the order given; None for
            all of `train`, in the order of their names.
        image_size: Height and width that images are resized to, in pixels.
        in_chans: 3 for colour, 1 for grey, whatever the files hold.
        horizontal_flip: Whether a mirrored image still shows the same class.
        held_out: As for all data modules, but None takes the folder's own validation split
            where there is one beside the test split, and else 0.1 of train.
        **kwargs: Arguments of `ClassificationDataModule`.

    Raises:
        ConfigError: If an argument is out of range.
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
        **kwargs: Any,
    ) -> None:
        check_images(image_size, in_chans)
        train, val, test = _find_splits(Path(root).expanduser())
        if held_out is None:
            held_out = 0.1 if val is None else 0.0
        super().__init__(held_out=held_out, **kwargs)
        self.class_names = class_folders(train) if classes is None else list(classes)
        if not self.class_names or len(set(self.class_names)) < len(self.class_names):
            raise ConfigError(f"classes is {classes}: choose different folders of {train}")
        self.train, self.val, self.test = train, val, test
        self.num_classes = len(self.class_names)
        self.image_size = image_size
        self.in_chans = in_chans
        self.horizontal_flip = horizontal_flip
        self.published_normalisation = Normalisation.imagenet(in_chans)

    def load_splits(self) -> OfficialSplits:
        """List the files; none is opened.

        Raises:
            DataError: If a class has no images in a split.
        """
        return OfficialSplits(
            train=self._read(self.train),
            test=self._read(self.test),
            val=None if self.val is None else self._read(self.val),
        )

    def _read(self, folder: Path) -> LabelledImages:
        return read_class_folders(folder, self.class_names, self.image_size, self.in_chans)


def _find_splits(root: Path) -> tuple[Path, Path | None, Path]:
    """Train, validation and test; validation is None where there is only one of the two."""
    train = root / "train"
    if not class_folders(train):
        raise DataError(
            f"{train} is missing or has no class folders: put the images into "
            f"{train}/<class>/ and {root / 'test'}/<class>/ (or val), or give another root "
            "(--data.init_args.root)"
        )
    candidates = (root / name for name in ("val", "valid", "validation"))
    val = next((folder for folder in candidates if class_folders(folder)), None)
    test = root / "test"
    if class_folders(test):
        return train, val, test
    if val is None:
        raise DataError(
            f"{root} has neither {test.name}/<class>/ nor val/<class>/: put the images to test "
            "on there"
        )
    return train, None, val
