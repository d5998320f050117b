"""What the commands write is what they print, and what they say they do."""

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from made_checkpoints import write_ingredient, write_ingredients
from safetensors.torch import load_file
from strangers import KeepPredictions, quiet_trainer

from lightning_merge import DigitsDataModule, ImageClassifier
from lightning_merge.cli import main
from lightning_merge.study import runner
from lightning_merge.study.kinds import merging, training

CONFIGS = Path(__file__).parents[2] / "configs"
STUDY = [
    "study",
    "--model",
    "{class_path: ImageClassifier, init_args: {model: linear_classifier, in_chans: 1, "
    "model_kwargs: {img_size: 8}}}",
    "--data",
    "{class_path: DigitsDataModule, init_args: {split: 80-20}}",
    "--ingredients",
    "[{part: 0}, {part: 1}]",
    "--training",
    "{max_epochs: 2}",
    "--recipes",
    "[{name: Mean, aggregate: Average}, {name: All, aggregate: LogitsEnsemble}, "
    "{name: NP, aggregate: {class_path: NPMerge, init_args: {max_epochs: 1}}}]",
]


def rows(folder):
    with (folder / "results.csv").open() as file:
        return list(csv.DictReader(file))


def test_the_merged_checkpoint_evaluates_to_the_printed_figure(tmp_path, capsys):
    words = ["merge", "-c", str(CONFIGS / "merge/digits.yaml"), "--output", str(tmp_path / "out")]
    words += ["--recipe.aggregate.init_args.max_epochs", "1"]
    main([*words, "--checkpoints", write_ingredients(tmp_path)])
    result = json.loads((tmp_path / "out/result.json").read_text())
    accuracy = result["measurement"]["accuracy"]
    said = capsys.readouterr().out
    # There is no terminal: a line, without rules and whole.
    line = next(line for line in said.splitlines() if line.startswith("NP Merge"))
    assert f": accuracy {accuracy:.4f}, " in line
    assert f"parameters {result['measurement']['parameters']:,}" in line
    assert said.isascii()
    loaded = ImageClassifier.load_from_checkpoint(tmp_path / "out/merged.ckpt")
    data = DigitsDataModule(batch_size=100)
    (metrics,) = quiet_trainer().test(loaded, datamodule=data, verbose=False)
    assert metrics["test_accuracy"] == pytest.approx(accuracy)
    assert metrics["test_loss"] == pytest.approx(result["measurement"]["loss"], rel=1e-4)
    assert result["measurement"]["test_examples"] == 359


@pytest.mark.usefixtures("drawn_only")
def test_a_study_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    main([*STUDY, "--output", str(tmp_path / "whole")])

    merges = []
    real = merging.run_recipe

    def stopping(recipe, context):
        if recipe.name == "NP" and "stopped" not in merges:
            merges.append("stopped")
            raise KeyboardInterrupt
        merges.append(recipe.name)
        return real(recipe, context)

    monkeypatch.setattr(merging, "run_recipe", stopping)
    with pytest.raises(SystemExit) as stopped:
        main([*STUDY, "--output", str(tmp_path / "parts")])
    assert stopped.value.code == 130
    assert not (tmp_path / "parts/results.csv").exists()

    def trained(*args, **kwargs):
        raise AssertionError("an ingredient was trained twice")

    monkeypatch.setattr(training, "fit_resumably", trained)
    main([*STUDY, "--output", str(tmp_path / "parts")])
    assert merges == ["Mean", "All", "stopped", "NP"]
    whole, parts = rows(tmp_path / "whole"), rows(tmp_path / "parts")
    assert [row["method"] for row in parts] == ["Ingredient 1", "Ingredient 2", "Mean", "All", "NP"]
    for one, other in zip(whole, parts, strict=True):
        assert {**one, "seconds": ""} == {**other, "seconds": ""}


@pytest.mark.usefixtures("drawn_only")
def test_a_study_that_is_done_computes_nothing(tmp_path, monkeypatch, capsys):
    main([*STUDY, "--output", str(tmp_path)])
    before = rows(tmp_path)
    monkeypatch.setattr(runner, "execute", lambda work, *_: pytest.fail(work.name))
    main([*STUDY, "--output", str(tmp_path)])
    assert "5 already done" in capsys.readouterr().out
    assert rows(tmp_path) == before


