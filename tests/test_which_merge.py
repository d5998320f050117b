"""Every row that the page "Which merge should I use?" cites is there, with the figure it states."""

import csv
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"
PAGE = (DOCS / "which-merge.md").read_text()
with (DOCS / "results/leaders/leaders.csv").open() as file:
    ROWS = {row["id"]: row for row in csv.DictReader(file)}
TABLE = (DOCS / "results/leaders.md").read_text()
CITED = sorted(set(re.findall(r"`(L[0-9a-f]{5})`", PAGE)))
# As in "(`L6cb26`: NP Merge -0.7; ...)": an id, words, a signed or plain number of points.
STATED = re.findall(r"`(L[0-9a-f]{5})`: [A-Za-z -]*?([+-]?\d+\.\d)\b", PAGE)


@pytest.mark.parametrize("cited", CITED)
def test_a_cited_row_stands_in_the_table(cited):
    assert f"| {cited} | {ROWS[cited]['recipe']} |" in TABLE


@pytest.mark.parametrize(("cited", "points"), STATED)
def test_a_stated_figure_is_that_of_its_row(cited, points):
    measured = 100 * float(ROWS[cited]["over_networks"])
    assert float(points) == pytest.approx(measured, abs=0.05 + 1e-9)


def test_the_page_cites_rows_and_states_figures():
    assert len(CITED) > 20
    assert len(STATED) > 10
