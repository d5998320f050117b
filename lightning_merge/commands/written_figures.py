"""Writes the figures that a command has drawn."""

from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from lightning_merge.errors import OutputExistsError
from lightning_merge.files import sweep, written_together
from lightning_merge.plots.style import files, save

Figures = Mapping[str, Figure]
"""Figures by what their file's name ends in, beside what the user chose."""


def write_figures(figures: Figures, path: Path, overwrite: bool) -> None:
    """Writes figures as PNG and SVG, their suffixes added to the name, and prints the names."""
    named = {
        path.with_name(f"{path.stem}{ending}{path.suffix}") if ending else path: figure
        for ending, figure in figures.items()
    }
    for file in (file for target in named for file in files(target)):
        if file.exists() and not overwrite:
            raise OutputExistsError(f"{file} exists: choose another --output, or add --overwrite")
    sweep(path.parent)
    with written_together():
        written = [file for target, figure in named.items() for file in save(figure, target)]
    print(*written, sep="\n")