@pytest.mark.usefixtures("drawn_only")
def test_another_study_does_not_write_over_the_first(tmp_path, capsys):
    main([*STUDY, "--output", str(tmp_path)])
    before = (tmp_path / "results.csv").read_text()
    capsys.readouterr()
    other = [*STUDY, "--training", "{max_epochs: 3}", "--output", str(tmp_path)]
    with pytest.raises(SystemExit) as stopped:
        main(other)
    assert stopped.value.code == 2
    assert "another study" in capsys.readouterr().err
    assert (tmp_path / "results.csv").read_text() == before
    # More seeds of the same study lose nothing.
    main([*STUDY, "--seeds", "[0, 1]", "--output", str(tmp_path)])
    assert "5 already done" in capsys.readouterr().out
    assert (tmp_path / "results.csv").read_text().startswith(before)
    assert [row["seed"] for row in rows(tmp_path)] == ["0"] * 5 + ["1"] * 5


@pytest.mark.usefixtures("drawn_only")
def test_a_study_gives_the_same_figures_twice(tmp_path):
    for name in ("one", "two"):
        main([*STUDY, "--output", str(tmp_path / name)])
    one, two = rows(tmp_path / "one"), rows(tmp_path / "two")
    assert [row["accuracy"] for row in one] == [row["accuracy"] for row in two]
    assert [row["loss"] for row in one] == [row["loss"] for row in two]
    assert one[0]["accuracy"] != one[1]["accuracy"]


def test_average_of_files_by_hand(tmp_path, capsys):
    paths = [write_ingredient(tmp_path / f"{name}.ckpt", i) for i, name in enumerate("abc")]
    states = [torch.load(path, weights_only=True)["state_dict"] for path in paths]
    words = ["average", *map(str, paths), "--weights", "1", "1", "2", "--output"]
    main([*words, str(tmp_path / "mean.safetensors")])
    merged = load_file(tmp_path / "mean.safetensors")
    name = "network.layer1.0.conv1.weight"
    wanted = (states[0][name] + states[1][name] + 2 * states[2][name]) / 4
    assert torch.allclose(merged[name], wanted, atol=1e-6)
    counter = "network.bn1.num_batches_tracked"
    assert merged[counter] == states[0][counter]
    main([*words, str(tmp_path / "mean.ckpt")])
    loaded = ImageClassifier.load_from_checkpoint(tmp_path / "mean.ckpt")
    assert torch.equal(loaded.state_dict()[name], merged[name])
    main([*words, str(tmp_path / "mean.pt")])
    assert torch.load(tmp_path / "mean.pt", weights_only=True).keys() == merged.keys()
    assert "average of 3 checkpoints" in capsys.readouterr().out


def test_bare_networks_are_merged_when_the_model_is_named(tmp_path):
    for seed in (0, 1):
        path = write_ingredient(tmp_path / f"{seed}.ckpt", seed)
        state = torch.load(path, weights_only=True)["state_dict"]
        bare = {name.removeprefix("network."): value for name, value in state.items()}
        torch.save(bare, tmp_path / f"{seed}.pth")
    words = ["merge", "-c", str(CONFIGS / "merge/digits.yaml"), "--output", str(tmp_path / "out")]
    words += ["--recipe", "{name: mean, aggregate: Average}", "--model", "ImageClassifier"]
    words += ["--model.init_args.in_chans", "1", "--checkpoints"]
    main([*words, f"[{tmp_path}/0.pth, {tmp_path}/1.pth]"])
    assert ImageClassifier.load_from_checkpoint(tmp_path / "out/merged.ckpt").hparams.in_chans == 1


def test_figures_are_drawn_from_what_was_stored(tmp_path, capsys):
    main([*STUDY, "--barrier", "3", "--output", str(tmp_path / "out")])
    results = str(tmp_path / "out/results.json")
    capsys.readouterr()
    main(["plot", "barrier", results])
    main(["plot", "methods", results, "--output", str(tmp_path / "mine.png")])
    main(["plot", "alphas", str(tmp_path / "out/merges/seed0/np.ckpt")])
    files = [Path(line) for line in capsys.readouterr().out.split()]
    assert len(files) == 6
    for file in files:
        start = file.read_bytes()[:200]
        assert start.startswith(b"\x89PNG") if file.suffix == ".png" else b"<?xml" in start


