"""The Trainer's settings for one process on one device, on which merges are made and measured.

Over several processes every one would make and write each merge, and a test set that they divide
is filled up with examples that then count twice.
"""

from collections.abc import Mapping
from typing import Any

import torch

_ALL = (None, "auto", -1, "-1")
_DISTRIBUTED = ("ddp", "fsdp", "deepspeed", "xla")


def on_one_device(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The Trainer's settings with the first of their devices, on one node.

    What Lightning does not accept as `devices` stays, for it to refuse.
    """
    changed = {**settings, "devices": _first(settings.get("devices"))}
    if "num_nodes" in settings:
        changed["num_nodes"] = 1
    if _is_distributed(settings.get("strategy")):
        changed["strategy"] = "auto"
    return changed


def devices_line(settings: Mapping[str, Any]) -> str:
    """A line that says so where the settings are for several devices; else empty."""
    given, nodes = settings.get("devices"), settings.get("num_nodes") or 1
    of_all = torch.cuda.device_count() > 1 and settings.get("accelerator") != "cpu"
    several = of_all if given in _ALL else _first(given) != (1 if given == "1" else given)
    if not several and nodes == 1 and not _is_distributed(settings.get("strategy")):
        return ""
    return "one process on one device makes and tests the merges (`fit` trains on several)"


def _first(devices: Any) -> Any:
    if devices in _ALL:
        return 1
    if isinstance(devices, str) and "," in devices:
        return f"{devices.split(',')[0].strip()},"
    if isinstance(devices, str) and devices.isdecimal() and int(devices) > 0:
        return 1
    if isinstance(devices, int) and devices > 0:
        return 1
    if isinstance(devices, list | tuple) and devices:
        return [devices[0]]
    return devices


def _is_distributed(strategy: Any) -> bool:
    from lightning.pytorch.strategies import ParallelStrategy

    return isinstance(strategy, ParallelStrategy) or (
        isinstance(strategy, str) and strategy.startswith(_DISTRIBUTED)
    )
