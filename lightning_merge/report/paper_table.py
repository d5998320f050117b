"""A paper's table as a study repeats it: its own figures, as printed, beside those measured."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_merge.files import write_csv, write_text
from lightning_merge.measure.whole_means import mean_and_deviation
from lightning_merge.plots.figure import SIZE
from lightning_merge.report.summary import markdown_lines

Row = Mapping[str, Any]

FILES = ("paper_table.md", "paper_table.csv", "paper_table.tex")
_LATEX = {
    "\\": r"\textbackslash{}",
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    # These are other signs in LaTeX's own fonts.
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    # At the beginning of a row they would be taken for options of the line break before it.
    "[": "{[}",
    "*": "{*}",
    "±": r"$\pm$",
    "×": r"$\times$",
}


@dataclass(frozen=True)
class PaperCell:
    """One figure of a table.

    Attributes:
        ours: The mean over seeds, in the paper's unit; None where it was not measured.
        deviation: The standard deviation over seeds; None with one.
        seeds: How many seeds there are.
        printed: The paper's figure as it is printed; empty where the paper has none.
    """

    ours: float | None
    deviation: float | None
    seeds: int
    printed: str
    digits: int = 2

    @property
    def measured(self) -> str:
        """Ours as text."""
        if self.ours is None:
            return "-"
        text = f"{self.ours:.{self.digits}f}"
        return text if self.deviation is None else f"{text} ± {self.deviation:.{self.digits}f}"


@dataclass(frozen=True)
class PaperTable:
    """A table of a paper, repeated: for each method a cell for each of its columns.

    `title` is the paper's own, `table` what it calls the table or figure, and `differs` says what
    differs from its settings.
    """

    title: str
    table: str
    columns: Sequence[str]
    rows: Mapping[str, Sequence[PaperCell]]
    differs: Sequence[str]

    @property
    def markdown(self) -> str:
        """The table in Markdown, with the paper's figures in italics."""
        header = ["method"]
        for column in self.columns:
            header += [f"{column}, measured here", f"*{column}, the paper's own*"]
        lines = [
            [method, *(text for one in cells for text in (one.measured, _italic(one.printed)))]
            for method, cells in self.rows.items()
        ]
        text = f"{self.table} of *{self.title}*.\n\n"
        text += markdown_lines([header, *lines])
        text += (
            "\nFigures in italics are the paper's own, as printed there; the others were measured "
            f"in this study: {self._seeds}.\n"
        )
        return text + "\nWhat differs from the paper's settings:\n\n" + self._differing

    @property
    def plain(self) -> list[dict[str, Any]]:
        """A line for each figure, as in CSV."""
        return [
            {
                "method": method,
                "column": column,
                "measured": cell.ours,
                "measured_sd": cell.deviation,
                "seeds": cell.seeds,
                "printed_in_the_paper": cell.printed,
            }
            for method, cells in self.rows.items()
            for column, cell in zip(self.columns, cells, strict=True)
        ]

    @property
    def latex(self) -> str:
        """The table in LaTeX, for the package `booktabs`."""
        names = " & ".join(rf"\multicolumn{{2}}{{c}}{{{latex(name)}}}" for name in self.columns)
        whose = " & ".join(["measured here & \\textit{the paper's own}"] * len(self.columns))
        differs = [one.rstrip(".") for one in self.differs]
        lines = [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{latex(self.table)} of \emph{{{latex(self.title)}}}: measured in this "
            rf"study ({self._seeds}), and in italics the paper's own figures. Differences from "
            rf"the paper's settings: {latex('; '.join(differs) or 'none known')}.}}",
            rf"\begin{{tabular}}{{l{'rr' * len(self.columns)}}}",
            r"\toprule",
            rf" & {names} \\",
            rf"method & {whose} \\",
            r"\midrule",
        ]
        for method, cells in self.rows.items():
            both = [
                f"{latex(cell.measured)} & "
                + (rf"\textit{{{latex(cell.printed)}}}" if cell.printed else "-")
                for cell in cells
            ]
            lines.append(rf"{latex(method)} & {' & '.join(both)} \\")
        return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])

    @property
    def _seeds(self) -> str:
        most = max((cell.seeds for cells in self.rows.values() for cell in cells), default=0)
        return f"mean and standard deviation over {most} seeds" if most > 1 else "one seed"

    @property
    def _differing(self) -> str:
        return "".join(f"* {line}\n" for line in self.differs) or "* nothing that is known\n"