def test_the_comparison_reaches_weights_and_biases(tmp_path, monkeypatch):
    from lightning.pytorch.loggers import WandbLogger

    sent = {}
    monkeypatch.setattr(
        WandbLogger, "log_table", lambda self, key, columns, data: sent.update({key: data})
    )
    monkeypatch.setattr(
        WandbLogger, "log_image", lambda self, key, images: sent.update({key: images})
    )
    words = [*STUDY, "--config", str(CONFIGS / "logger/wandb.yaml")]
    words += ["--trainer.logger.init_args.offline", "true"]
    words += ["--trainer.logger.init_args.save_dir", str(tmp_path)]
    main([*words, "--output", str(tmp_path / "out")])
    assert len(sent["comparison"]) == 5
    assert len(sent["alphas_by_layer"]) == 2
    assert {"methods", "alphas"} <= sent.keys()
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))


def test_help_and_version_import_nothing_heavy():
    code = (
        "import sys; from lightning_merge.cli import main; main(['--help']); main(['--version'])\n"
        "assert 'torch' not in sys.modules and 'lightning' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for command in ("fit", "merge", "compare", "study", "average", "plot"):
        assert f"  {command}" in done.stdout


def fit_merge(tmp_path, name, *words):
    """Fits the alphas of two made ingredients from the command line; gives the checkpoint."""
    folder = tmp_path / name
    fit = ["fit", "-c", str(CONFIGS / "fit/np_merge_digits.yaml"), *words]
    fit += ["--model.init_args.checkpoints", write_ingredients(tmp_path)]
    fit += ["--trainer.default_root_dir", str(folder), "--trainer.limit_train_batches", "3"]
    main(fit)
    return next(folder.rglob("*-last.ckpt"))


def test_a_fit_of_alphas_resumes_from_the_command_line(tmp_path):
    whole = fit_merge(tmp_path, "whole", "--trainer.max_epochs", "2")
    half = fit_merge(tmp_path, "half", "--trainer.max_epochs", "1")
    both = fit_merge(tmp_path, "both", "--trainer.max_epochs", "2", "--ckpt_path", str(half))
    logits = [
        torch.load(path, weights_only=True)["lightning_merge"]["alpha_logits"]
        for path in (whole, half, both)
    ]
    assert torch.equal(logits[0], logits[2])
    assert not torch.equal(logits[0], logits[1])
    main(["plot", "alphas", str(both), "--output", str(tmp_path / "epoch=1-acc=0.95.ckpt")])
    assert (tmp_path / "epoch=1-acc=0.95.ckpt.png").is_file()


def test_a_merged_checkpoint_is_tested_from_the_command_line(tmp_path, capsys):
    words = ["merge", "-c", str(CONFIGS / "merge/digits.yaml"), "--output", str(tmp_path / "out")]
    words += ["--recipe.aggregate.init_args.max_epochs", "1"]
    main([*words, "--checkpoints", write_ingredients(tmp_path)])
    accuracy = json.loads((tmp_path / "out/result.json").read_text())["measurement"]["accuracy"]
    capsys.readouterr()
    (tmp_path / "config.yaml").write_text("precious: 1")
    words = ["test", "-c", str(CONFIGS / "fit/digits.yaml"), "--trainer.logger", "false"]
    words += ["--trainer.default_root_dir", str(tmp_path), "--trainer.callbacks", "null"]
    main([*words, "--ckpt_path", str(tmp_path / "out/merged.ckpt")])
    shown = re.search(r"test_accuracy\W+(\d\.\d+)", capsys.readouterr().out)
    assert float(shown[1]) == pytest.approx(accuracy, abs=1e-6)
    assert (tmp_path / "config.yaml").read_text() == "precious: 1"


@pytest.mark.usefixtures("drawn_only")
def test_a_studys_callbacks_are_called(tmp_path, capsys):
    words = [*STUDY, "--trainer.callbacks+=AlphaMonitor"]
    # It refuses modules without alphas, the ingredients: so it was called.
    with pytest.raises(SystemExit) as stopped:
        main([*words, "--output", str(tmp_path / "out")])
    assert stopped.value.code == 2
    assert "ImageClassifier has no alphas" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--barrier", "1"], "barrier is 1"),
        (
            ["--recipes", "[{name: A b, aggregate: Average}, {name: a-B, aggregate: Average}]"],
            "A b",
        ),
        (["--recipes", "[{name: '+', aggregate: Average}]"], "named '\\+'"),
        (["--recipes", "[{name: Ingredient 1, aggregate: Average}]"], "Ingredient 1"),
        (["--recipes", "[{name: T, aggregate: TIES}]"], "`pretrained`"),
        (
            [
                "--recipes",
                "[{name: T, aggregate: {class_path: TIES, init_args: {pretrained: no.ckpt}}}]",
            ],
            "no.ckpt",
        ),
    ],
)
def test_a_study_that_would_fail_late_fails_at_once(tmp_path, capsys, words, message):
    import re

    with pytest.raises(SystemExit) as stopped:
        main([*STUDY, *words, "--output", str(tmp_path / "out")])
    assert stopped.value.code == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_what_was_limited_is_counted(tmp_path):
    limits = ["--trainer.limit_test_batches", "1", "--trainer.limit_train_batches", "2"]
    data = "{class_path: DigitsDataModule, init_args: {split: 80-20, batch_size: 32}}"
    main([*STUDY, "--data", data, *limits, "--output", str(tmp_path)])
    assert {row["test_examples"] for row in rows(tmp_path)} == {"32"}
    assert {row["method"]: row["train_examples"] for row in rows(tmp_path)} == {
        "Ingredient 1": "64",
        "Ingredient 2": "64",
        "Mean": "0",
        "All": "0",
        "NP": "64",
    }


