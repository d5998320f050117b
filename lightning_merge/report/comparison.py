"""Recipes side by side: the results of `compare` and `study`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from lightning_merge.callbacks.alpha_monitor import alpha_rows
from lightning_merge.checkpoint import StateDict
from lightning_merge.measure.measurement import Measurement
from lightning_merge.measure.recommendation import Recommendation, recommend
from lightning_merge.plots.figure import Stored, figures
from lightning_merge.report.against_fine_tuning import duels, duels_part
from lightning_merge.report.comparison_page import comparison_page
from lightning_merge.report.comparison_report import comparison_report
from lightning_merge.report.confusion_matrices import confusion_matrices
from lightning_merge.report.fitted_table import FittedTable
from lightning_merge.report.paper_table import paper_part, paper_table, write_paper_table
from lightning_merge.report.publish import publish
from lightning_merge.report.results import Results
from lightning_merge.report.summary import (
    judged,
    metric_columns,
    summarise,
    table_cells,
    terminal_table,
)

Plain = dict[str, Any]


@dataclass(repr=False, kw_only=True)
class Comparison(Results):
    """The measurements of ingredients, merges and ensembles, with sweeps and provenance.

    Attributes:
        swept: The measurements of each sweep, of all seeds, under the sweep's key.
        alphas: Learned alphas by parameter name, of the last merge that has any.
        alphas_of: The number of ingredients that the alphas weight.
    """

    rows: Sequence[Measurement]
    swept: Mapping[str, Sequence[Plain]] = field(default_factory=dict)
    alphas: StateDict | None = None
    alphas_of: int = 2

    @cached_property
    def recommendation(self) -> Recommendation:
        """Which network to use, chosen on held-out data; `print(result.recommendation.text)`."""
        return recommend(self.rows)

    @cached_property
    def summary(self) -> list[Plain]:
        """One row for each method: mean and deviation over seeds, interval, what is best."""
        rows = self._rows()
        return judged(summarise(rows, metric_columns(rows)), self.rows, self.recommendation)

    def table(self) -> FittedTable:
        """The summary as a table for the terminal, however wide that is."""
        return terminal_table(self.summary, self.title, metric_columns(self._rows()))

    def cells(self) -> list[list[str]]:
        """The summary as text, headings first."""
        return table_cells(self.summary, metric_columns(self._rows()))

    def figures(self) -> dict[str, Figure]:
        """Every registered figure for which the results have the measurements."""
        held: Plain = {
            "summary": self.summary,
            **self._judgement(),
            "alphas": self.alphas,
            "alphas_of": self.alphas_of,
            **self.details,
            **self.swept,
        }
        stored = Stored([held], self.title, in_report=True)
        drawn: dict[str, Figure] = {}
        for entry in figures:
            if entry.value.in_report:
                drawn |= entry.value.draw(stored)
        return drawn

    def write(self, folder: Path) -> list[Path]:
        """Writes `results.csv`, `results.json`, `report.md`, `report.html` and the figures."""
        rows, drawn = self._rows(), self.figures()
        config = self.details.get("config") or {}
        found = duels(self.rows, config.get("recipes") or [])
        table = paper_table(config, self.summary, self.swept.get("magnitudes", ()))
        results = {
            **self.made_by,
            **self.details,
            "differing": list(self.differing),
            **self._judgement(),
            "measurements": rows,
            "summary": self.summary,
            **self.swept,
        }
        if found:
            results["against_fine_tuning"] = [one.plain() for one in found]
        if table is not None:
            results["paper_table"] = table.plain
        tables: dict[str, Sequence[Mapping[str, Any]]] = {"comparison": rows}
        if self.alphas:
            tables["alphas_by_layer"] = alpha_rows(self.alphas)
        told = self.title, results, self.recommendation, list(drawn)
        report, page = comparison_report(*told), comparison_page(*told)
        report += duels_part(found) + paper_part(table)
        written = publish(folder, rows, results, report, page, drawn, tables, self.loggers)
        return written + write_paper_table(folder, table)

    def _judgement(self) -> Plain:
        """What was chosen, and the confusion matrices, as in `results.json`."""
        confusion = confusion_matrices(self.rows, self.details.get("class_names"))
        return {"recommendation": self.recommendation.plain(), "confusion": confusion}
