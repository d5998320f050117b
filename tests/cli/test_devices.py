"""Merges are measured in one process, whatever devices a configuration names."""

import csv
import subprocess
import sys

import pytest
from made_checkpoints import write_ingredients

from lightning_merge.cli import main
from lightning_merge.recipe.one_device import devices_line, on_one_device

RECIPES = "[{name: Mean, aggregate: Average}, {name: All, aggregate: LogitsEnsemble}]"


def rows(folder):
    with (folder / "results.csv").open() as file:
        return [{**row, "seconds": ""} for row in csv.DictReader(file)]


@pytest.mark.usefixtures("drawn_only")
def test_two_devices_give_the_rows_of_one_once(tmp_path, capsys):
    linear = {"model": "linear_classifier", "model_kwargs": {"img_size": 8}}
    words = ["compare", "--checkpoints", write_ingredients(tmp_path, **linear)]
    words += ["--recipes", RECIPES, "--data", "DigitsDataModule", "--trainer.accelerator", "cpu"]
    main([*words, "--trainer.devices", "1", "--output", str(tmp_path / "1")])
    said = {"1": capsys.readouterr().out}
    # By itself, since what Lightning starts for further devices is the command of the process.
    several = ["--trainer.strategy", "ddp", "--trainer.devices", "2"]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "lightning_merge",
            *words,
            *several,
            "--output",
            str(tmp_path / "2"),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    said["2"] = done.stdout
    assert rows(tmp_path / "1") == rows(tmp_path / "2")
    # The digits' test split: each example once.
    assert {row["test_examples"] for row in rows(tmp_path / "2")} == {"359"}
    assert said["2"].count("  Mean: ") == 1
    assert said["2"].count("one process on one device") == 1
    assert "one process on one device" not in said["1"]


def test_only_the_first_of_torchruns_processes_works(tmp_path):
    words = ["merge", "--checkpoints", write_ingredients(tmp_path), "--output", str(tmp_path / "x")]
    words += ["--recipe", "{name: Mean, aggregate: Average}", "--data", "DigitsDataModule"]
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("RANK", "1")
        main(words)
        assert not (tmp_path / "x").exists()
        patched.setenv("RANK", "0")
        main(words)
        assert (tmp_path / "x/merged.ckpt").is_file()


@pytest.mark.parametrize(
    ("given", "devices"),
    [(None, 1), ("auto", 1), (-1, 1), (4, 1), ("4", 1), ("2,3", "2,"), ([2, 3], [2]), ([1], [1])],
)
def test_the_first_device_is_taken(given, devices):
    made = on_one_device({"devices": given, "strategy": "ddp_spawn", "num_nodes": 3, "x": 1})
    assert made == {"devices": devices, "strategy": "auto", "num_nodes": 1, "x": 1}


@pytest.mark.parametrize("devices", ["two", 0, []])
def test_what_is_no_device_is_left_for_lightning_to_refuse(devices):
    assert on_one_device({"devices": devices})["devices"] == devices


def test_the_line_is_for_several_devices_only(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    several = [{"devices": "auto"}, {"devices": 2}, {"num_nodes": 2, "devices": 1}, {}]
    assert all(devices_line(settings) for settings in several)
    one = [{"devices": 1}, {"devices": "1"}, {"devices": [3]}, {"accelerator": "cpu"}]
    assert not any(devices_line(settings) for settings in one)
