"""A study that is resumed under other versions reports it, beside its results."""

import json

import pytest

from lightning_merge import provenance, run_study, run_tasks
from lightning_merge.study_verbs import Watcher


def study(seeds, recipes):
    return {
        "data": {"class_path": "tiny_contexts.Points"},
        "model": {"class_path": "tiny_contexts.Learner", "init_args": {"norm": True}},
        "training": {"max_epochs": 1},
        "seeds": seeds,
        "recipes": recipes,
        "title": "Small",
    }


def tasks(seeds, recipes):
    return {
        "tasks": [
            {
                "name": f"task {name}",
                "data": {
                    "class_path": "tiny_tasks.Points",
                    "init_args": {"name": name, "testable": True},
                },
            }
            for name in "ac"
        ],
        "model": {"class_path": "tiny_tasks.Classifier"},
        "pretraining": {
            "data": {
                "class_path": "tiny_tasks.Points",
                "init_args": {"name": "a", "testable": True},
            },
            "trainer": {"max_epochs": 1},
        },
        "training": {"max_epochs": 1},
        "seeds": seeds,
        "recipes": recipes,
    }


def written(folder):
    return (folder / "report.md").read_text(), json.loads((folder / "results.json").read_text())


@pytest.mark.parametrize(("verb", "options"), [(run_study, study), (run_tasks, tasks)])
def test_pieces_of_other_versions_are_named(verb, options, tmp_path, monkeypatch):
    mean = {"name": "Mean", "aggregate": "Average"}
    reset = {"name": "Reset", "aggregate": "Average", "recalibrate": "batchnorm"}
    verb(options([0], [mean]), tmp_path, progress=False)
    report, results = written(tmp_path)
    assert results["differing"] == []
    assert "not all made alike" not in report

    real = provenance.provenance()["versions"]
    monkeypatch.setattr(provenance, "_versions", lambda: {**real, "torch": "99.0"})
    done = []
    result = verb(
        options([0], [mean, reset]),
        tmp_path,
        progress=False,
        watcher=Watcher(
            on_done=lambda work, _, stored: done.append(work.name) if not stored else None
        ),
    )
    assert done == ["Reset"]
    report, results = written(tmp_path)
    (line,) = results["differing"]
    assert list(result.differing) == [line]
    assert line.startswith(f"torch: {real['torch']} (")
    assert "; 99.0 (Reset, seed 0, " in line
    assert f"not all made alike:\n\n* {line}\n" in report
    # What the last command ran under stands beside it, as before.
    assert results["versions"]["torch"] == "99.0"

    # Where all of it is of one version again, there is nothing to say.
    verb(options([0], [reset]), tmp_path / "other", progress=False)
    assert written(tmp_path / "other")[1]["differing"] == []


def test_every_part_that_can_differ_is_named_once():
    one = {
        "versions": {"torch": "1", "numpy": "2"},
        "device": "CPU",
        "platform": "L",
        "commit": "c",
    }
    other = {**one, "versions": {"torch": "1"}, "device": "H100"}
    found = provenance.differences({"a": one, "b": one, "c": other, "d": one, "e": one, "f": one})
    assert found == [
        "numpy: 2 (a, b, d and 2 more); none (c)",
        "device: CPU (a, b, d and 2 more); H100 (c)",
    ]
    assert provenance.differences({"a": one, "b": {**one, "time": "later"}}) == []
