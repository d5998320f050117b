"""Names and folders with brackets are printed as they are."""

import json

import pytest
import torch
from tiny_contexts import trained

from lightning_merge.cli import main

NAME = "Mean [/b] of [bold]"
RECIPES = json.dumps([{"name": NAME, "aggregate": "Average"}])


@pytest.mark.parametrize("command", ["compare", "study"])
def test_names_keep_their_brackets(command, tmp_path, capsys):
    paths = [tmp_path / f"{number}.pt" for number in range(2)]
    for seed, path in enumerate(paths):
        torch.save(trained(seed).state_dict(), path)
    given = {
        "compare": ["--checkpoints", json.dumps([str(path) for path in paths])],
        "study": ["--ingredients", "[{}, {}]", "--training.max_epochs", "1", "--seeds", "[0]"],
    }
    words = ["--model", "tiny_contexts.Learner", "--data", "tiny_contexts.Points"]
    words += ["--trainer.accelerator", "cpu", "--title", "A [/b]", "--recipes", RECIPES]
    folder = tmp_path / "out [dim]"
    main([command, *given[command], *words, "--output", str(folder)])
    printed = capsys.readouterr().out
    assert printed.count(NAME) >= 2
    assert f"{folder}: report.html" in printed
    if command == "study":
        assert "A [/b]: 3 pieces of work" in printed
