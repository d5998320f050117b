"""The tables of several tasks, against numbers worked out by hand."""

import io

import pytest
from rich.console import Console

from lightning_merge.report.task_tables import (
    condition_tables,
    corruption_table,
    joined_tables,
    markdown,
    task_table,
    terminal,
)


def row(method, seed, task, accuracy, seen=True, condition="clean"):
    return {
        "method": method,
        "seed": seed,
        "task": task,
        "seen": seen,
        "condition": condition,
        "accuracy": accuracy,
    }


ROWS = [
    row("A", 0, "x", 0.2),
    row("A", 0, "y", 0.6),
    row("A", 0, "z", 0.9, seen=False),
    row("A", 1, "x", 0.4),
    row("A", 1, "y", 1.0),
    row("A", 1, "z", 0.5, seen=False),
    row("B", 0, "x", 0.3),
    row("B", 0, "y", 0.5),
    *(
        row("A", seed, task, value, condition=condition)
        for condition, seed, task, value in (
            ("fog", 0, "x", 0.1),
            ("fog", 0, "y", 0.5),
            ("fog", 1, "x", 0.3),
            ("fog", 1, "y", 0.3),
            ("rain", 0, "x", 0.0),
            ("rain", 0, "y", 0.2),
            ("rain", 1, "x", 0.2),
            ("rain", 1, "y", 0.8),
        )
    ),
]


def test_a_number_that_is_missing_leaves_no_mean_under_corruptions():
    rows = [{**one, "accuracy": None} if one["accuracy"] == 0.1 else one for one in ROWS]
    (line,) = (one for one in corruption_table(rows) if one["method"] == "A")
    assert line["fog"] is line["average"] is None
    assert line["rain"] == pytest.approx((0.1 + 0.5) / 2)


def test_a_method_stands_on_the_seeds_that_it_was_merged_with():
    found = {line["method"]: (line["seeds"], line["x"]) for line in joined_tables(ROWS)}
    assert found == {"A": (2, pytest.approx(0.3)), "B": (1, 0.3)}


def test_averages_are_taken_within_each_seed():
    a, b = task_table(ROWS)
    names = [name for name in a if f"{name}_sd" in a]
    assert names == ["x", "y", "seen", "z", "unseen", "all"]
    expected = {"x": 0.3, "y": 0.8, "z": 0.7, "unseen": 0.7}
    # Seed 0: seen (0.2 + 0.6) / 2, all (0.2 + 0.6 + 0.9) / 3; seed 1: 0.7 and 1.9 / 3.
    expected |= {"seen": (0.4 + 0.7) / 2, "all": (1.7 / 3 + 1.9 / 3) / 2}
    assert {name: a[name] for name in names} == pytest.approx(expected)
    # Of two numbers the sample deviation is their distance by the root of two.
    assert a["seen_sd"] == pytest.approx(0.3 / 2**0.5)
    assert a["x_sd"] == pytest.approx(0.2 / 2**0.5)
    assert (b["x"], b["seen"], b["x_sd"]) == (0.3, pytest.approx(0.4), None)
    # It was not measured on z.
    assert b["unseen"] is b["all"] is b["z"] is None


def test_corruptions_are_averaged_over_the_tasks_under_them():
    (a, b) = corruption_table(ROWS)
    names = [name for name in a if f"{name}_sd" in a]
    assert names == ["clean", "fog", "rain", "average"]
    # Clean: x and y only. Seeds 0.4 and 0.7; fog 0.3 and 0.3; rain 0.1 and 0.5.
    assert [a[name] for name in names] == pytest.approx([0.55, 0.3, 0.3, 0.3])
    assert a["rain_sd"] == pytest.approx(0.4 / 2**0.5)
    assert a["average_sd"] == pytest.approx(0.2 / 2**0.5)
    assert b["clean"] == pytest.approx(0.4)
    assert b["fog"] is None
    assert corruption_table([one for one in ROWS if one["condition"] == "clean"]) == []


def test_each_condition_has_a_table_of_its_own():
    tables = condition_tables(ROWS)
    assert list(tables) == ["clean", "fog", "rain"]
    (rain,) = tables["rain"]
    assert (rain["x"], rain["y"], rain["average"]) == pytest.approx((0.1, 0.5, 0.3))
    assert "z" not in tables["clean"][0]


def test_markdown_holds_means_and_deviations():
    lines = markdown(task_table(ROWS)).splitlines()
    assert lines[0] == "| method | x | y | seen | z | unseen | all |"
    assert lines[2].startswith("| A | 0.3000 ± 0.1414 | 0.8000 ± 0.2828 |")
    assert lines[3] == "| B | 0.3000 | 0.5000 | 0.4000 | - | - | - |"


def test_eight_tasks_over_seeds_are_whole_on_a_terminal_of_eighty_columns():
    names = ["MNIST", "USPS", "PneumoniaMNIST", "RetinaMNIST", "one", "two", "digits", "household"]
    accuracies = {name: (0.5 + index / 100, 0.7 + index / 100) for index, name in enumerate(names)}
    rows = [
        row("Task arithmetic + DPP", seed, name, accuracies[name][seed], seen=name != "digits")
        for seed in (0, 1)
        for name in names
    ]
    console = Console(width=80, file=io.StringIO())
    console.print(terminal(task_table(rows), "Tasks"))
    said = console.file.getvalue()
    assert "…" not in said
    for index in range(8):
        assert f" {60 + index}.0" in said
    # One deviation for each task and each of the three means.
    assert said.count("±14.1") == 11