def test_a_whole_number_is_a_count_whatever_else_was_imported_first(tmp_path):
    model = "{class_path: ImageClassifier, init_args: {model: linear_classifier}}"
    words = ["--model", model, "--data", "DigitsDataModule", "--print_config"]
    words += ["--trainer.limit_test_batches", "1", "--trainer.limit_train_batches", "0.5"]
    # A notebook may import it before Lightning, with its own unions of the same types.
    code = f"""
import rich.console
from lightning_merge.cli import main
for command in ("fit", "study"):
    try:
        main([command, *{words!r}])
    except SystemExit:
        print("---")
"""
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    *configurations, rest = printed.stdout.split("---\n")
    assert len(configurations) == 2
    assert not rest
    for written in configurations:
        trainer = yaml.safe_load(written)["trainer"]
        assert type(trainer["limit_test_batches"]) is int
        assert (trainer["limit_test_batches"], trainer["limit_train_batches"]) == (1, 0.5)


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_lightnings_other_commands_take_a_checkpoint(tmp_path, capsys, command):
    path = write_ingredient(tmp_path / "a.ckpt", 1)
    words = [command, "-c", str(CONFIGS / "fit/digits.yaml"), "--ckpt_path", str(path)]
    words += ["--trainer.logger", "false", "--trainer.callbacks", "null"]
    main([*words, "--trainer.callbacks+=strangers.KeepPredictions"])
    module = ImageClassifier.load_from_checkpoint(path).eval()
    data = DigitsDataModule(eval_batch_size=256, split="80-20", part=0)
    loader = data.val_dataloader() if command == "validate" else data.test_dataloader()
    images, targets = (torch.cat(part) for part in zip(*loader, strict=True))
    with torch.no_grad():
        probabilities = module(images).softmax(1)
    if command == "predict":
        assert torch.allclose(KeepPredictions.kept[0], probabilities, atol=1e-4)
    else:
        accuracy = float((probabilities.argmax(1) == targets).float().mean())
        shown = re.search(r"(?:val|test)_accuracy\W+(\d\.\d+)", capsys.readouterr().out)
        assert float(shown[1]) == pytest.approx(accuracy, abs=1e-6)
