"""`average`: the mean of checkpoint files; no network and no data needed."""

from argparse import ArgumentParser
from pathlib import Path

from lightning_merge.aggregate import average as average_states
from lightning_merge.checkpoint import (
    check_ingredients,
    digest,
    read_checkpoint,
    write_checkpoint,
    write_safetensors,
)
from lightning_merge.errors import ConfigError, OutputExistsError

# Entries of a Lightning checkpoint that tell of a training run, not of a network.
_OF_TRAINING = ("optimizer_states", "lr_schedulers", "callbacks", "loops", "lightning_merge")


def average(words: list[str]) -> None:
    """Writes the uniform or weighted average of checkpoint files.

    Args:
        words: The command line after `average`.

    Raises:
        MergeError: If the user can mend it.
    """
    parser = ArgumentParser(
        prog="python -m lightning_merge average",
        description="Averages checkpoint files of one architecture. Integers (counters) are "
        "those of the first. Networks with BatchNorm that were trained apart want `merge`.",
    )
    parser.add_argument("checkpoints", nargs="+", help="files: .ckpt, .pt, .pth, .safetensors")
    parser.add_argument("--weights", nargs="+", type=float, help="one number for each file")
    parser.add_argument(
        "--output",
        required=True,
        type=Path,
        help=".safetensors, .pt or .pth (a state dict), or .ckpt (as the first file has it)",
    )
    parser.add_argument("--overwrite", action="store_true", help="write over an existing file")
    chosen = parser.parse_args(words)
    suffix = chosen.output.suffix
    if suffix not in (".safetensors", ".ckpt", ".pt", ".pth"):
        raise ConfigError(
            f"{chosen.output}: choose a name that ends in .safetensors, .ckpt, .pt or .pth"
        )
    if chosen.output.exists() and not chosen.overwrite:
        raise OutputExistsError(
            f"{chosen.output} exists: choose another --output, or add --overwrite"
        )
    checkpoints = [read_checkpoint(path) for path in chosen.checkpoints]
    states = [checkpoint.state_dict for checkpoint in checkpoints]
    check_ingredients(states, chosen.checkpoints)
    merged = average_states(states, chosen.weights)
    if suffix == ".safetensors":
        hashes = {f"ingredient_{i}": digest(state) for i, state in enumerate(states)}
        write_safetensors(chosen.output, merged, {"method": "average", **hashes})
    elif suffix == ".ckpt":
        first = checkpoints[0].content
        kept = {key: value for key, value in first.items() if key not in _OF_TRAINING}
        write_checkpoint(chosen.output, {**kept, "state_dict": merged})
    else:
        write_checkpoint(chosen.output, merged)
    print(f"{chosen.output}: average of {len(states)} checkpoints, {len(merged)} tensors")
