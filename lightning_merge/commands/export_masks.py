"""`export --masks`: networks of several tasks as one sum and a mask of bits for each."""

from collections.abc import Sequence
from pathlib import Path

from lightning_merge.aggregate import write_masked
from lightning_merge.checkpoint import read_checkpoint
from lightning_merge.errors import ConfigError


def export_masks(
    pretrained: Path, tasks: Sequence[str], folder: Path, threshold: float, overwrite: bool
) -> Path:
    """Writes what `load_task` reads.

    The checkpoint is the one that all were fine-tuned from; each task is `NAME=CHECKPOINT`, with
    the name of the file if its own is left out.
    """
    paths: dict[str, Path] = {}
    for given in tasks:
        name, found, path = given.partition("=")
        if not found or Path(given).exists():
            # Lightning's own names have a sign of equality: epoch=1-step=40.ckpt.
            name, path = Path(given).stem, given
        if name in paths:
            raise ConfigError(f"--masks: two tasks are called '{name}': write NAME=CHECKPOINT")
        paths[name] = Path(path)
    states = {name: read_checkpoint(path).state_dict for name, path in paths.items()}
    start = read_checkpoint(pretrained).state_dict
    return write_masked(start, states, folder, threshold, overwrite)
