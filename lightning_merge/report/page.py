"""`report.html`: one self-contained file with tables that sort, figures and provenance."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

TEMPLATES = Path(__file__).with_name("page_template")

# Beyond this one figure makes a page slow to open, and goes beside it instead.
_LARGEST_SVG = 2_000_000


@dataclass(frozen=True)
class PageRow:
    """A line of a table.

    Attributes:
        cells: Its text, a cell for each heading.
        kind: `ingredient`, `merge` or `ensemble`, shown as a colour; empty for none.
        mark: What stands beside the first cell: `best`, `tied`, `guessing` or nothing.
        interval: Accuracy and the ends of its 95% interval, drawn as a bar; None for no bar.
    """

    cells: Sequence[str]
    kind: str = ""
    mark: str = ""
    interval: tuple[float, float, float] | None = None


@dataclass(frozen=True)
class PageTable:
    """A table that sorts by the heading that is clicked.

    Attributes:
        title: Its heading.
        header: The columns' headings; the first column is text, the others numbers.
        rows: The lines.
        last: Lines that stay below all others.
        note: A paragraph above it.
        caption: A paragraph below it.
        kinds: What to call kinds, where that is not their own name.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[PageRow]
    last: Sequence[PageRow] = ()
    note: str = ""
    caption: str = ""
    kinds: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of_cells(cls, title: str, cells: Sequence[Sequence[str]], note: str = "") -> "PageTable":
        """A table of text, headings first."""
        header, *lines = cells
        return cls(title, header, [PageRow(line) for line in lines], note=note)

    @property
    def scale(self) -> tuple[float, float]:
        """The accuracies at the two ends of the intervals' bars."""
        ends = [end for row in self.rows if row.interval for end in row.interval]
        if not ends:
            return (0.0, 1.0)
        return (min(ends), max(ends)) if max(ends) > min(ends) else (ends[0] - 0.5, ends[0] + 0.5)


@dataclass(frozen=True)
class PageMatrix:
    """A confusion matrix: how often each true class (a row) was taken for each other one."""

    title: str
    classes: Sequence[str]
    counts: Sequence[Sequence[int]]

    @property
    def rows(self) -> list[tuple[str, list[tuple[int, float]]]]:
        """For each true class the counts, and each one's share of all of that class."""
        return [
            (name, [(count, count / max(sum(counts), 1)) for count in counts])
            for name, counts in zip(self.classes, self.counts, strict=True)
        ]


@dataclass(frozen=True)
class Page:
    """What `report.html` shows.

    Attributes:
        title: The heading.
        made_by: Command, versions and device (`provenance`).
        facts: Short facts below the heading, such as the number of test examples.
        advice: The recommendation, a sentence or two each; the first one is shown large.
        chosen: Whether something is recommended.
        tables: The tables, the most important first.
        figures: What each figure shows, by its file's name.
        matrices: Confusion matrices.
        choices: What was chosen on held-out data, a line each.
        differing: The differences in provenance between the pieces.
        origin: Further provenance, such as the ingredients' hashes: name and value.
        config: The configuration.
    """

    title: str
    made_by: Mapping[str, Any]
    facts: Sequence[str] = ()
    advice: Sequence[str] = ()
    chosen: bool = False
    tables: Sequence[PageTable] = ()
    figures: Mapping[str, str] = field(default_factory=dict)
    matrices: Sequence[PageMatrix] = ()
    choices: Sequence[str] = ()
    differing: Sequence[str] = ()
    origin: Sequence[tuple[str, str]] = ()
    config: Any = None

    def html(self, svgs: Mapping[str, str]) -> str:
        """The page, with the SVG files of its figures by name; others are left out."""
        from yaml import safe_dump

        drawn = [
            (name, text, embedded(svgs[name], name, text))
            for name, text in self.figures.items()
            if name in svgs and len(svgs[name]) <= _LARGEST_SVG
        ]
        config = safe_dump(self.config, sort_keys=False, allow_unicode=True) if self.config else ""
        return (
            _environment()
            .get_template("report.html")
            .render(page=self, figures=drawn, config=config)
        )


@cache
def _environment() -> "Environment":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    # Names of recipes, classes and files are other people's: all of them are escaped.
    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def embedded(svg: str, name: str, label: str) -> "Markup":
    """A figure's SVG as a part of a page: the element without prolog, comments and metadata.

    `matplotlib` has escaped the text in it. All ids get `name`, unique in the page, as a prefix,
    since those of figures coincide; `label` is what a screen reader says. Each colour is a variable
    with itself as the default (`var(--c-0072b2, #0072b2)`), which the page's dark scheme sets.
    """
    from markupsafe import Markup, escape

    body = svg[svg.index("<svg") :]
    body = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    prefix = "".join(letter if letter.isalnum() else "-" for letter in name)
    body = re.sub(r'(<[^>]*?\s)id="', rf'\1id="{prefix}-', body)
    body = re.sub(r'(href="#|url\(#)', rf"\1{prefix}-", body)
    body = re.sub(r"(: ?)#([0-9a-f]{6})\b(?=[^<>]*>)", r"\1var(--c-\2, #\2)", body)
    # The size in points is only a default: the page scales what the viewBox shows.
    opening, rest = body.split(">", 1)
    width = re.search(r'\swidth="([\d.]+)pt"', opening)
    opening = re.sub(r'\s(width|height)="[^"]*"', "", opening)
    size = f' style="--width: {float(width[1]):.0f}"' if width else ""
    return Markup(f'{opening} role="img" aria-label="{escape(label)}"{size}>{rest}')
