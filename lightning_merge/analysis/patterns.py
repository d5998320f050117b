"""The patterns in weights: templates of a linear classifier, kernels of a first layer.

Rethinking Weight-Averaged Model-merging (Wang et al.), Sec. 3 and 6.1.
"""

from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor

from lightning_merge.aggregate.kernel import Numbers, as_numbers
from lightning_merge.analysis.similarity import similarities
from lightning_merge.batches import inputs_of, targets_of
from lightning_merge.errors import ConfigError, DataError
from lightning_merge.loaders import Transferred
from lightning_merge.progress import tracked


def templates_of(state: Mapping[str, Tensor], shape: tuple[int, ...], name: str) -> Tensor:
    """The weights of a linear classifier as images, one for each class.

    Args:
        state: The state dict of a network that is one linear layer over the pixels.
        shape: Channels, height and width of its images.
        name: What to call the network in an error.

    Returns:
        The templates `(classes, C, H, W)`.

    Raises:
        ConfigError: If the network is another one, or its images have another shape.
    """
    matrices = {key: value for key, value in state.items() if value.dim() > 1}
    (key, weight), *others = matrices.items() or [("", torch.empty(0, 0))]
    if others or weight.dim() != 2 or not weight.numel():
        raise ConfigError(
            f"{name} is no linear classifier: templates are the rows of one linear layer over the "
            f"pixels, and it has {len(matrices)} layers; draw its first one with plot kernels"
        )
    if weight.shape[1] != prod(shape):
        raise ConfigError(
            f"{name}: '{key}' takes {weight.shape[1]} pixels, and images of shape "
            f"{'x'.join(map(str, shape))} have {prod(shape)}: give the --data that it was "
            "trained on"
        )
    return weight.detach().float().reshape(-1, *shape)


def class_averages(batches: Transferred, classes: int, progress: bool = True) -> Tensor:
    """The mean image of each class, as the network would get it.

    Args:
        batches: Batches `(image, target)`: images `(B, C, H, W)`, targets `(B,)` of classes, or
            `(B, L)` of zeros and ones, where an image belongs to all of its labels.
        classes: How many classes there are.
        progress: Whether to show a progress bar.

    Returns:
        The averages `(classes, C, H, W)`; NaN for a class without images.

    Raises:
        DataError: If a batch has no targets, or there is a class beyond those.
    """
    total: Tensor | None = None
    counts = torch.zeros(classes, dtype=torch.float64)
    for batch in tracked(batches, "Class averages", progress):
        images, targets = inputs_of(batch), targets_of(batch)
        if targets is None:
            raise DataError("a batch without targets has no classes: give (image, target)")
        if targets.numel() == len(targets):
            if int(targets.max()) >= classes:
                raise DataError(
                    f"the data have a class {int(targets.max())}, and the network {classes} "
                    "classes: give the --data that it was trained on"
                )
            belongs = torch.nn.functional.one_hot(targets.flatten().long(), classes)
        elif targets.shape[1] != classes:
            raise DataError(
                f"the data have {targets.shape[1]} labels, and the network {classes} classes: give "
                "the --data that it was trained on"
            )
        else:
            belongs = targets
        belongs = belongs.to(images.device, torch.float64)
        summed = torch.einsum("bk,bchw->kchw", belongs, images.double()).cpu()
        total = summed if total is None else total + summed
        counts += belongs.sum(0).cpu()
    if total is None:
        raise DataError("there is no training image: nothing can be averaged")
    return (total / counts.view(-1, 1, 1, 1)).float()


def match(templates: Numbers, averages: Numbers) -> Tensor:
    """How alike each class's template is to each class's average image.

    What all classes have in common is subtracted from both: a template distinguishes its class from
    the others, so it is compared with what its class's images have beyond the rest.

    Args:
        templates: `(classes, C, H, W)`, a tensor, an array or lists.
        averages: Likewise.

    Returns:
        The cosines `(classes, classes)`, a row for each template.
    """
    both = as_numbers(templates), as_numbers(averages)
    return similarities(*(values - values.mean(0) for values in both))


def pairs(templates: Numbers) -> Tensor:
    """The mean of each template of the first half and its counterpart in the second half.

    Of `(classes, C, H, W)` come `(classes // 2, C, H, W)`; an odd number's last one is left out.
    """
    # Lists have no arithmetic.
    values = templates if isinstance(templates, Tensor) else as_numbers(templates)
    half = len(values) // 2
    return (values[:half] + values[half : 2 * half]) / 2


def first_kernels(state: Mapping[str, Tensor], name: str) -> tuple[str, Tensor]:
    """The kernels of the first convolution over images (or patches of images).

    Args:
        state: The state dict.
        name: What to call the network in an error.

    Returns:
        The weight's name, and the kernels `(units, C, height, width)`.

    Raises:
        ConfigError: If there is no such convolution.
    """
    for key, value in state.items():
        if value.dim() == 4:
            return key, value.detach().float()
    raise ConfigError(
        f"{name} has no convolution: draw the weights of a linear classifier with plot templates"
    )
