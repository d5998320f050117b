"""`list`: everything registered of one kind, one line each."""

from collections.abc import Sequence
from importlib import import_module

from rich.console import Console
from rich.table import Table

from lightning_merge.commands import options
from lightning_merge.commands.short_errors import PlainParser

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
    """Prints what is registered: name, what it does, what it needs, its paper.

    Args:
        words: The command line after `list`.
    """
    parser = PlainParser(
        prog="python -m lightning_merge list",
        description="Lists what recipes, figures and studies can name, with those that other "
        "packages register.",
    )
    parser.add_argument("kind", choices=sorted(KINDS))
    kind = parser.parse_args(words).kind
    registry = getattr(import_module(KINDS[kind]), kind)
    table = Table("name", "what it does", "needs", "paper", header_style="bold", box=None)
    for entry in registry:
        table.add_row(entry.name, entry.line, entry.needs, entry.paper)
    # When the output is a file, an entry stays on one line, however long.
    Console(highlight=False, width=None if options.console.is_terminal else 500).print(table)
