import numpy as np
import pytest
from rich.console import Console

from lightning_merge.report.comparison_report import explanation
from lightning_merge.report.summary import (
    AVERAGE,
    markdown_lines,
    markdown_table,
    summarise,
    terminal_table,
)


def row(method, kind, seed, accuracy, seconds=1.0, loss=None, parameters=1234567):
    return {
        "method": method,
        "kind": kind,
        "seed": seed,
        "accuracy": accuracy,
        "seconds": seconds,
        "parameters": parameters,
        "loss": loss,
    }


ROWS = [
    row("A", "ingredient", 0, 0.9, loss=0.1),
    row("B", "ingredient", 0, 0.7, loss=0.5),
    row("mean", "merge", 0, 0.5, loss=1.0),
    row("np", "merge", 0, 0.95, seconds=9.0, loss=0.2),
    row("A", "ingredient", 1, 0.8, loss=0.3),
    row("B", "ingredient", 1, 0.8, loss=0.3),
    row("mean", "merge", 1, 0.3, loss=1.4),
    row("np", "merge", 1, 0.85, seconds=11.0, loss=0.3),
]


def test_means_and_sample_deviations_over_seeds():
    summary = {entry["method"]: entry for entry in summarise(ROWS, ["loss"])}
    assert list(summary) == ["A", "B", AVERAGE, "mean", "np"]
    assert summary["np"]["accuracy"] == pytest.approx(0.9)
    assert summary["np"]["accuracy_sd"] == pytest.approx(np.std([0.95, 0.85], ddof=1))
    assert summary["np"]["seconds"] == pytest.approx(10.0)
    assert summary["mean"]["loss"] == pytest.approx(1.2)
    # The average of the ingredients is 0.8 in both seeds: it does not deviate.
    assert summary[AVERAGE]["accuracy"] == pytest.approx(0.8)
    assert summary[AVERAGE]["accuracy_sd"] == pytest.approx(0.0)
    assert summary["A"]["accuracy_sd"] > 0


def test_one_seed_has_no_deviation():
    summary = summarise(ROWS[:4])
    assert all(entry["accuracy_sd"] is None for entry in summary)


def test_a_seed_without_a_number_leaves_no_mean_of_the_others():
    rows = [dict(entry) for entry in ROWS]
    rows[2]["loss"] = None
    summary = {entry["method"]: entry for entry in summarise(rows, ["loss"])}
    assert summary["mean"]["loss"] is None
    assert summary["np"]["loss"] is not None
    rows[0]["loss"] = None
    summary = {entry["method"]: entry for entry in summarise(rows, ["loss"])}
    # Nor does an ingredient without one leave an average of the others.
    assert summary[AVERAGE]["loss"] is summary[AVERAGE]["loss_sd"] is None
    assert summary[AVERAGE]["accuracy"] is not None


def test_the_tables_say_the_same():
    summary = summarise(ROWS, ["loss"])
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(terminal_table(summary, "Title", ["loss"]))
    terminal = console.export_text()
    markdown = markdown_table(summary, ["loss"])
    for cell in ("0.9000 ± 0.0707", "1,234,567", AVERAGE, "10.0"):
        assert cell in terminal
        assert cell in markdown
    assert "1.2000 ± 0.2828" in markdown
    assert len(markdown.splitlines()) == 2 + 5


def test_a_metric_that_nobody_has_gets_no_column():
    rows = [{**entry, "accuracy": None} for entry in ROWS]
    assert "accuracy" not in markdown_table(summarise(rows))


def test_a_bar_in_a_name_begins_no_cell():
    text = markdown_lines([["method", "n", "of"], ["a | b <c>", "1", "x"]], ["of"])
    assert text == "| method | n | of |\n| --- | ---: | --- |\n| a \\| b &lt;c> | 1 | x |\n"


@pytest.mark.parametrize(
    ("saw", "said"),
    [
        ({"mean": 0, "np": 0}, "saw no labelled training examples."),
        ({"mean": 0, "np": 1500}, "saw 1,500 labelled training examples."),
        (
            {"mean": 500, "np": 1500, "tuned": 1500},
            "saw 1,500 labelled training examples (500: mean).",
        ),
    ],
)
def test_how_many_labelled_examples_each_merge_learned_from(saw, said):
    rows = [{**row(name, "merge", 0, 0.5), "train_examples": count} for name, count in saw.items()]
    rows.append({**row("A", "ingredient", 0, 0.5), "train_examples": 70})
    rows = [{**one, "test_examples": 10} for one in rows]
    assert said in explanation(rows, [{"interval": ""}])


def test_a_line_break_in_a_name_begins_no_row():
    text = markdown_lines([["method", "n"], ["a\nb", "1"], ["c\n", "2"]])
    assert text == "| method | n |\n| --- | ---: |\n| a b | 1 |\n| c | 2 |\n"
