"""The paper's table of a study, and NP Merge against fine-tuning, from made measurements."""

import csv
import statistics

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from lightning_merge.errors import ConfigError
from lightning_merge.measure.answers import Answers
from lightning_merge.measure.intervals import over_seeds
from lightning_merge.measure.measurement import Measurement
from lightning_merge.report.against_fine_tuning import duels, duels_part
from lightning_merge.report.paper_table import FILES, latex, paper_table, write_paper_table
from lightning_merge.report.summary import summarise
from lightning_merge.report.task_tables import joined_tables
from lightning_merge.study.study_options import check_paper

PAPER = {
    "title": "A & B",
    "table": "Table I",
    "figures": {"NP-P": "62.88% ± 0.11%", "Gone": "1.61 ± 0.16%"},
}


def row(method, seed, accuracy, kind="merge", pool_size=2, right=None, **more):
    answers = None
    if right is not None:
        targets = np.zeros(len(right), int)
        answers = Answers.of_classes(targets, 1 - np.asarray(right))
    return Measurement(
        method, kind, accuracy, 1.0, 10, seed, 100, 50, pool_size=pool_size, answers=answers, **more
    )


def table_of(rows, paper=PAPER, **config):
    summary = summarise([one.row() for one in rows], ["auroc"])
    return paper_table({"paper": check_paper(paper), **config}, summary)


def test_the_papers_figures_stand_beside_ours_as_printed(tmp_path):
    values = [0.6, 0.61, 0.65]
    rows = [row("NP-P", seed, value) for seed, value in enumerate(values)]
    rows += [row("Own", seed, 0.5) for seed in range(3)]
    table = table_of(rows, differs=["half the epochs.", "100% of_it"])
    assert list(table.rows) == ["NP-P", "Gone", "Own"]
    (cell,) = table.rows["NP-P"]
    assert cell.ours == pytest.approx(62.0)
    assert cell.deviation == pytest.approx(100 * statistics.stdev(values))
    lines = table.markdown.splitlines()
    assert "| NP-P | 62.00 ± 2.65 | *62.88% ± 0.11%* |" in lines
    assert "| Gone | - | *1.61 ± 0.16%* |" in lines
    assert "| Own | 50.00 ± 0.00 | - |" in lines
    assert {"* half the epochs.", "* 100% of_it"} <= set(lines)
    assert "over 3 seeds" in table.markdown
    assert "the paper's own" in table.markdown
    write_paper_table(tmp_path, table)
    with (tmp_path / "paper_table.csv").open() as file:
        stored = {line["method"]: line for line in csv.DictReader(file)}
    assert float(stored["NP-P"]["measured"]) == pytest.approx(62.0)
    assert stored["NP-P"]["printed_in_the_paper"] == "62.88% ± 0.11%"
    assert stored["Gone"]["measured"] == ""
    tex = (tmp_path / "paper_table.tex").read_text()
    assert r"NP-P & 62.00 $\pm$ 2.65 & \textit{62.88\% $\pm$ 0.11\%} \\" in tex.splitlines()
    assert r"\emph{A \& B}" in tex
    assert r"settings: half the epochs; 100\% of\_it.}" in tex
    write_paper_table(tmp_path, None)
    assert not any((tmp_path / name).exists() for name in FILES)


def test_numbers_of_ingredients_and_metrics_are_columns():
    rows = [row("Soup", 0, 0.4 + size / 100, pool_size=size) for size in (2, 10)]
    table = table_of(rows, {**PAPER, "figures": {"Soup": {2: 40.85, 10: "32.42"}}})
    assert table.columns == ["2 models", "10 models"]
    assert [(c.measured, c.printed) for c in table.rows["Soup"]] == [
        ("42.00", "40.85"),
        ("50.00", "32.42"),
    ]
    rows = [row("Soup", 0, 0.5, metrics={"auroc": 0.75})]
    table = table_of(rows, {**PAPER, "figures": {"Soup": {"accuracy": 1, "auroc": 2}}})
    assert [c.measured for c in table.rows["Soup"]] == ["50.00", "75.00"]
    table = table_of(rows, {**PAPER, "metric": "auroc", "figures": {"Soup": 80.52}})
    assert [c.measured for c in table.rows["Soup"]] == ["75.00"]


def test_a_metric_of_several_numbers_of_ingredients_is_that_of_the_most():
    rows = [row("Soup", 0, 0.4 + size / 100, pool_size=size) for size in (2, 10)]
    (cell,) = table_of(rows, {**PAPER, "figures": {"Soup": 62.21}}).rows["Soup"]
    assert cell.measured == "50.00"


