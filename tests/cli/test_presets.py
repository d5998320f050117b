"""`-c preset:NAME` is the file of that name under configs/."""

import re
from pathlib import Path

import pytest
import yaml
from made_checkpoints import write_ingredients

from lightning_merge.cli import main
from lightning_merge.errors import ConfigError
from lightning_merge.presets import first_comment, presets, with_presets

CONFIGS = Path(__file__).parents[2] / "configs"


def test_the_presets_are_the_repositorys_configurations():
    assert {path.relative_to(CONFIGS) for path in CONFIGS.rglob("*.yaml")} == {
        Path(f"{name}.yaml") for name in presets()
    }


def test_each_says_in_a_sentence_what_it_is():
    for name, path in presets().items():
        assert len(first_comment(path).split()) > 4, name
    assert first_comment(CONFIGS / "fit/digits.yaml") == (
        "A ResNet20 on scikit-learn's digits (8x8, embedded: nothing is downloaded)"
    )


def test_presets_are_replaced_where_a_configuration_is_named():
    path = str(CONFIGS / "merge/digits.yaml")
    given = ["-c", "preset:merge/digits", "--title", "preset:x", "--config=preset:merge/digits"]
    assert with_presets(given) == ["-c", path, "--title", "preset:x", f"--config={path}"]


def test_a_misspelt_one_has_a_suggestion():
    with pytest.raises(ConfigError, match="did you mean merge/digits"):
        with_presets(["-c", "preset:merge/digit"])


def test_a_command_of_ours_takes_one(tmp_path, capsys):
    words = ["merge", "-c", "preset:merge/digits", "--output", "out", "--print_config"]
    with pytest.raises(SystemExit) as stopped:
        main([*words, "--checkpoints", write_ingredients(tmp_path)])
    assert stopped.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    written = yaml.safe_load((CONFIGS / "merge/digits.yaml").read_text())
    assert printed["recipe"]["name"] == written["recipe"]["name"]


def test_lightnings_commands_take_several(capsys):
    words = ["fit", "-c", "preset:fit/digits", "--config=preset:logger/wandb", "--print_config"]
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert "WandbLogger" in printed["trainer"]["logger"]["class_path"]
    assert printed["data"]["class_path"].endswith("DigitsDataModule")


def test_one_that_is_not_there_is_one_line(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["fit", "-c", "preset:fit/digit"])
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("lightning_merge fit: preset:fit/digit: there is no such preset")


def test_who_names_no_recipes_is_told_where_some_are(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(
            ["compare", "--checkpoints", "a.ckpt", "--data", "DigitsDataModule", "--output", "out"]
        )
    assert stopped.value.code == 2
    named = re.findall(r"preset:([\w/]+)", capsys.readouterr().err)
    assert named
    assert set(named) <= presets().keys()
