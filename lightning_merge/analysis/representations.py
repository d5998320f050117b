"""Representations of the images of several data sets, in two dimensions.

"Quality and Diversity Both Matters When Merging Models", Fig. 1.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from numpy.typing import NDArray
from torch import Tensor

from lightning_merge.batches import inputs_of
from lightning_merge.errors import ConfigError, DataError
from lightning_merge.loaders import example_inputs, few_test_batches
from lightning_merge.modules.last_layer import last_layer, take_off

Method = Literal["pca", "tsne"]

_PERPLEXITY = 30.0


@dataclass(frozen=True)
class Embedding:
    """Two coordinates for each image, as one network sees them.

    Attributes:
        points: By data set, `(N, 2)`; the coordinates are common to all sets.
        explained: The shares of the variance along the two, where they are principal
            components; None otherwise.
    """

    points: dict[str, NDArray[np.float64]]
    explained: tuple[float, float] | None = None


def representations(
    module: LightningModule,
    data: LightningDataModule,
    examples: int,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Tensor:
    """The inputs of a network's last layer for some test images.

    Args:
        module: The network; it stays as it is.
        data: A data module that is set up to test.
        examples: How many images, drawn at random by the seed.
        seed: Determines which.
        device: Where to compute.

    Returns:
        `(examples, d)` in float32, on the CPU.

    Raises:
        ConfigError: If the network's output is not that of one last linear layer.
        DataError: If there are not so many test images.
    """
    device = torch.device(device)
    body = copy.deepcopy(module).to(device).eval()
    batches = few_test_batches(data, module, device, examples, seed)
    take_off(body, last_layer(body, example_inputs(batches, device)))
    with torch.inference_mode():
        found = torch.cat([body(inputs_of(one)).float().flatten(1).cpu() for one in batches])
    if len(found) < examples:
        raise DataError(
            f"{type(data).__name__} has {len(found)} test images, and {examples} are to be shown "
            "of each set: show fewer"
        )
    return found


def embed(features: Mapping[str, Tensor], method: Method = "tsne", seed: int = 0) -> Embedding:
    """Two dimensions for representations of several data sets, all in one space.

    Args:
        features: `(N, d)` by data set.
        method: `pca` for the two directions of most variance; `tsne` for t-SNE, from the
            principal components on, which keeps neighbours together: distances between groups
            mean little in it.
        seed: Of what scikit-learn draws.

    Raises:
        ConfigError: If the sets' representations differ in length, or there are too few.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    lengths = {name: one.shape[1] for name, one in features.items()}
    if len(set(lengths.values())) > 1:
        lists = ", ".join(f"{length} of {name}" for name, length in lengths.items())
        raise ConfigError(f"representations differ in length: {lists}; give images of one size")
    every = torch.cat(list(features.values())).double().numpy()
    if len(every) < 4 or every.shape[1] < 2:
        raise ConfigError("two dimensions need four images or more, and two features")
    explained = None
    if method == "pca":
        pca = PCA(2, random_state=seed)
        flat = pca.fit_transform(every)
        first, second = (float(share) for share in pca.explained_variance_ratio_)
        explained = first, second
    else:
        perplexity = min(_PERPLEXITY, (len(every) - 1) / 3)
        flat = TSNE(2, perplexity=perplexity, init="pca", random_state=seed).fit_transform(every)
    ends: Any = np.cumsum([len(one) for one in features.values()])[:-1]
    return Embedding(
        dict(zip(features, np.split(flat.astype(np.float64), ends), strict=True)), explained
    )