def test_multiplied_weights_are_read_from_their_curves():
    curves = [
        {"name": "Soup", "pool_size": 2, "factor": [1.0, 100.0], "accuracy": [0.9, value]}
        for value in (0.1, 0.3)
    ]
    paper = {**PAPER, "magnitude": 100, "figures": {"Soup": {2: 6.7}}}
    table = paper_table({"paper": check_paper(paper)}, [], curves)
    assert table.rows["Soup"][0].ours == pytest.approx(20.0)
    assert table.rows["Soup"][0].seeds == 2


def test_tasks_have_columns_for_conditions():
    rows = [
        {
            "method": "TIES",
            "task": task,
            "condition": condition,
            "seen": True,
            "seed": 0,
            "accuracy": accuracy,
        }
        for task, condition, accuracy in [
            ("Cars", "clean", 0.6),
            ("DTD", "clean", 0.8),
            ("Cars", "pixelate", 0.2),
        ]
    ]
    figures = {"TIES": {"seen": 0.7341, "pixelate: Cars": 0.033}}
    paper = check_paper({**PAPER, "unit": "fraction", "figures": figures})
    table = paper_table({"paper": paper}, joined_tables(rows))
    assert [c.measured for c in table.rows["TIES"]] == ["0.7000", "0.2000"]


@pytest.mark.parametrize(
    ("paper", "message"),
    [
        ({"title": "A", "colour": 1}, "paper has no 'colour'"),
        ({"table": "I"}, "give its `title`"),
        ({"title": "A", "figures": [1]}, "give its `title`"),
        ({"title": "A", "unit": "inch"}, "unit is 'inch'"),
        ("A", "paper has no 'A'"),
    ],
)
def test_a_strange_paper_is_refused(paper, message):
    with pytest.raises(ConfigError, match=message):
        check_paper(paper)


def test_latex_has_no_letter_that_it_would_act_on():
    assert latex("50%_#1 ± {x}") == r"50\%\_\#1 $\pm$ \{x\}"
    assert latex("[<a>|*") == r"{[}\textless{}a\textgreater{}\textbar{}{*}"


def recipe(name, kind, align="ActivationMatching", **arguments):
    aggregate = {"class_path": f"lightning_merge.{kind}", "init_args": arguments}
    return {"name": name, "aggregate": aggregate, "align": align, "recalibrate": "batchnorm"}


def test_np_merge_is_compared_with_fine_tuning_of_the_same_alignment():
    rng = np.random.default_rng(0)
    rights = {
        name: [rng.random(200) < share for _ in range(3)]
        for name, share in {"NP": 0.6, "FT": 0.75, "WM": 0.5, "One": 0.55}.items()
    }
    rows = [
        row(name, seed, float(right.mean()), right=right.astype(int))
        for name, found in rights.items()
        for seed, right in enumerate(found)
    ]
    recipes = [
        recipe("NP", "NPMerge", max_epochs=10),
        recipe("FT", "FineTune", max_epochs=10, learning_rates=[0.1, 0.01]),
        recipe("WM", "FineTune", align="WeightMatching"),
        recipe("One", "FineTune", weights=[1, 0]),
        recipe("Soup", "NPMerge", granularity="layer"),
    ]
    (found,) = duels(rows, recipes)
    gaps = [a.mean() - b.mean() for a, b in zip(rights["NP"], rights["FT"], strict=True)]
    assert (found.np_merge, found.fine_tuning) == ("NP", "FT")
    assert found.differences == pytest.approx(gaps)
    expected = ttest_1samp(gaps, 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.examples_high < 0
    assert "learning rates to choose from 1 and 2" in found.unlike[0]
    part = duels_part([found])
    assert part.startswith("\n## NP Merge against fine-tuning\n")
    assert f"NP loses to FT by {-statistics.fmean(gaps):.4f}, better in 0 of 3 seeds" in part


def test_as_many_right_answers_over_all_seeds_are_level():
    hits = {"NP": [157, 170, 157], "FT": [159, 169, 156]}
    rows = [
        row(name, seed, float(np.float32(count / 200)))
        for name, of in hits.items()
        for seed, count in enumerate(of)
    ]
    (found,) = duels(rows, [recipe("NP", "NPMerge"), recipe("FT", "FineTune")])
    assert found.difference != 0
    assert found.text.startswith("NP and FT are level, better in 2 of 3 seeds")


def test_one_seed_has_no_interval_over_seeds():
    rows = [row("NP", 0, 0.8), row("FT", 0, 0.7)]
    recipes = [recipe("NP", "NPMerge"), recipe("FT", "FineTune")]
    (found,) = duels(rows, recipes)
    assert (found.low, found.examples_low, found.unlike) == (None, None, ())
    assert found.text == "NP wins against FT by 0.1000, one seed; difference +0.1000."
    assert duels(rows, recipes[:1]) == []
    assert duels_part([]) == ""
    assert over_seeds([0.1]) is None
