"""Every row that the page "Which merge should I use?" cites is there, with the figure it states."""

import csv
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"
PAGE = (DOCS / "which-merge.md").read_text()
# A row of the second table is cited as `cifar100:L6cb26`, one of the first without a prefix.
TABLES = {"": "leaders", "cifar100:": "leaders-cifar100"}
ID = r"(cifar100:)?(L[0-9a-f]{5})"
CITED = sorted(set(re.findall(f"`{ID}`", PAGE)))
# As in "(`L6cb26`: NP Merge -0.7; ...)": an id, words, a signed or plain number of points.
STATED = re.findall(rf"`{ID}`: [A-Za-z -]*?([+-]?\d+\.\d)\b", PAGE)


def row_of(table, cited):
    with (DOCS / f"results/{TABLES[table]}/leaders.csv").open() as file:
        return next(row for row in csv.DictReader(file) if row["id"] == cited)


@pytest.mark.parametrize(("table", "cited"), CITED)
def test_a_cited_row_stands_in_the_table(table, cited):
    page = (DOCS / f"results/{TABLES[table]}.md").read_text()
    assert f"| {cited} | {row_of(table, cited)['recipe']} |" in page


@pytest.mark.parametrize(("table", "cited", "points"), STATED)
def test_a_stated_figure_is_that_of_its_row(table, cited, points):
    measured = 100 * float(row_of(table, cited)["over_networks"])
    assert float(points) == pytest.approx(measured, abs=0.05 + 1e-9)


def test_the_page_cites_rows_and_states_figures():
    assert len(CITED) > 20
    assert len(STATED) > 10
