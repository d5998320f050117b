"""A whole comparison: what it recommends stands in every file that it writes."""

import json

import pytest
import torch
from tiny_contexts import Learner, Points, trained

from lightning_merge import Average, LogitsEnsemble, Recipe, WeightMatching, compare

RECIPES = [
    Recipe("Mean", Average()),
    Recipe("<b>Matched</b>", Average(), WeightMatching()),
    Recipe("All", LogitsEnsemble()),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Checkpoints in folders as Lightning names them, compared and saved."""
    root = tmp_path_factory.mktemp("compared")
    paths = []
    for seed in range(2):
        path = root / f"version_{seed}" / "checkpoints" / "last.ckpt"
        path.parent.mkdir(parents=True)
        torch.save(trained(seed).state_dict(), path)
        paths.append(path)
    compared = compare(paths, RECIPES, Points(), model=Learner(), progress=False)
    return compared.save(root / "out")


def test_the_recommendation_is_in_all_reports(folder):
    results = json.loads((folder / "results.json").read_text())
    advice = results["recommendation"]
    # The choice is the best on held-out data, by direct comparison.
    held_out = {
        row["method"]: row["held_out"]
        for row in results["measurements"]
        if row["kind"] != "ensemble"
    }
    best = max(held_out.values())
    assert held_out[advice["use"]["method"]] >= best - 1 / 70
    markdown, page = ((folder / f"report.{kind}").read_text() for kind in ("md", "html"))
    for line in advice["text"].splitlines():
        assert f"> {line}" in markdown
    assert advice["use"]["method"] in advice["text"]
    assert "Recommendation" in page
    assert "<b>" not in page
    assert "&lt;b&gt;Matched&lt;/b&gt;" in page
    assert page.count("</svg>") >= 2


def test_tables_have_short_names_and_the_provenance_whole_ones(folder):
    results = json.loads((folder / "results.json").read_text())
    names = [row["method"] for row in results["measurements"] if row["kind"] == "ingredient"]
    assert names == ["version_0", "version_1"]
    root = folder.parent
    files = [str(root / name / "checkpoints" / "last.ckpt") for name in names]
    assert list(results["ingredients"]) == files
    assert all(file in (folder / "report.html").read_text() for file in files)


def test_there_is_a_confusion_matrix_of_what_is_recommended(folder):
    assert (folder / "confusion.png").is_file()
    confusion = json.loads((folder / "results.json").read_text())["confusion"]
    assert all(sum(map(sum, one["counts"])) == 80 for one in confusion["matrices"])
