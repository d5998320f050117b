"""What a stored result says of how it was made."""

import platform
import shlex
import sys
from importlib import metadata
from typing import Any

_PACKAGES = ("lightning-merge", "torch", "lightning", "torchmetrics", "timm", "numpy", "scipy")


def provenance(command: list[str] | None = None) -> dict[str, Any]:
    """The command, the versions of the software, and the device.

    Args:
        command: The words after `python -m lightning_merge`; those of this process if not
            given.

    Returns:
        `command`, `versions` and `device`, as plain values.
    """
    import torch

    words = sys.argv[1:] if command is None else command
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name()
    else:
        device = f"CPU, {torch.get_num_threads()} threads"
    return {
        "command": "python -m lightning_merge " + shlex.join(words),
        "versions": versions,
        "device": device,
    }
