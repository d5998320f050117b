import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from two_processes import run_on_two

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(autouse=True)
def _among_the_examples(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))


def run(name, capsys):
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    return capsys.readouterr().out


def accuracies(said):
    return {name: float(value) for name, value in re.findall(r"(\w+)(?:\.ckpt)?: +([\d.]+)", said)}


def test_two_checkpoints_are_merged(tmp_path, capsys):
    found = accuracies(run("merge_two_checkpoints.py", capsys))
    assert set(found) == {"a", "b", "merged"}
    assert found["merged"] > 0.7
    content = torch.load(tmp_path / "merged.ckpt", weights_only=True)
    assert "network.0.weight" in content["state_dict"]


def test_a_greedy_soup_is_made(capsys):
    said = run("greedy_soup.py", capsys)
    found = accuracies(said)
    assert found["loaded"] == pytest.approx(found["soup"], abs=1e-4)
    assert found["soup"] >= found["epoch"] > 0.7
    assert said.count("kept") >= 1
    assert len(re.findall("kept|dropped", said)) == 5


def run_example(folder):
    sys.path.insert(0, str(EXAMPLES))
    runpy.run_path(str(EXAMPLES / "merge_on_two_processes.py"), run_name="__main__")


def test_two_processes_merge(tmp_path):
    train = runpy.run_path(str(EXAMPLES / "project.py"))["train"]
    for seed, name in enumerate("ab"):
        train(seed, str(tmp_path / f"{name}.ckpt"), max_epochs=1)
    said = run_on_two(run_example, tmp_path)
    assert said.count("2 processes: merged.ckpt") == 1
    saved = torch.load(tmp_path / "merged.ckpt", weights_only=True)["state_dict"]
    assert torch.isfinite(saved["network.0.weight"]).all()


@pytest.mark.slow
def test_the_script_starts_its_second_process_itself(tmp_path):
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "merge_on_two_processes.py")],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert "2 processes: merged.ckpt" in done.stdout
    assert {path.name for path in tmp_path.glob("*.ckpt")} == {"a.ckpt", "b.ckpt", "merged.ckpt"}
