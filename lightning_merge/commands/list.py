"""`list`: the presets, or everything registered of one kind, one line each."""

import sys
from collections.abc import Sequence
from importlib import import_module

from rich.console import Console
from rich.table import Table

from lightning_merge.commands.described import read_described, registered_elsewhere
from lightning_merge.commands.short_errors import PlainParser
from lightning_merge.presets import PREFIX, first_comment, presets

KINDS = {
    "aggregates": "lightning_merge.recipe.aggregate",
    "matchings": "lightning_merge.align",
    "recalibrations": "lightning_merge.recipe.recalibration",
    "selections": "lightning_merge.recipe.selection",
    "figures": "lightning_merge.plots.figure",
    "sweeps": "lightning_merge.measure.sweep",
    "work_kinds": "lightning_merge.study.work",
    "executors": "lightning_merge.study.executor",
}
"""The registries' names, and the modules that hold them under the same names."""


def list(words: Sequence[str]) -> None:
    """Prints what is registered: name, what it does, what it needs, its paper."""
    parser = PlainParser(
        prog="python -m lightning_merge list",
        description="Lists what recipes, figures and studies can name, with those that other "
        "packages register; and the configurations that `-c` can name.",
    )
    parser.add_argument("kind", choices=sorted((*KINDS, "presets")), help="what to list")
    kind = parser.parse_args(words).kind
    if kind == "presets":
        table = Table("name", "what it is", header_style="bold", box=None)
        rows: Sequence[Sequence[str]] = [
            [f"{PREFIX}{name}", first_comment(path)] for name, path in presets().items()
        ]
    else:
        table = Table("name", "what it does", "needs", "paper", header_style="bold", box=None)
        rows = _registered(kind)
    for row in rows:
        table.add_row(*row)
    # When the output is a file, an entry stays on one line, however long.
    terminal = Console().is_terminal
    Console(highlight=False, width=None if terminal else 500).print(table)


def _registered(kind: str) -> Sequence[Sequence[str]]:
    # Once imported, a registry may have entries of the user's own.
    if KINDS[kind] in sys.modules or registered_elsewhere(kind):
        registry = getattr(import_module(KINDS[kind]), kind)
        return [[entry.name, entry.line, entry.needs, entry.paper] for entry in registry]
    return read_described()["lists"][kind]
