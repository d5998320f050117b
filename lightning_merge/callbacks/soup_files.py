"""The files of a soup: ingredients on their way in, the soup on its way out."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_merge.checkpoint import (
    StateDict,
    read_checkpoint,
    tensors_of,
    write_checkpoint,
    write_safetensors,
)
from lightning_merge.modules.module_state import fit_module


def soup_folder(trainer: Trainer, dirpath: str | Path | None, name: str) -> Path:
    """Where files go: `dirpath`, else `name` in the logger's or the Trainer's folder.

    It is the same on all ranks, which must all call this.
    """
    folder = Path(dirpath or Path(trainer.log_dir or trainer.default_root_dir) / name)
    chosen: str = trainer.strategy.broadcast(str(folder.absolute()))
    return Path(chosen)


def write_ingredient(trainer: Trainer, module: LightningModule, folder: Path) -> Path:
    """Writes the module's weights, named by epoch and step; rank 0 alone does.

    The file is there for all ranks afterwards.
    """
    path = folder / f"epoch={trainer.current_epoch}-step={trainer.global_step}.safetensors"
    if trainer.is_global_zero:
        write_safetensors(path, tensors_of(module))
    trainer.strategy.barrier("soup ingredient")
    return path


def read_ingredient(path: str | Path, module: LightningModule) -> StateDict:
    """Reads weights, with the module's names."""
    return fit_module(read_checkpoint(path).state_dict, module, str(path))


def remove_ingredient(trainer: Trainer, path: str | Path) -> None:
    """Deletes a file that this package wrote; rank 0 alone does."""
    if trainer.is_global_zero:
        Path(path).unlink(missing_ok=True)


def write_soup(
    trainer: Trainer, path: Path, state: Mapping[str, Tensor], about: Mapping[str, Any]
) -> Path:
    """Writes a checkpoint that the module's own class loads; rank 0 alone does.

    It is the Trainer's, without optimizer but with hyper-parameters, hooks and all, whose weights
    are replaced; what is known of the soup is kept under `soup`.
    """
    raw = path.with_name(f".{path.name}.raw")
    trainer.save_checkpoint(raw, weights_only=True)
    if trainer.is_global_zero:
        # This file was written a moment ago, by this process.
        content = torch.load(raw, map_location="cpu", weights_only=False)
        raw.unlink()
        content.pop("loops", None)
        weights = content["state_dict"]
        content["state_dict"] = {
            name: state[name].cpu() if name in state else value for name, value in weights.items()
        }
        write_checkpoint(path, {**content, "soup": dict(about)})
    trainer.strategy.barrier("soup written")
    return path
