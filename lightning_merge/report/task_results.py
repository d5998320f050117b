"""Several tasks in one network: the results of `tasks`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from lightning_merge.measure.task_conditions import TaskMeasurement
from lightning_merge.plots.figure import Stored
from lightning_merge.plots.methods import methods
from lightning_merge.report.fitted_table import FittedTable
from lightning_merge.report.paper_table import paper_part, paper_table, write_paper_table
from lightning_merge.report.publish import publish
from lightning_merge.report.results import Results
from lightning_merge.report.summary import judged, summarise
from lightning_merge.report.task_page import task_page
from lightning_merge.report.task_recommendation import (
    MeanOverTasks,
    TaskRecommendation,
    over_tasks,
    recommend_body,
)
from lightning_merge.report.task_report import task_report
from lightning_merge.report.task_tables import (
    cells,
    condition_tables,
    corruption_table,
    joined_tables,
    majority_line,
    task_table,
    terminal,
)
from lightning_merge.study.task_plan import TaskStudy

Plain = dict[str, Any]


@dataclass(repr=False, kw_only=True)
class TaskResults(Results):
    """The accuracy of bodies on every task, clean and corrupted.

    Attributes:
        study: The study.
        merged: The merged networks, each under the first task's head.
        methods: Parameters, seconds and choices of each baseline and merge.
        heads: How each task's head was made.
    """

    study: TaskStudy
    rows: Sequence[TaskMeasurement]
    methods: Sequence[Plain] = ()
    heads: Mapping[str, str] = field(default_factory=dict)
    title: str = field(init=False)

    def __post_init__(self) -> None:
        self.title = self.study.title

    @cached_property
    def recommendation(self) -> TaskRecommendation:
        """Which body to use, chosen on held-out data; `print(result.recommendation.text)`."""
        return recommend_body(self.rows, self._means)

    @cached_property
    def summary(self) -> list[Plain]:
        """One row for each method, of its mean over the seen tasks, as of a comparison."""
        means = self._means
        return judged(summarise([row.row() for row in means]), means, self.recommendation)

    def table(self) -> FittedTable:
        """Accuracy on seen and unseen tasks, for a terminal, however wide that is."""
        rows = self._rows()
        return terminal(task_table(rows), self.title, self.summary, majority_line(rows))

    def corruptions(self) -> FittedTable | None:
        """Accuracy under corruptions, for a terminal; None if there are none."""
        under = corruption_table(self._rows())
        title = f"Under corruptions, severity {self.study.severity}"
        return terminal(under, title) if under else None

    def cells(self) -> list[list[str]]:
        """The table as text, headings first."""
        rows = self._rows()
        return cells(task_table(rows), self.summary, majority_line(rows))

    def figures(self) -> dict[str, Figure]:
        """The means over seen tasks; `plot embedding` draws the networks themselves."""
        title = f"{self.title}: mean over {len(self.recommendation.tasks)} seen tasks"
        return methods(Stored([{"summary": self.summary}], title, in_report=True))

    def write(self, folder: Path) -> list[Path]:
        """Writes `results.csv` (a line per measurement), `results.json` and both reports."""
        rows, drawn = self._rows(), self.figures()
        tables: dict[str, Any] = {
            "tasks": task_table(rows),
            "corruptions": corruption_table(rows),
            "conditions": condition_tables(rows),
        }
        results = {
            **self.made_by,
            **self.details,
            "differing": list(self.differing),
            "methods": list(self.methods),
            "recommendation": self.recommendation.plain(),
            "summary": self.summary,
            "measurements": rows,
            "tables": tables,
        }
        logged = {name: tables[name] for name in ("tasks", "corruptions") if tables[name]}
        given = self.study, results, self.recommendation, self.heads, list(drawn)
        table = paper_table(vars(self.study), joined_tables(rows))
        report = task_report(*given) + paper_part(table)
        if table is not None:
            results["paper_table"] = table.plain
        page = task_page(*given)
        logged = {"measurements": rows, **logged}
        written = publish(folder, rows, results, report, page, drawn, logged, self.loggers)
        return written + write_paper_table(folder, table)

    @cached_property
    def _means(self) -> list[MeanOverTasks]:
        return over_tasks(self.rows, self.methods)
