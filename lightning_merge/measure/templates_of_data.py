"""A linear classifier's templates beside the class averages of the images it was trained on."""

from dataclasses import dataclass

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from lightning_merge.analysis.patterns import class_averages, match, templates_of
from lightning_merge.checkpoint import Checkpoint
from lightning_merge.errors import ConfigError
from lightning_merge.loaders import example_inputs, statistics_batches_of
from lightning_merge.recipe.described_module import module_of


@dataclass(frozen=True)
class TemplatesBesideAverages:
    """What `plot templates` draws: templates `(classes, C, H, W)` and, of data, class averages.

    Averages are the classes' average training images, as pixels in [0, 1], in the same shape; the
    caption says how alike both are.
    """

    templates: Tensor
    averages: Tensor | None = None
    names: list[str] | None = None
    caption: str = ""


def templates_beside_averages(
    checkpoint: Checkpoint, data: LightningDataModule | None
) -> TemplatesBesideAverages:
    """The templates of a linear classifier, and which average images they are like.

    Without data of the weights alone.
    """
    state, name = checkpoint.state_dict, str(checkpoint.path)
    if data is None:
        return TemplatesBesideAverages(templates_of(state, _shape_in(checkpoint), name))
    data.prepare_data()
    data.setup("fit")
    batches = statistics_batches_of(data, module_of(checkpoint), torch.device("cpu"))
    shape = tuple(example_inputs(batches, "cpu").shape[1:])
    weights = templates_of(state, shape, name)
    averages = class_averages(batches, len(weights))
    return TemplatesBesideAverages(
        weights,
        _pixels(averages, data),
        getattr(data, "class_names", None),
        _caption(weights, averages),
    )


def _shape_in(checkpoint: Checkpoint) -> tuple[int, int, int]:
    """The images' shape in a linear classifier's hyper-parameters."""
    saved = checkpoint.hyper_parameters
    try:
        size = (saved.get("model_kwargs") or {}).get("img_size", 32)
        height, width = size if isinstance(size, list | tuple) else (size, size)
        shape = int(saved.get("in_chans", 3)), int(height), int(width)
    except (AttributeError, TypeError, ValueError, OverflowError):
        shape = 0, 0, 0
    if min(shape) < 1:
        raise ConfigError(
            f"{checkpoint.path} does not say what images its network takes: give the --data that "
            "it was trained on"
        )
    return shape


def _pixels(averages: Tensor, data: LightningDataModule) -> Tensor:
    """Normalised images as pixels in [0, 1]."""
    normalisation = getattr(data, "normalisation", None)
    if normalisation is not None:
        mean = torch.tensor(normalisation.mean).view(-1, 1, 1)
        return averages * torch.tensor(normalisation.std).view(-1, 1, 1) + mean
    low, high = averages.nan_to_num().min(), averages.nan_to_num().max()
    return (averages - low) / (high - low).clamp_min(1e-12)


def _caption(weights: Tensor, averages: Tensor) -> str:
    known = averages.isfinite().flatten(1).all(1)
    cosines = match(weights[known], averages[known])
    own = cosines.diagonal()
    nearest = int((cosines.argmax(1) == torch.arange(len(cosines))).sum())
    others = (cosines.sum() - own.sum()) / max(cosines.numel() - len(own), 1)
    return (
        "left: average training image; right: template. Cosine of a template with its own class's "
        f"average {float(own.mean()):.2f} on average,\nwith others' {float(others):.2f}; nearest "
        f"to its own in {nearest} of {len(own)} classes (what all have in common taken off)"
    )
