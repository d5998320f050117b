"""`report.html`: one file without a network, in which nothing that others named is code."""

import re
from html.parser import HTMLParser

import pytest
from browser import CHROMIUM, look_at
from matplotlib.figure import Figure

from lightning_merge.plots import plot_methods, save
from lightning_merge.report.page import Page, PageMatrix, PageRow, PageTable, embedded

HOSTILE = '<script>alert("x")</script>{{ 7 * 7 }}$x_{'
MADE_BY = {
    "command": f"python -m lightning_merge compare --title '{HOSTILE}'",
    "versions": {"torch": HOSTILE},
    "device": HOSTILE,
}
ROWS = [
    PageRow([HOSTILE, "0.9000", "1,000"], "merge", "best", (0.9, 0.85, 0.95)),
    PageRow(["net 10", "0.8000 ± 0.0100", "20"], "ingredient", "tied", (0.8, 0.7, 0.9)),
    PageRow(["net 9", "-", "300"], "ingredient", "guessing"),
    PageRow(["a" * 300, "0.9500", "4"], "ensemble"),
]


class Elements(HTMLParser):
    """All elements with their attributes, and the text of each kind of element."""

    def __init__(self, text):
        super().__init__()
        self.found, self.text, self._open = [], {}, []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        self._open.append(tag)

    def handle_endtag(self, tag):
        if tag in self._open:
            while self._open.pop() != tag:
                pass

    def handle_data(self, data):
        if self._open:
            self.text[self._open[-1]] = self.text.get(self._open[-1], "") + data


def page(figures):
    table = PageTable("Methods", ["method", "accuracy", "para_meters"], ROWS, caption=HOSTILE)
    counts = [[9, 1], [0, 10]]
    return Page(
        title=HOSTILE,
        made_by=MADE_BY,
        facts=[HOSTILE],
        advice=[HOSTILE, HOSTILE],
        chosen=True,
        tables=[table, PageTable.of_cells(HOSTILE, [["k", "v"], [HOSTILE, "1"]], HOSTILE)],
        figures=figures,
        matrices=[PageMatrix(HOSTILE, [HOSTILE, "b"], counts)],
        choices=[HOSTILE],
        differing=[HOSTILE],
        origin=[(HOSTILE, HOSTILE)],
        config={HOSTILE: HOSTILE},
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    row = {"method": HOSTILE, "kind": "merge", "accuracy": 0.5}
    svgs = {}
    for name in ("one", "two"):
        svg = save(plot_methods([row], HOSTILE), folder / name)[1]
        svgs[name] = svg.read_text(encoding="utf-8")
    path = folder / "report.html"
    path.write_text(page({"one": HOSTILE, "two": "Two"}).html(svgs), encoding="utf-8")
    return path


def test_names_of_others_are_text(written):
    text = written.read_text(encoding="utf-8")
    own = Elements(text)
    assert [tag for tag, _ in own.found].count("script") == 1
    assert "alert" not in own.text["script"]
    assert not [name for _, attributes in own.found for name in attributes if name.startswith("on")]
    for tag in ("h1", "title", "pre", "figcaption", "li", "dd", "caption", "text"):
        assert HOSTILE in own.text[tag], tag


def test_it_needs_no_network(written):
    own = Elements(written.read_text(encoding="utf-8"))
    links = [
        value
        for _, attributes in own.found
        for name, value in attributes.items()
        if name in ("src", "href", "xlink:href", "srcset", "action") and value
    ]
    assert all(link.startswith(("#", "data:")) for link in links)
    assert not {"link", "iframe", "object", "img"} & {tag for tag, _ in own.found}
    assert "@import" not in own.text["style"]
    assert re.findall(r"url\(([^)]*)", own.text["style"]) == []


def test_figures_keep_their_own_ids_and_colours(written):
    own = Elements(written.read_text(encoding="utf-8"))
    ids = [attributes["id"] for _, attributes in own.found if "id" in attributes]
    assert len(ids) == len(set(ids))
    used = {
        value
        for _, attributes in own.found
        for name, value in attributes.items()
        if name in ("href", "xlink:href")
    }
    assert used
    assert {link[1:] for link in used} <= set(ids)
    drawn = "\n".join(attributes.get("style") or "" for _, attributes in own.found)
    assert "var(--c-0072b2, #0072b2)" in drawn


def test_text_like_a_colour_or_an_id_is_left_alone(tmp_path):
    figure = Figure()
    figure.text(0, 0, ': #0072b2 id="a" <!-- b -->')
    svg = save(figure, tmp_path / "f")[1].read_text(encoding="utf-8")
    assert ': #0072b2 id="a" <!-- b -->' in Elements(str(embedded(svg, "f", "F"))).text["text"]


LOOK = """
const table = document.querySelector("table.sortable");
const headings = [...table.tHead.rows[0].cells];
const order = () => [...table.tBodies[0].rows].map((row) => row.cells[1].textContent);
const orders = [order()], sorts = [];
for (const column of [1, 1, 0, 2]) {
  headings[column].querySelector("button").click();
  orders.push(order());
  sorts.push(headings.map((one) => one.getAttribute("aria-sort")));
}
const inside = (one) => one.closest(".scroll, pre, .hidden");
const out = [...document.body.querySelectorAll("*")]
  .filter((one) => !inside(one.parentElement))
  .filter((one) => one.getBoundingClientRect().right > window.innerWidth + 0.5)
  .map((one) => one.outerHTML.slice(0, 80));
return { orders, sorts, out, wide: document.documentElement.scrollWidth };
"""


@pytest.mark.slow
def test_in_a_browser_it_sorts_and_nothing_overflows(written):
    # Where there is no Chromium (`apt-get install chromium`) nothing can be looked at.
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    for width, seen in look_at(written, LOOK).items():
        assert seen["problems"] == []
        value = seen["value"]
        assert value["out"] == []
        assert value["wide"] <= width
        given, down, up, names, parameters = value["orders"]
        assert given == ["0.9000", "0.8000 ± 0.0100", "-", "0.9500"]
        # What is not known stays last, whichever way.
        assert down == ["0.9500", "0.9000", "0.8000 ± 0.0100", "-"]
        assert up == ["0.8000 ± 0.0100", "0.9000", "0.9500", "-"]
        # Numbers in names count as numbers: 9 before 10.
        assert names.index("-") < names.index("0.8000 ± 0.0100")
        assert parameters == ["0.9000", "-", "0.8000 ± 0.0100", "0.9500"]
        assert [sorts[:3] for sorts in value["sorts"]] == [
            [None, "descending", None],
            [None, "ascending", None],
            ["ascending", None, None],
            [None, None, "descending"],
        ]
