"""Which machine this is, and whether a process there still runs."""

import os
import platform
from functools import cache
from pathlib import Path


@cache
def here() -> list[str]:
    """This machine, and the space in which its processes are numbered.

    Two containers may have one name, and have a process 1 each.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        space = f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        space = ""
    return [platform.node(), space]


def begun(process: int) -> str | None:
    """When a process of this machine began, in the machine's own count; None if it has ended.

    A later process may have its number again, begun at another time.
    """
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return None
    except PermissionError:
        pass
    try:
        text = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "running"
    # What follows the name, which is in brackets and may hold anything; the state comes first.
    words = text.rpartition(")")[2].split()
    return None if words[0] in "ZX" else words[19]
