"""Tables on narrow terminals: whole numbers, whole words, every column somewhere."""

import io

import pytest
from rich.console import Console

from benchmarks.__main__ import _COLUMNS, _cells
from benchmarks.ratio import Ratio
from lightning_merge.report.fitted_table import FittedTable
from lightning_merge.report.summary import summarise, terminal_table


def printed(table, width, terminal=True):
    console = Console(width=width, file=io.StringIO(), force_terminal=terminal, color_system=None)
    console.print(table)
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    return text


HEADER = ["method", "accuracy", "held_out", "seconds", "parameters", "MFLOPs"]
LINES = [
    ["ResNet-18, trained from scratch, with a long name", *(f"{n}.123456" for n in range(5))],
    ["checkpoints/lightning_logs/version_3/epoch=9-step=1230.ckpt", *["1,234,567.89"] * 5],
]


@pytest.mark.parametrize("width", [40, 60, 80, 100, 200])
def test_every_number_is_whole_and_every_heading_there(width):
    text = printed(FittedTable(HEADER, LINES, "A title"), width)
    for number in range(5):
        assert f"{number}.123456" in text
    assert text.count("1,234,567.89") == 5
    for heading in ("accuracy", "held out", "seconds", "parameters", "MFLOPs"):
        assert heading in " ".join(text.split())
    # Nothing is written a letter a line.
    assert all(word in text for word in ("ResNet-18,", "scratch,", "checkpoints/"))
    assert len(text.splitlines()) < 60
    moved = "columns are in" in " ".join(text.split())
    assert ("further columns" in text) == moved == (width < 200)


def test_what_fits_is_one_table_with_nothing_said():
    text = printed(FittedTable(["method", "a"], [["x", "1"], ["y", "2"]], "T"), 30)
    words = [word for word in text.split() if "─" not in word]
    assert words == ["T", "method", "a", "x", "1", "y", "2"]


def test_a_log_has_no_rules():
    text = printed(FittedTable(["method", "a"], [["x", "1"], ["y", "2"]], "T"), 30, terminal=False)
    assert text.isascii()
    assert [line.split() for line in text.splitlines()] == [
        ["T"],
        ["method", "a"],
        ["x", "1"],
        ["y", "2"],
    ]


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_benchmarks_table_is_legible(width):
    result = Ratio(
        "NP Merge step, ResNet-18, channels last, 16 threads",
        0.0521,
        0.0498,
        1.046,
        0.012,
        "fine-tuning step of the same network",
        "ratio <= 1.10",
    )
    table = FittedTable(_COLUMNS, [_cells(result)], words=("held against", "goal"))
    text = printed(table, width)
    for whole in ("52.1 ms", "49.8 ms", "1.046", "0.012", "fine-tuning", "(quartiles)"):
        assert whole in text
    for word in (*result.against.split(), *result.goal.split(), *result.name.split()):
        assert word in text.split()


@pytest.mark.parametrize("width", [60, 80])
def test_a_comparison_over_seeds_is_whole_on_a_narrow_terminal(width):
    rows = [
        {
            "method": f"NP Merge by channels {number}",
            "kind": "merge",
            "seed": seed,
            "accuracy": 0.7 + 0.1 * seed + 0.01 * number,
            "auroc": 0.8,
            "seconds": 1234.5,
            "parameters": 11_173_962,
            "flops": 1_813_561_344,
        }
        for number in range(3)
        for seed in (0, 1)
    ]
    text = printed(terminal_table(summarise(rows, ["auroc"]), "Small", ["auroc"]), width)
    for number in range(3):
        assert f"{0.75 + 0.01 * number:.4f} ± 0.0707" in text
    for cell in ("0.8000 ± 0.0000", "1234.5", "11,173,962", "1,813.6"):
        assert text.count(cell) == 3


@pytest.mark.parametrize("name", ["Average [reset]", "[bold]", "a [/b]"])
def test_brackets_of_a_name_are_shown(name):
    text = printed(FittedTable(["method", "[loud]"], [[name, "1"]]), 60)
    assert name in text
    assert "[loud]" in text
