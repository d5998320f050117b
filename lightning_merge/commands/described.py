"""`--help` and completion without torch: each command's options as `described.json` keeps them.

`make options` writes that file from the commands' own parsers, and a test compares the two.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("described.json")
_SWEPT = ("compare", "study")
_FILES = (
    *("checkpoint", "checkpoints", "ckpt", "ckpt_path", "config", "folder", "output"),
    *("pretrained", "result", "root", "source", "sources"),
)


@cache
def read_described() -> dict[str, Any]:
    """The commands' options, and what the registries hold, as stored."""
    return json.loads(FILE.read_text(encoding="utf-8"))


def registered_elsewhere(kind: str) -> bool:
    """Whether another installed package adds to a registry of ours."""
    return bool(entry_points(group=f"lightning_merge.{kind}"))


def described_parser(words: Sequence[str]) -> argparse.ArgumentParser | None:
    """A parser that has the options and the help of a command, but not their types.

    None if the command is unknown, or has options of another package.
    """
    commands = read_described()["commands"]
    name = next((one for one in (" ".join(words[:2]), words[0]) if one in commands), None)
    if name is None or (name in _SWEPT and _has_own_sweeps(commands[name])):
        return None
    known = commands[name]
    name = name.removesuffix(" FOLDER")
    positional = " ".join(one["dest"].upper() for one in known["options"] if not one["flags"])
    required = [_usage(one) for one in known["options"] if one["flags"] and one["required"]]
    usage = " ".join(filter(None, (name, positional, *required, "[options]")))
    parser = argparse.ArgumentParser(
        prog=f"python -m lightning_merge {name}",
        usage=f"python -m lightning_merge {usage}",
        description=known["description"],
    )
    for one in known["options"]:
        add_described(parser, one)
    return parser


def add_described(parser: argparse.ArgumentParser, option: dict[str, Any]) -> None:
    """Adds one option as it is described."""
    # The percent sign begins a placeholder in argparse's help.
    text = (option["help"] + _default(option)).replace("%", "%%")
    about: dict[str, Any] = {"help": text}
    if option["nargs"] == 0:
        about["action"] = "store_true"
    else:
        about |= {"nargs": option["nargs"], "choices": option["choices"]}
        if option["choices"] is None:
            about["metavar"] = option["dest"].rpartition(".")[2].upper()
    if option["flags"]:
        about["dest"] = option["dest"]
    added: Any = parser.add_argument(*(option["flags"] or [option["dest"]]), **about)
    if option["dest"] in _FILES:
        from shtab import FILE as FILES

        added.complete = FILES


def _has_own_sweeps(known: dict[str, Any]) -> bool:
    """Whether a command has options of sweeps that are not this package's."""
    if registered_elsewhere("sweeps"):
        return True
    # Once imported, the registry may have entries of the user's own.
    home = sys.modules.get("lightning_merge.measure.sweep")
    described = {option["dest"] for option in known["options"]}
    return home is not None and any(one.value.option not in described for one in home.sweeps)


def _usage(option: dict[str, Any]) -> str:
    return f"{option['flags'][-1]} {option['dest'].rpartition('.')[2].upper()}"


def _default(option: dict[str, Any]) -> str:
    if option["required"] and option["flags"]:
        return " (required)"
    default = option["default"]
    return "" if default in (None, False, "", [], {}) else f" (default: {default})"
