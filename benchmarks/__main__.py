"""Runs the benchmarks and prints a table: `python -m benchmarks [name ...]`."""

import sys
from importlib import import_module

from rich.console import Console
from rich.table import Table

from lightning_merge.study.provenance import provenance

_ALL = ("np_cost", "matching")


def main(names: list[str]) -> None:
    """Runs those named, all if none is."""
    console = Console(highlight=False)
    made_by = provenance([])
    versions = ", ".join(f"{name} {version}" for name, version in made_by["versions"].items())
    console.print(f"{versions}; {made_by['device']}")
    table = Table("benchmark", "ours, ms", "held against, ms", "ratio", "± (quartiles)")
    for name in names or _ALL:
        for result in import_module(f"benchmarks.{name}").run():
            table.add_row(
                result.name,
                f"{1000 * result.ours:.1f}",
                f"{1000 * result.theirs:.1f}",
                f"{result.ratio:.3f}",
                f"{result.spread:.3f}",
            )
    console.print(table)


if __name__ == "__main__":
    main(sys.argv[1:])
