"""Registered figures: one registration serves `plot` and the report."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from matplotlib.figure import Figure

from lightning_merge.registry import Registry

SIZE = "pool_size"

Figures = dict[str, Figure]
"""Figures by their files' names in a report, the figure's own name first: `barrier`, `triangle`."""


@dataclass(frozen=True)
class Stored:
    """Stored results that a figure is drawn from.

    Attributes:
        results: The contents of `results.json`, of one run or several; or a merged checkpoint's
            record of its merge.
        title: The figure's heading; empty for the default one.
        labels: The label of each of several results.
        in_report: Whether it is drawn for a report, which has separate figures for content that
            a figure alone would include.
    """

    results: Sequence[Mapping[str, Any]]
    title: str = ""
    labels: Sequence[str] = ("",)
    in_report: bool = False

    @property
    def first(self) -> Mapping[str, Any]:
        """The results of the first run."""
        return self.results[0]

    @property
    def summary(self) -> list[dict[str, Any]]:
        """The summary table of the first run."""
        return list(self.first.get("summary") or [])

    @property
    def tables(self) -> dict[str, list[Mapping[str, Any]]]:
        """The summary of each run by its label, without the methods whose accuracy is not known."""
        return {
            label: [row for row in one.get("summary") or [] if row.get("accuracy") is not None]
            for label, one in zip(self.labels, self.results, strict=True)
        }

    def heading(self, what: str) -> str:
        """The heading: for a report the title with `what`, otherwise the title alone."""
        return f"{self.title}: {what}" if self.in_report else self.title


Draw = Callable[[Stored], Figures]
F = TypeVar("F", bound=Callable[..., Any])


@dataclass
class FigureKind:
    """A registered figure.

    Attributes:
        draw: Draws it; returns nothing if the results lack its measurements.
        source: What it is drawn from: stored `results`, a merged `checkpoint`, or `networks`
            themselves, by a command with its own options (then `draw` is not called).
        lacking: The error message for a file without its measurements, and what to do.
        several: Whether it can be drawn from several runs at once.
        in_report: Whether reports include it.
    """

    draw: Callable[..., Any]
    source: Literal["results", "checkpoint", "networks"]
    lacking: str
    several: bool
    in_report: bool


figures: Registry[FigureKind] = Registry("figures", "lightning_merge.plots")


def figure(
    name: str,
    *,
    lacking: str,
    source: Literal["results", "checkpoint"] = "results",
    several: bool = False,
    in_report: bool = True,
    paper: str = "",
    needs: str = "",
) -> Callable[[Draw], Draw]:
    """A decorator that registers a figure.

    Args:
        name: The figure's name, for `plot` and for the report's files.
        lacking: As in `FigureKind`, like the other settings.
        source: What it is drawn from.
        several: Whether it can be drawn from several runs.
        in_report: Whether reports include it.
        paper: The paper that the figure comes from.
        needs: The measurements that it needs.
    """

    def add(draw: Draw) -> Draw:
        kind = FigureKind(draw, source, lacking, several, in_report)
        kind.__doc__ = draw.__doc__
        figures.register(name, paper=paper, needs=needs)(kind)
        return draw

    return add


def network_figure(name: str, *, paper: str = "") -> Callable[[F], F]:
    """A decorator that registers a figure drawn from networks by its own command."""

    def add(draw: F) -> F:
        kind = FigureKind(draw, "networks", "", several=True, in_report=False)
        kind.__doc__ = draw.__doc__
        figures.register(name, paper=paper, needs="checkpoints")(kind)
        return draw

    return add


def pool_sizes(rows: Sequence[Mapping[str, Any]]) -> list[int | None]:
    """The numbers of ingredients of the rows' merges and ensembles, in order of appearance."""
    return list(dict.fromkeys(row.get(SIZE) for row in rows if row["kind"] != "ingredient"))
