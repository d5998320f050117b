"""What every verb returns: rows, a table, figures, merged networks, files."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from io import StringIO
from pathlib import Path
from typing import Any, Protocol

from lightning.pytorch import LightningModule
from lightning.pytorch.loggers import Logger
from matplotlib.figure import Figure
from rich.console import Console

from lightning_merge.errors import ConfigError
from lightning_merge.files import claim_folder
from lightning_merge.report.publish import WRITTEN


class HasRow(Protocol):
    """A measurement that can be stored as a row of CSV or JSON."""

    def row(self) -> dict[str, Any]:
        """The row."""


@dataclass(frozen=True)
class StoredMerge:
    """One merged network: its checkpoint's path below `merges`, and what builds and writes it."""

    path: Path
    build: Callable[[], LightningModule]
    write: Callable[[Path], object]


class Merges(Mapping[str, LightningModule]):
    """Merged networks by their recipes' names, built on access.

    With several repetitions or numbers of ingredients, the plain name gives the first one; each
    also has its own key, the name with what distinguishes it: `"NP Merge, seed 1"`.
    """

    def __init__(self, stored: Mapping[str, StoredMerge]) -> None:
        self.stored = dict(stored)

    def __getitem__(self, name: str) -> LightningModule:
        known = self.stored.get(name)
        if known is None:
            near = [one for key, one in self.stored.items() if key.startswith(f"{name}, ")]
            if not near:
                raise KeyError(f"no merge is called '{name}': there are {', '.join(self.stored)}")
            known = near[0]
        return known.build().eval()

    def __iter__(self) -> Iterator[str]:
        return iter(self.stored)

    def __len__(self) -> int:
        return len(self.stored)


@dataclass(repr=False, kw_only=True)
class Results(ABC):
    """The results of a comparison or a study.

    Attributes:
        title: The heading of tables and figures.
        rows: The measurements, each a dataclass.
        merged: The merged networks, by recipe: `results.merged["NP Merge"]` is a module.
        made_by: Command, versions and device (`provenance`).
        details: Further entries of `results.json`: configuration, ingredients' hashes.
        differing: The differences in provenance between a study's pieces (`differences`).
        loggers: Loggers that also receive tables and figures.
    """

    title: str
    rows: Sequence[HasRow]
    merged: Merges
    made_by: dict[str, Any]
    details: dict[str, Any] = field(default_factory=dict)
    differing: Sequence[str] = ()
    loggers: Sequence[Logger] = ()

    def frame(self) -> Any:
        """The rows as a pandas DataFrame; a `ConfigError` if pandas is not installed."""
        try:
            import pandas
        except ImportError as error:
            raise ConfigError(
                "a frame needs pandas, which is not installed: pip install pandas, or use .rows"
            ) from error
        return pandas.DataFrame(self._rows())

    @abstractmethod
    def table(self) -> Any:
        """The results as a `rich` table, for a terminal."""

    @abstractmethod
    def cells(self) -> list[list[str]]:
        """The table as text, a list of cells per line, headings first."""

    @abstractmethod
    def figures(self) -> dict[str, Figure]:
        """The figures that can be drawn from the results, by name."""

    @abstractmethod
    def write(self, folder: Path) -> list[Path]:
        """Writes tables, figures and the report into a folder; returns the files."""

    def save(self, folder: str | Path, overwrite: bool = False) -> Path:
        """Writes everything: tables, figures, the report, merged checkpoints.

        Args:
            folder: Where to.
            overwrite: Whether existing results in the folder may be overwritten.

        Returns:
            The folder.

        Raises:
            OutputExistsError: If it contains results that may not be overwritten.
        """
        path = claim_folder(folder, WRITTEN, overwrite)
        self.write_merges(path)
        self.write(path)
        self.remove_other_merges(path)
        return path

    def write_merges(self, folder: Path) -> None:
        """Writes the merged checkpoints below `merges`."""
        for one in self.merged.stored.values():
            one.write(folder / "merges" / one.path)

    def remove_other_merges(self, folder: Path) -> None:
        """Removes earlier results' checkpoints, so that they are not mistaken for these."""
        merges = {folder / "merges" / one.path for one in self.merged.stored.values()}
        for path in (folder / "merges").rglob("*.ckpt"):
            if path not in merges:
                path.unlink()

    def _rows(self) -> list[dict[str, Any]]:
        return [row.row() for row in self.rows]

    def __repr__(self) -> str:
        text = StringIO()
        # A notebook has a console of its own, which would show the table at once.
        Console(file=text, width=100, force_jupyter=False, color_system=None).print(self.table())
        return text.getvalue().rstrip()

    def _repr_html_(self) -> str:
        header, *lines = self.cells()
        head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
        body = "".join(
            "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in line) + "</tr>"
            for line in lines
        )
        return (
            f"<table><caption>{escape(self.title)}</caption><thead><tr>{head}</tr></thead>"
            f"<tbody>{body}</tbody></table>"
        )
