"""`completion`: the script by which a shell completes commands, options and their values."""

import argparse
from collections.abc import Sequence

from lightning_merge.commands.described import add_described, read_described
from lightning_merge.commands.short_errors import PlainParser


def completion(words: Sequence[str]) -> None:
    """Prints a completion script for `lightning-merge`."""
    import shtab

    parser = PlainParser(
        prog="python -m lightning_merge completion",
        description="Prints a script by which a shell completes `lightning-merge`. For bash: "
        "lightning-merge completion bash > ~/.local/share/bash-completion/completions/"
        "lightning-merge. For zsh: into a file _lightning-merge in a folder of $fpath.",
    )
    parser.add_argument("shell", choices=shtab.SUPPORTED_SHELLS, help="which shell")
    print(shtab.complete(_all_commands(), parser.parse_args(words).shell))


def _all_commands() -> argparse.ArgumentParser:
    root = argparse.ArgumentParser(prog="lightning-merge")
    commands = root.add_subparsers()
    for name, known in read_described()["commands"].items():
        if " " in name:
            continue
        parser = commands.add_parser(name, help=known["description"].replace("%", "%%"))
        for option in known["options"]:
            add_described(parser, option)
    return root
