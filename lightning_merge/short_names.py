"""Names of files shortened to what distinguishes them, for tables and figures."""

import re
from collections.abc import Sequence
from pathlib import PurePath

_ENDINGS = (".ckpt", ".pt", ".pth", ".safetensors", ".bin")
# Up to this length a file's own name is left whole.
_SHORT = 24


def short_names(names: Sequence[str]) -> list[str]:
    """Names without the folders, words and endings that all of them share.

    `logs/version_0/checkpoints/last.ckpt` and `logs/version_1/checkpoints/last.ckpt` become
    `version_0` and `version_1`. Different names stay different. Names without a slash are only
    shortened where they are long.
    """
    folders = [_parts(name, "/") for name in names]
    short = _differing(folders, "/")
    if all(name.endswith(_ENDINGS) for name in short):
        endless = [str(PurePath(name).with_suffix("")) for name in short]
        short = endless if len(set(endless)) == len(set(short)) else short
    files = [PurePath(name).name for name in short]
    if max(map(len, short), default=0) > _SHORT and len(set(files)) == len(set(short)):
        # The files' own names are enough.
        short = files
    if max(map(len, short), default=0) > _SHORT and not any("/" in name for name in short):
        short = _differing([_parts(name, "-") for name in short], "-")
    return short


def _parts(name: str, separator: str) -> list[str]:
    return [part for part in re.split(separator, name) if part] or [name]


def _differing(split: Sequence[Sequence[str]], joint: str) -> list[str]:
    """The parts that are not the same in all, with `…` for shared ones between them."""
    if len(set(map(tuple, split))) < 2:
        return [parts[-1] for parts in split]
    shortest = min(map(len, split))
    head = 0
    while head < shortest - 1 and len({parts[head] for parts in split}) == 1:
        head += 1
    tail = 0
    while tail < shortest - head - 1 and len({parts[-1 - tail] for parts in split}) == 1:
        tail += 1
    kept = [list(parts[head : len(parts) - tail]) for parts in split]
    if len({len(parts) for parts in kept}) == 1:
        for place in range(len(kept[0])):
            if len({parts[place] for parts in kept}) == 1:
                for parts in kept:
                    parts[place] = "…"
    return [re.sub(r"…(?:.…)+", "…", joint.join(parts)) for parts in kept]
