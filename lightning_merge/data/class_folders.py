"""A folder for each class: which classes there are, which images, and what is left out."""

import os
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn
from unicodedata import normalize

import torch

from lightning_merge.data.image_files import ImageFiles
from lightning_merge.data.images import LabelledImages
from lightning_merge.errors import DataError, printable

# Of archives made on a Mac, Synology's thumbnails, and what lies on disks of Windows and Linux.
_OF_SYSTEMS = frozenset(
    ["__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found"]
)

_SUFFIXES = """
    .avif .bmp .dib .gif .j2k .jfif .jp2 .jpe .jpeg .jpg .pbm .pgm .png .pnm .ppm .tga .tif .tiff
    .webp
"""
#: Names of image files end so, in small or capital letters.
SUFFIXES = frozenset(_SUFFIXES.split())


@dataclass
class LeftOut:
    """What lies among the images and is none of them, by kind."""

    no_images: list[Path] = field(default_factory=list)
    hidden: list[Path] = field(default_factory=list)
    of_no_class: list[Path] = field(default_factory=list)

    def counted(self, root: Path) -> str:
        """One line that counts them; empty if there are none."""
        kinds = (
            (self.no_images, "no image", "no images"),
            (self.hidden, "hidden", "hidden"),
            (self.of_no_class, "of no class", "of no class"),
        )
        parts = [_counted(paths, root, one, many) for paths, one, many in kinds if paths]
        return f"{printable(root)}: left out {', '.join(parts)}" if parts else ""

    def warn(self, root: Path) -> None:
        """Warns of them in one line, if there are any."""
        if line := self.counted(root):
            warnings.warn(line, stacklevel=2)


@dataclass
class ClassFiles:
    """The images of a split, with the position of each one's class among the names that were given.

    They are class by class in the order of the folders' names, sorted in each; `left_out` is what
    was found beside them.
    """

    paths: list[str]
    labels: list[int]
    left_out: LeftOut

    def only(self, indices: Iterable[int]) -> "ClassFiles":
        """Some of them."""
        chosen = list(indices)
        paths, labels = [self.paths[i] for i in chosen], [self.labels[i] for i in chosen]
        return ClassFiles(paths, labels, self.left_out)

    def labelled(self, size: int, channels: int) -> LabelledImages:
        """The images, decoded when they are fetched, at `size` pixels each way."""
        return LabelledImages(ImageFiles(self.paths, size, channels), torch.tensor(self.labels))


def is_hidden(name: str) -> bool:
    """Whether a file manager hides a folder or file of this name, or made it for itself."""
    return name.startswith(".") or name in _OF_SYSTEMS


def class_folders(folder: Path) -> list[str]:
    """The names of the class folders, in order; hidden ones are none."""
    if not folder.is_dir():
        return []
    return sorted(
        entry.name for entry in folder.iterdir() if entry.is_dir() and not is_hidden(entry.name)
    )


def folder_named(folder: Path, name: str) -> Path:
    """The class folder of a name, however its accents are encoded: a Mac takes letters apart."""
    if not (folder / name).is_dir():
        for other in class_folders(folder):
            if normalize("NFC", other) == normalize("NFC", name):
                return folder / other
    return folder / name


def list_classes(
    folder: Path, class_names: Sequence[str], left_out: LeftOut | None = None
) -> ClassFiles:
    """The images under `folder/<class>`, at any depth, whatever is in other folders.

    The class names are the folders', in the order of the classes; what is found beside images is
    added to `left_out`.
    """
    found = ClassFiles([], [], LeftOut() if left_out is None else left_out)
    for name in sorted(class_names):
        own = folder_named(folder, name)
        if not own.is_dir():
            raise DataError(
                f"{printable(folder)} has no folder {printable(name)}: unpack the data set again, "
                "or choose other classes (--data.init_args.classes)"
            )
        paths = list(images_below(own, found.left_out))
        if not paths:
            others = [path for path in found.left_out.no_images if own in path.parents]
            only = f", only {_counted(others, folder, 'no image', 'no images')}" if others else ""
            raise DataError(
                f"{printable(own)} has no images{only}: put images of the class there, "
                "remove the folder, or choose other classes (--data.init_args.classes)"
            )
        found.paths += paths
        found.labels += [class_names.index(name)] * len(paths)
    return found


def images_below(folder: Path, left_out: LeftOut) -> Iterable[str]:
    """The images in a folder and below it, sorted; links are followed once.

    What is found beside images is added to `left_out`.
    """
    visited: set[str] = set()
    places: list[tuple[str, list[str]]] = []
    for place, folders, files in os.walk(folder, onerror=_refuse, followlinks=True):
        real = os.path.realpath(place)
        if real in visited:
            # A link back to where this came from.
            folders.clear()
            continue
        visited.add(real)
        # Which of a folder and a link to it comes first is not for the disk to say.
        folders.sort()
        left_out.hidden += [Path(place, name) for name in folders if is_hidden(name)]
        folders[:] = [name for name in folders if not is_hidden(name)]
        places.append((place, files))
    for place, files in sorted(places):
        for name in sorted(files):
            if is_hidden(name):
                left_out.hidden.append(Path(place, name))
            elif os.path.splitext(name)[1].lower() in SUFFIXES:
                yield os.path.join(place, name)
            else:
                left_out.no_images.append(Path(place, name))


def _refuse(error: OSError) -> NoReturn:
    raise DataError(
        f"{printable(error.filename)} cannot be listed ({error.strerror}): change its rights"
    ) from error


def _counted(paths: Sequence[Path], root: Path, one: str, many: str) -> str:
    shown = ", ".join(
        printable(path.relative_to(root) if root in path.parents else path) for path in paths[:2]
    )
    more = f" and {len(paths) - 2} more" if len(paths) > 2 else ""
    folders = sum(path.is_dir() for path in paths)
    if len(paths) == 1:
        return f"1 {'folder' if folders else 'file'} that is {one} ({shown}{more})"
    both = "files and folders" if folders < len(paths) else "folders"
    return f"{len(paths)} {both if folders else 'files'} that are {many} ({shown}{more})"
