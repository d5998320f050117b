"""Several networks in the space of two, and a bit more for each parameter and task.

Wang et al. 2024, "Localizing Task Information for Improved Model Merging and Compression" (arXiv
2405.07813): the storage that TALL masks make possible.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lightning_merge.aggregate.inputs import State, checked, checked_tensors, opened, wide
from lightning_merge.aggregate.localised import check_threshold, tall_mask
from lightning_merge.checkpoint import write_safetensors
from lightning_merge.errors import ArchitectureMismatchError, CheckpointError, ConfigError
from lightning_merge.files import claim_folder, read_json, write_json, written_together
from lightning_merge.number_types import is_fraction
from lightning_merge.safetensors_file import SafetensorsFile
from lightning_merge.state_dicts import StateDict, prefixed, table_of, tensor_of
from lightning_merge.tensor_names import is_running_statistic

_MERGED, _START, _MASKS, _OWN = (
    f"{name}.safetensors" for name in ("merged", "pretrained", "masks", "own")
)
_LIST = "tasks.json"
_FILES = (_MERGED, _START, _MASKS, _OWN, _LIST)


def write_masked(
    pretrained: State,
    tasks: Mapping[str, State],
    folder: str | Path,
    threshold: float = 0.4,
    overwrite: bool = False,
) -> Path:
    """Writes fine-tuned networks as one sum, and a mask of one bit a parameter for each.

    `merged.safetensors` has the pre-trained network plus the sum of all task vectors,
    `pretrained.safetensors` the pre-trained one, `masks.safetensors` the TALL masks, eight
    parameters in a byte. What a mask cannot give back (running statistics, integers, tensors that
    have other shapes in other tasks, and those that the pre-trained network lacks: heads) is in
    `own.safetensors`, for each task as it is.

    Args:
        pretrained: The state dict that all were fine-tuned from, or the path of its file.
        tasks: The fine-tuned networks' state dicts, or paths of their files, by the tasks' names.
        folder: Where to.
        threshold: As for `tall_masks`. With the threshold 0, and wherever no two tasks move the
            same entry, each network is given back as it was.
        overwrite: Whether what such a folder holds may be written over.

    Returns:
        The folder.

    Raises:
        ConfigError: If there is no task, a name is empty or has a slash, the threshold is
            negative, or the folder is in use.
        ArchitectureMismatchError: If a network lacks a tensor of the pre-trained one.
        NonFiniteError: If a tensor holds NaN, or the result is beyond its type's range.
    """
    if not tasks or not all(name and "/" not in name for name in tasks):
        raise ConfigError(f"masks: tasks {list(tasks)}: give one or more, by names without slashes")
    check_threshold(threshold)
    start = opened(pretrained)
    networks = {name: _same_names(name, opened(state), start) for name, state in tasks.items()}
    merged: StateDict = {}
    masks: StateDict = {}
    own: StateDict = {
        f"{name}/{key}": value.clone()
        for name, state in networks.items()
        for key, value in state.items()
        if key not in start
    }
    for key in start:
        if not _is_masked(key, start, networks):
            merged[key] = start[key].detach().clone()
            own |= {f"{name}/{key}": state[key].clone() for name, state in networks.items()}
            continue
        called = ["the pre-trained network", *networks]
        origin, *ends = checked_tensors([start, *networks.values()], called, key)
        base = origin.to(wide(origin))
        # A mask's infinities do not move.
        steps = [torch.where(end == origin, 0, end.to(base) - base) for end in ends]
        total = torch.stack(steps).sum(dim=0)
        both = (base + total).to(origin.dtype)
        for name, end, step in zip(networks, ends, steps, strict=True):
            # What one task alone moved is its own, which the sum would round.
            both = torch.where(step == total, end, both)
            bits = np.packbits(tall_mask(step, total, threshold).flatten().cpu().numpy())
            masks[f"{name}/{key}"] = torch.from_numpy(bits)
        merged[key] = checked(key, both, origin)
    made = claim_folder(folder, _FILES, overwrite)
    with written_together():
        write_safetensors(made / _MERGED, merged)
        write_safetensors(made / _START, {key: value.detach() for key, value in start.items()})
        write_safetensors(made / _MASKS, masks)
        write_safetensors(made / _OWN, own)
        write_json(made / _LIST, {"tasks": list(tasks), "threshold": threshold})
    return made


def load_task(folder: str | Path, name: str) -> StateDict:
    """The network of one task, from what `write_masked` (or `export --masks`) wrote.

    Args:
        folder: The folder.
        name: The task's name.

    Returns:
        A state dict: where the task's mask is set that of the merged network, elsewhere that of
        the pre-trained one.

    Raises:
        ConfigError: If the folder has no such task.
        CheckpointError: If a file of it cannot be read.
    """
    path = Path(folder)
    if not (path / _LIST).is_file():
        raise ConfigError(f"{folder} has no {_LIST}: give a folder that `export --masks` wrote")
    try:
        known = [str(one) for one in read_json(path / _LIST)["tasks"]]
    except (ValueError, LookupError, TypeError) as error:
        raise CheckpointError(
            f"{path / _LIST} is damaged: write the folder anew with `export --masks`"
        ) from error
    if name not in known:
        raise ConfigError(f"{folder} has no task '{name}': choose among {', '.join(known)}")
    merged, start, masks, own = (_read(path / one) for one in (_MERGED, _START, _MASKS, _OWN))
    state = {
        stored.removeprefix(f"{name}/"): value.clone()
        for stored, value in own.items()
        if stored.startswith(f"{name}/")
    }
    for key in merged.keys() - state.keys():
        value = merged[key]
        bits = np.unpackbits(masks[f"{name}/{key}"].numpy(), count=value.numel()).astype(bool)
        state[key] = torch.where(torch.from_numpy(bits).view(value.shape), value, start[key])
    order = dict.fromkeys((*merged, *state))
    return {key: state[key] for key in order}


def _read(path: Path) -> StateDict:
    # Unlike a file of weights it may be without tensors.
    opened = SafetensorsFile.open(path)
    return {name: tensor_of(opened.raw(name), entry) for name, entry in opened.table.items()}


def _same_names(
    task: str, state: Mapping[str, Tensor], start: Mapping[str, Tensor]
) -> Mapping[str, Tensor]:
    if set(state) == set(start):
        return state
    named = prefixed(state, start)
    missing = next((key for key in start if key not in named), None)
    if missing is not None:
        raise ArchitectureMismatchError(
            f"masks: '{missing}' of the pre-trained network is not in that of task '{task}'; give "
            "networks of one architecture"
        )
    return named


def _is_masked(
    key: str, start: Mapping[str, Tensor], networks: Mapping[str, Mapping[str, Tensor]]
) -> bool:
    entry = table_of({key: start[key]})[key]
    alike = all(
        state[key].shape == start[key].shape and state[key].dtype == start[key].dtype
        for state in networks.values()
    )
    return alike and is_fraction(entry.code) and not is_running_statistic(key)
