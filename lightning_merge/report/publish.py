"""Writes results of any kind into a folder: tables, figures, a report."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from matplotlib.figure import Figure

from lightning_merge.files import read_json, write_csv, write_json, write_text, written_together
from lightning_merge.loggers import log_figure, log_table
from lightning_merge.plots.style import files, save
from lightning_merge.report.page import Page

Row = Mapping[str, Any]

# Which figures there will be is known when all has been measured.
WRITTEN = ("results.csv", "results.json", "report.md", "report.html", "merges", "*.png", "*.svg")


def publish(
    folder: Path,
    rows: Sequence[Row],
    results: Mapping[str, Any],
    report: str,
    page: Page,
    figures: Mapping[str, Figure],
    tables: Mapping[str, Sequence[Row]],
    loggers: Sequence[Logger] = (),
) -> list[Path]:
    """Writes results, figures and the reports, and sends tables and figures to the loggers.

    Files of earlier results are overwritten. There is a row for each measurement; `results` is the
    content of `results.json`, `report` that of `report.md`; figures are by file name.
    """
    before = drawn_in(folder)
    with written_together() as waiting:
        written = [
            write_csv(folder / "results.csv", rows),
            write_json(folder / "results.json", {**results, "figures": list(figures)}),
        ]
        svgs = {}
        for name, figure in figures.items():
            drawn = save(figure, folder / name)
            written += drawn
            svgs[name] = waiting[drawn[-1].resolve()].read_text(encoding="utf-8")
        written.append(write_text(folder / "report.md", report))
        written.append(write_text(folder / "report.html", page.html(svgs)))
    # A figure of earlier results would be mistaken for one of these.
    for name in set(before) - set(figures):
        for file in files(folder / name):
            file.unlink(missing_ok=True)
    for logger in loggers:
        for name, table in tables.items():
            log_table(logger, name, table)
        for name, figure in figures.items():
            log_figure(logger, name, figure)
    return written


def drawn_in(folder: Path) -> list[str]:
    """The names of the figures of earlier results in a folder, according to its `results.json`.

    The report may have been edited, and show pictures that nobody draws anew.
    """
    try:
        names = list(read_json(folder / "results.json")["figures"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return []
    # One that leads out of the folder is none of ours.
    return [name for name in names if name and isinstance(name, str) and Path(name).name == name]


def provenance_part(made_by: Mapping[str, Any], differing: Sequence[str]) -> str:
    """The report's paragraph on how results were made, and what `differences` their pieces have."""
    versions = ", ".join(f"{name} {version}" for name, version in made_by["versions"].items())
    text = f"    {made_by['command']}\n\n{versions}; {made_by['device']}.\n"
    if differing:
        text += "\nThe pieces of this study were not all made alike:\n\n"
        text += "".join(f"* {line}\n" for line in differing)
    return text
