"""Runs the benchmarks and prints a table: `python -m benchmarks [name ...]`."""

import argparse
import math
import os
import shlex
from importlib import import_module
from inspect import cleandoc
from pathlib import Path

from rich.console import Console

from benchmarks.ratio import Ratio
from lightning_merge.provenance import provenance
from lightning_merge.report.fitted_table import FittedTable

_ALL = ("np_cost", "training", "alignment", "ensembles", "ties", "spectral", "averaging")
_COLUMNS = ("benchmark", "ours", "held against", "its figure", "ratio", "± (quartiles)", "goal")


def main(arguments: list[str] | None = None) -> None:
    """Runs those named, all if none is."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"modules of this folder; {', '.join(_ALL)}")
    parser.add_argument("--write", type=Path, help="a Markdown file for the table")
    parser.add_argument("--peer-python", help="a Python that has timm and rebasin, for alignment")
    parser.add_argument("--full", action="store_true", help="networks of full size, for spectral")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="for np_cost, training; or both")
    given = parser.parse_args(arguments)
    names = given.names or list(_ALL)
    made_by = provenance([])
    versions = ", ".join(f"{name} {version}" for name, version in made_by["versions"].items())
    load = f"load average at the start {os.getloadavg()[0]:.1f}"
    machine = f"{versions}; {made_by['device']}, {load}"
    console = Console(highlight=False)
    console.print(machine)
    rows: list[tuple[str, ...]] = []
    for name in names:
        device = {"device": given.device}
        own = {
            "alignment": {"peer_python": given.peer_python},
            "spectral": {"full": given.full},
            **{"np_cost": device, "training": device},
        }
        options = own.get(name, {})
        rows += [_cells(one) for one in import_module(f"benchmarks.{name}").run(**options)]
    console.print(FittedTable(_COLUMNS, rows, words=("held against", "goal")))
    if given.write:
        words = ["python", "-m", "benchmarks", *names, "--write", str(given.write)]
        words += ["--peer-python", "PYTHON"] if given.peer_python else []
        words += ["--full"] if given.full else []
        words += ["--device", given.device] if given.device else []
        about = [cleandoc(import_module(f"benchmarks.{name}").__doc__ or "") for name in names]
        header = [
            "| " + " | ".join(_COLUMNS) + " |",
            "| --- | ---: | --- | ---: | ---: | ---: | --- |",
        ]
        text = [f"# {', '.join(names).capitalize()}: speed and memory", "", *about, ""]
        lines = ["| " + " | ".join(cells) + " |" for cells in rows]
        text += [*header, *lines, "", "`" + shlex.join(words) + "`; " + machine + "."]
        given.write.write_text("\n".join(text) + "\n")


def _cells(result: Ratio) -> tuple[str, ...]:
    """A row of the table."""
    return (
        result.name,
        _quantity(result.ours, result.unit),
        result.against,
        _quantity(result.theirs, result.unit),
        f"{result.ratio:.3f}",
        "" if math.isnan(result.spread) else f"{result.spread:.3f}",
        result.goal,
    )


def _quantity(value: float, unit: str) -> str:
    if unit == "s" and value < 1:
        return f"{1000 * value:.1f} ms"
    return f"{value:.1f} {unit}" if value < 100 else f"{value:.0f} {unit}"


if __name__ == "__main__":
    main()
