"""A folder for each class: which classes there are, and which images."""

from pathlib import Path

import torch

from lightning_merge.data.image_files import ImageFiles
from lightning_merge.data.images import LabelledImages
from lightning_merge.errors import DataError


def read_class_folders(
    folder: Path, class_names: list[str], size: int, channels: int
) -> LabelledImages:
    """The images under `folder/<class>`, at any depth, labelled by the class's position.

    Raises:
        DataError: If a class has no images there.
    """
    from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

    found = {name: position for position, name in enumerate(class_names)}
    try:
        samples = make_dataset(str(folder), found, extensions=IMG_EXTENSIONS)
    except FileNotFoundError as error:
        present = set(class_folders(folder))
        empty = next((name for name in class_names if name not in present), None)
        what = f"folder {empty}" if empty else "images in some class's folder"
        raise DataError(
            f"{folder} has no {what}: unpack the data set again, or choose other classes "
            "(--data.init_args.classes)"
        ) from error
    paths, labels = zip(*samples, strict=True)
    return LabelledImages(ImageFiles(paths, size, channels), torch.tensor(labels))


def class_folders(folder: Path) -> list[str]:
    """The names of the class folders, in order; none where there is no such folder."""
    if not folder.is_dir():
        return []
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
