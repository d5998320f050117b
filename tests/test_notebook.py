"""The notebook among the examples, run from its first cell to its last."""

import os
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def written():
    return nbformat.read(ROOT / "examples" / "merging.ipynb", as_version=4)


def outputs(notebook):
    """What the cells display, by kind: the texts that they print, and their tables and figures."""
    found = {"text": [], "text/html": [], "image/png": [], "stderr": []}
    for cell in notebook.cells:
        for one in cell.get("outputs", ()):
            if one.output_type == "stream":
                found["text" if one.name == "stdout" else "stderr"].append(one.text)
            for kind in found.keys() & one.get("data", {}).keys():
                found[kind].append(one.data[kind])
    return found


def accuracies(table):
    rows = re.findall(r"<tr><td>(.*?)</td><td>(.*?)</td>", table)
    return {name: float(value) for name, value in rows}


def check(shown):
    """That it says what a reader is to see: aligned merges win, and what is saved is loaded."""
    (table,) = shown["text/html"]
    found = accuracies(table)
    assert found["NP Merge"] > max(found["a"], found["b"]) > found["Average"] + 0.2
    advice, loaded = shown["text"]
    assert advice.startswith("Use NP Merge: right for 0.")
    assert loaded.strip() == f"{found['NP Merge']:.3f} on the test images"
    assert len(shown["image/png"]) == 2
    assert shown["stderr"] == []


def test_what_stands_in_it_is_a_whole_run(written):
    check(outputs(written))
    counts = [cell.execution_count for cell in written.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))


@pytest.mark.slow
def test_it_runs(written, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    NotebookClient(
        written, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    check(outputs(written))
    assert {path.name for path in tmp_path.iterdir()} >= {"a.ckpt", "b.ckpt", "compared"}
