"""Provenance: how a stored result was made."""

import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

_PACKAGES = ("lightning-merge", "torch", "lightning", "torchmetrics", "timm", "numpy", "scipy")


def provenance(command: list[str] | None = None) -> dict[str, Any]:
    """The command, the versions of the software, the machine, and the time, as plain values.

    The command is the arguments after `python -m lightning_merge`; those of this process if not
    given. The other names are `versions`, `device`, `platform`, `commit` (of a checkout of this
    package; None where it was installed) and `time` (UTC, ISO 8601).
    """
    import torch

    words = sys.argv[1:] if command is None else command
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name()
    else:
        threads = torch.get_num_threads()
        device = f"CPU, {threads} thread{'s' if threads > 1 else ''}"
    return {
        "command": "python -m lightning_merge " + shlex.join(words),
        "versions": _versions(),
        "device": device,
        "platform": platform.platform(),
        "commit": _commit(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def differences(pieces: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The differences in provenance between several pieces of work, by label, one line each.

    It has, for every version, device, platform and commit that is not the same for all pieces, its
    values and which pieces have each.
    """
    flat = {name: _flat(made_by) for name, made_by in pieces.items()}
    lines = []
    for what in dict.fromkeys(key for one in flat.values() for key in one):
        having: dict[str, list[str]] = {}
        for name, one in flat.items():
            having.setdefault(one.get(what, "none"), []).append(name)
        if len(having) > 1:
            parts = (f"{value} ({_listed(names)})" for value, names in having.items())
            lines.append(f"{what}: {'; '.join(parts)}")
    return lines


def _flat(made_by: Mapping[str, Any]) -> dict[str, str]:
    versions = {name: str(version) for name, version in (made_by.get("versions") or {}).items()}
    rest = {name: str(made_by.get(name)) for name in ("device", "platform", "commit")}
    return {**versions, **rest}


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


@cache
def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


@cache
def _commit() -> str | None:
    here = Path(__file__).resolve().parent
    if not (here.parent / ".git").exists():
        return None
    command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
