"""Several data sets as each of several networks sees them, in two dimensions."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_merge.analysis.representations import Embedding, Method, embed, representations
from lightning_merge.checkpoint import read_checkpoint
from lightning_merge.errors import ConfigError
from lightning_merge.measure.task_heads import module_with_own_head
from lightning_merge.progress import tracked
from lightning_merge.recalibrate.training_data import reset_on_training_data
from lightning_merge.recipe.build import build_data


@dataclass(frozen=True)
class TaskStatistics:
    """How a network is given a data set's own BatchNorm statistics before it sees it.

    Attributes:
        examples: From how many training images; None for all.
        seed: Which ones.
    """

    examples: int | None
    seed: int


def embedded_sets(
    networks: Mapping[str, Path],
    sets: Mapping[str, Mapping[str, Any]],
    model: dict[str, Any] | None,
    method: Method,
    examples: int,
    seed: int,
    statistics: TaskStatistics | None = None,
) -> tuple[dict[str, Embedding], int]:
    """The embedding of all sets' test images under each network.

    Args:
        networks: Checkpoints, by what to call them.
        sets: The data modules' configurations, by what to call them.
        model: The networks' module, as configuration; None for what the checkpoints describe.
        method: `pca` or `tsne`.
        examples: How many test images of each set, if there are so many in all of them.
        seed: Which images; and of t-SNE.
        statistics: Gives each set BatchNorm statistics of its own; None for the networks' own.

    Returns:
        The embeddings by network, and how many images of each set they show.

    Raises:
        MergeError: If a network or a data set does not suit.
    """
    if examples < 2:
        raise ConfigError("--examples is 2 or more")
    ready = {name: build_data(config) for name, config in sets.items()}
    for data in ready.values():
        data.prepare_data()
        data.setup("fit")
        data.setup("test")
    count = min([examples, *(_size(name, data) for name, data in ready.items())])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found = {}
    for name, path in tracked(list(networks.items()), "Networks"):
        module = module_with_own_head(read_checkpoint(path), model)
        features = {
            one: representations(
                _with_statistics(module, data, statistics, device), data, count, seed, device
            )
            for one, data in ready.items()
        }
        found[name] = embed(features, method, seed)
    return found, count


def _with_statistics(
    module: LightningModule,
    data: LightningDataModule,
    statistics: TaskStatistics | None,
    device: torch.device,
) -> LightningModule:
    if statistics is None:
        return module
    own = copy.deepcopy(module).to(device)
    reset_on_training_data(own, data, device, statistics.examples, statistics.seed)
    return own


def _size(name: str, data: LightningDataModule) -> int:
    try:
        return len(data.test_dataloader().dataset)
    except (AttributeError, TypeError, MisconfigurationException) as error:
        raise ConfigError(f"data set '{name}' does not say how many test images it has") from error
