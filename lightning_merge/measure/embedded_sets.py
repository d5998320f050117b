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

    From so many training images, None for all, which the seed determines.
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
    """The embedding of all sets' test images under each network, and how many of each are shown.

    Networks are checkpoints and sets the configurations of data modules, by what to call them. The
    module is described by the checkpoints where no configuration of it is given. So many images of
    each set are shown, if there are so many in all; the seed says which, and is that of t-SNE.
    `statistics` gives each set BatchNorm statistics of its own; None leaves the networks' own.
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
