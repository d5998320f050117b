"""What a network says of each image in a folder."""

import copy
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_merge.checkpoint import Checkpoint, read_checkpoint
from lightning_merge.data.class_folders import LeftOut, images_below
from lightning_merge.data.loose_images import LooseImages
from lightning_merge.errors import ConfigError, DataError, NonFiniteError, printable
from lightning_merge.modes import evaluation
from lightning_merge.preprocessing import preprocessing_of
from lightning_merge.progress import tracked
from lightning_merge.recipe.build import build_module
from lightning_merge.recipe.described_module import module_of
from lightning_merge.recipe.task_context import loaded

Row = dict[str, Any]


@dataclass
class FolderPredictions:
    """The predictions for a folder.

    Attributes:
        rows: One for each image, in the order of their paths: `path` below the folder,
            `predicted` (the class's name; for a multi-label network all names whose probability
            is above 0.5, joined by `;`), `probability NAME` for each class, and `error`, which is
            empty unless the image cannot be read: then all others are.
        unreadable: How many images cannot be read.
        left_out: A line that counts what lies in the folder and is no image; empty if nothing.
    """

    rows: list[Row]
    unreadable: int
    left_out: str


def predict_folder(
    folder: str | Path,
    checkpoint: str | Path,
    *,
    model: LightningModule | Mapping[str, Any] | None = None,
    prepared: Mapping[str, Any] | None = None,
    batch_size: int = 64,
    num_workers: int = 0,
    device: str | None = None,
    progress: bool = True,
) -> FolderPredictions:
    """Predicts the class of every image in a folder and below it.

    Images are prepared as those that the network was trained on, as far as its checkpoint says
    how. The network's `forward` is called; what it gives are probabilities where every row sums
    to 1 and nothing is negative, else logits.

    Args:
        folder: A folder of images, or one image.
        checkpoint: The network's; of `ImageClassifier`, `CLIPClassifier` and merges of them it
            says what to build.
        model: The network's LightningModule, or its `class_path` and `init_args`, where the
            checkpoint does not say it.
        prepared: `input_size`, `mean`, `std`, ... (`lightning_merge.preprocessing`) that replace
            those of the checkpoint.
        batch_size: How many images at once.
        num_workers: Processes that decode; 0 for none beside this one.
        device: Where to compute; a GPU if there is one, else the CPU, if not given.
        progress: Whether to show a progress bar, where the output is a terminal.

    Raises:
        CheckpointError: If the checkpoint cannot be read.
        ConfigError: If it does not say what network it is of, or how images are prepared.
        ArchitectureMismatchError: If its weights are not the model's.
        NonFiniteError: If an output is NaN or infinite.
        DataError: If there is no image, or none can be read.
    """
    if batch_size < 1 or num_workers < 0:
        raise ConfigError("batch_size is at least 1, and num_workers at least 0")
    root, paths, left_out = _listed(Path(folder))
    read = read_checkpoint(checkpoint)
    module = _module(read, model)
    found = {**(preprocessing_of(read.content) or {}), **(prepared or {})}
    if not {"input_size", "mean", "std"} <= found.keys():
        raise ConfigError(
            f"{read.path} does not say how its images were prepared: give --image_size, --mean "
            "and --std"
        )
    images = LooseImages(paths, found)
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    loader: DataLoader[Any] = DataLoader(
        images, batch_size, num_workers=num_workers, collate_fn=LooseImages.collate
    )
    outputs: list[Tensor] = []
    readable: list[int] = []
    broken: dict[int, str] = {}
    module.to(where)
    with evaluation(module), torch.inference_mode():
        for positions, batch, wrong in tracked(loader, "Predicting", progress):
            broken |= wrong
            if batch is not None:
                outputs.append(_output(module, batch.to(where), read.path))
                readable += positions
    if not outputs:
        raise DataError(
            f"none of the {len(paths)} images in {printable(folder)} can be read "
            f"({next(iter(broken.values()))}): give another folder"
        )
    if not all(bool(torch.isfinite(one).all()) for one in outputs):
        raise NonFiniteError(
            f"{read.path}: its network's output is NaN or infinite, so that no class is the "
            "likeliest; give another checkpoint"
        )
    likely = _probabilities(torch.cat(outputs), getattr(module, "task", None))
    names = _names(found.get("label_names"), likely.shape[1])
    several = getattr(module, "task", None) == "multilabel"
    by_position = dict(zip(readable, likely, strict=True))
    rows = [
        _row(os.path.relpath(path, root), by_position.get(k), names, several, broken.get(k, ""))
        for k, path in enumerate(paths)
    ]
    return FolderPredictions(rows, len(broken), left_out)


def _listed(folder: Path) -> tuple[Path, list[str], str]:
    if folder.is_file():
        return folder.parent, [str(folder)], ""
    if not folder.is_dir():
        raise DataError(f"{printable(folder)}: no such folder; give one of images")
    left_out = LeftOut()
    paths = list(images_below(folder, left_out))
    if not paths:
        raise DataError(f"{printable(folder)} has no images: give another folder")
    return folder, paths, left_out.counted(folder)


def _module(read: Checkpoint, model: LightningModule | Mapping[str, Any] | None) -> LightningModule:
    if isinstance(model, LightningModule):
        module = copy.deepcopy(model)
    else:
        module = module_of(read) if model is None else build_module(model)
    return loaded(module, read.state_dict, str(read.path))


def _output(module: LightningModule, images: Tensor, name: object) -> Tensor:
    try:
        made: Any = module(images)
    except (RuntimeError, TypeError, ValueError) as error:
        first = printable(str(error).partition("\n")[0][:200])
        raise ConfigError(
            f"{name}: its network does not take images {tuple(images.shape[1:])} ({first}): give "
            "--image_size, --mean and --std of those that it was trained on"
        ) from error
    if not isinstance(made, Tensor) or made.dim() not in (1, 2) or len(made) != len(images):
        raise ConfigError(
            f"{name}: its network's output is not one row of numbers for each image; --model "
            "wants a classifier"
        )
    return made.reshape(len(images), -1).float().cpu()


def _probabilities(outputs: Tensor, task: str | None) -> Tensor:
    """`(N, C)`: of one output, the sigmoid's, the probabilities of class 0 and class 1."""
    if task == "multilabel":
        return outputs.double().sigmoid()
    if outputs.shape[1] == 1:
        positive = outputs.double().sigmoid()
        return torch.cat([1 - positive, positive], dim=1)
    sums = outputs.sum(dim=1)
    if bool((outputs >= 0).all()) and torch.allclose(sums, torch.ones_like(sums), atol=1e-3):
        return outputs
    return outputs.softmax(dim=1)


def _names(labels: object, count: int) -> list[str]:
    named = [printable(one) for one in labels] if isinstance(labels, list | tuple) else []
    return named if len(set(named)) == count == len(named) else [str(k) for k in range(count)]


def _row(path: str, likely: Tensor | None, names: Sequence[str], several: bool, error: str) -> Row:
    row: Row = {"path": printable(path), "predicted": ""}
    if likely is None:
        row |= {f"probability {name}": "" for name in names}
    else:
        values = likely.tolist()
        chosen = [name for name, value in zip(names, values, strict=True) if value > 0.5]
        row["predicted"] = ";".join(chosen) if several else names[int(likely.argmax())]
        row |= {f"probability {n}": f"{v:.6g}" for n, v in zip(names, values, strict=True)}
    return {**row, "error": error}