def paper_table(
    config: Mapping[str, Any], summary: Sequence[Row], curves: Sequence[Row] = ()
) -> PaperTable | None:
    """The table of the paper that a study names, if it names one.

    A row of the summary has `method`, its numbers, and their deviations under `name_sd`; rows of
    several numbers of ingredients have a `pool_size`. The curves are those of weight scaling, which
    a `paper` with a `magnitude` is about. Rows of the table are those that the paper has, in its
    order, then what else the study measured.
    """
    paper = config.get("paper")
    if not paper:
        return None
    metric, figures = str(paper.get("metric", "accuracy")), paper.get("figures") or {}
    if paper.get("magnitude") is not None:
        summary = _at_magnitude(curves, float(paper["magnitude"]))
    columns = list(
        dict.fromkeys(name for one in figures.values() for name in _by_column(one, metric))
    ) or [metric]
    made = dict.fromkeys(str(row["method"]) for row in summary if row.get("kind") != "ingredient")
    shown = dict.fromkeys([*figures, *made])
    factor = 1.0 if paper.get("unit") == "fraction" else 100.0
    rows = {}
    for method in shown:
        printed = _by_column(figures.get(method, {}), metric)
        found = [_found(summary, method, column, metric) for column in columns]
        rows[method] = [
            _cell(row, name, printed.get(column, ""), 1.0 if name == "loss" else factor)
            for column, (row, name) in zip(columns, found, strict=True)
        ]
    names = [f"{column} models" if column.isdigit() else column for column in columns]
    title, table = str(paper.get("title", "a paper")), str(paper.get("table", "A table"))
    return PaperTable(title, table, names, rows, list(config.get("differs") or []))


def paper_part(table: PaperTable | None) -> str:
    """The section of the report; empty without a table."""
    return "" if table is None else f"\n## The paper's table\n\n{table.markdown}"


def write_paper_table(folder: Path, table: PaperTable | None) -> list[Path]:
    """Writes a table as Markdown, CSV and LaTeX; removes an earlier one if there is none now."""
    if table is None:
        for name in FILES:
            (folder / name).unlink(missing_ok=True)
        return []
    markdown, csv, tex = (folder / name for name in FILES)
    return [
        write_text(markdown, table.markdown),
        write_csv(csv, table.plain),
        write_text(tex, table.latex),
    ]


def latex(text: str) -> str:
    """Text as LaTeX sets it."""
    return "".join(_LATEX.get(letter, letter) for letter in text)


def _italic(text: str) -> str:
    return f"*{text}*" if text else "-"


def _by_column(figures: Any, metric: str) -> dict[str, str]:
    if isinstance(figures, Mapping):
        return {str(name): str(value) for name, value in figures.items()}
    return {metric: str(figures)}


def _found(summary: Sequence[Row], method: str, column: str, metric: str) -> tuple[Row | None, str]:
    """The row that has a column's number, and the number's name there."""
    rows = [row for row in summary if row["method"] == method]
    if not column.isdigit():
        return max(rows, key=lambda row: row.get(SIZE) or 0, default=None), column
    return next((row for row in rows if str(row.get(SIZE)) == column), None), metric


def _cell(row: Row | None, name: str, printed: str, factor: float) -> PaperCell:
    value, deviation = (None, None) if row is None else (row.get(name), row.get(f"{name}_sd"))
    seeds = 0 if row is None or value is None else int(row.get("seeds", 1))
    digits = 2 if factor > 1 else 4
    scaled = [None if one is None else factor * one for one in (value, deviation)]
    return PaperCell(scaled[0], scaled[1], seeds, printed, digits)


def _at_magnitude(curves: Sequence[Row], magnitude: float) -> list[Row]:
    """Accuracies where all weights are multiplied by a factor, summarised over seeds."""
    groups: dict[tuple[str, int], list[float]] = {}
    for curve in curves:
        found = dict(zip(curve["factor"], curve["accuracy"], strict=True))
        if magnitude in found:
            key = curve["name"], curve[SIZE]
            groups.setdefault(key, []).append(found[magnitude])
    rows: list[Row] = []
    for (name, size), values in groups.items():
        mean, deviation = mean_and_deviation(values)
        own = {"accuracy": mean, "accuracy_sd": deviation, "seeds": len(values)}
        rows.append({"method": name, SIZE: size, **own})
    return rows
