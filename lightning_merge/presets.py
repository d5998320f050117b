"""The configurations that come with the package: `preset:merge/digits` wherever a file is named.

They are the repository's `configs/`, which the wheel holds as `lightning_merge/configs/`.
"""

import re
from collections.abc import Sequence
from difflib import get_close_matches
from itertools import takewhile
from pathlib import Path

from lightning_merge.errors import ConfigError

PREFIX = "preset:"
_PACKAGE = Path(__file__).parent


def folder() -> Path:
    """The folder of the configurations: in an installed package, or in a clone of the project."""
    installed = _PACKAGE / "configs"
    return installed if installed.is_dir() else _PACKAGE.parent / "configs"


def presets() -> dict[str, Path]:
    """All configurations by name, for example `merge/digits`."""
    files = sorted(folder().rglob("*.yaml"))
    return {path.relative_to(folder()).with_suffix("").as_posix(): path for path in files}


def preset(name: str) -> Path:
    """The file of one configuration, such as `merge/digits`; a `ConfigError` if there is none."""
    known = presets()
    if name not in known:
        near = get_close_matches(name, known, 2)
        hint = f"did you mean {' or '.join(near)}?" if near else "`list presets` shows them"
        raise ConfigError(f"{PREFIX}{name}: there is no such preset; {hint}")
    return known[name]


def first_comment(path: Path) -> str:
    """What a configuration is for: the first sentence of the comment at its top."""
    lines = path.read_text(encoding="utf-8").splitlines()
    # Lines that are indented further are a command.
    words = [
        line.removeprefix("# ")
        for line in takewhile(lambda line: line.startswith("# ") and line[2] != " ", lines)
    ]
    return re.split(r"(?<!Sec)(?<!Fig)(?<!Figs)\.(?: |$)", " ".join(words))[0].rstrip(":")


def with_presets(words: Sequence[str]) -> list[str]:
    """The words of a command line, with the paths of the presets that `-c` and `--config` name."""
    found = []
    before = ""
    for word in words:
        option, equals, value = word.partition("=")
        if before in ("-c", "--config") and word.startswith(PREFIX):
            found.append(str(preset(word.removeprefix(PREFIX))))
        elif option == "--config" and equals and value.startswith(PREFIX):
            found.append(f"{option}={preset(value.removeprefix(PREFIX))}")
        else:
            found.append(word)
        before = word
    return found
