"""What a user can mend: one line that says how, exit status 2, nothing written over."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from made_checkpoints import write_ingredient

from lightning_merge.cli import main

CONFIG = str(Path(__file__).parents[2] / "configs/merge/digits.yaml")


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good")
    return [write_ingredient(folder / f"{name}.ckpt", seed) for seed, name in enumerate("ab")]


def fails(capsys, words):
    """Runs a command that must fail, and gives its one line."""
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1, said
    assert "Traceback" not in said[0]
    return said[0]


def merge(capsys, tmp_path, *checkpoints):
    paths = "[" + ", ".join(str(path) for path in checkpoints) + "]"
    output = tmp_path / "out"
    words = ["merge", "-c", CONFIG, "--checkpoints", paths, "--output", str(output)]
    line = fails(capsys, words)
    assert not output.exists()
    return line


def test_one_checkpoint(capsys, tmp_path, good):
    assert "at least two checkpoints" in merge(capsys, tmp_path, good[0])


def test_another_architecture(capsys, tmp_path, good):
    wide = write_ingredient(tmp_path / "wide.ckpt", 5, model_kwargs={"width": 2})
    line = merge(capsys, tmp_path, good[0], wide)
    assert "'network.conv1.weight' is (16, 1, 3, 3)" in line
    assert "(32, 1, 3, 3) in" in line
    assert "wide.ckpt" in line


def test_no_checkpoint(capsys, tmp_path, good):
    (tmp_path / "notes.ckpt").write_text("notes")
    assert "notes.ckpt" in merge(capsys, tmp_path, good[0], tmp_path / "notes.ckpt")


def test_a_truncated_checkpoint(capsys, tmp_path, good):
    whole = good[1].read_bytes()
    (tmp_path / "half.ckpt").write_bytes(whole[: len(whole) // 2])
    line = merge(capsys, tmp_path, good[0], tmp_path / "half.ckpt")
    assert "half.ckpt" in line
    assert "truncated" in line


def test_a_missing_checkpoint(capsys, tmp_path, good):
    assert "gone.ckpt: no such file" in merge(capsys, tmp_path, good[0], tmp_path / "gone.ckpt")


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_a_tensor_that_is_not_finite(capsys, tmp_path, good, value):
    content = torch.load(good[1], weights_only=True)
    content["state_dict"]["network.layer2.0.conv1.weight"][0, 0, 0, 0] = value
    torch.save(content, tmp_path / "nan.ckpt")
    line = merge(capsys, tmp_path, good[0], tmp_path / "nan.ckpt")
    assert "nan.ckpt: 'network.layer2.0.conv1.weight' holds NaN or infinity" in line


def test_an_output_that_holds_results(capsys, tmp_path, good):
    output = tmp_path / "out"
    output.mkdir()
    (output / "merged.ckpt").write_text("precious")
    paths = f"[{good[0]}, {good[1]}]"
    words = ["merge", "-c", CONFIG, "--checkpoints", paths, "--output", str(output)]
    assert "--overwrite" in fails(capsys, words)
    assert (output / "merged.ckpt").read_text() == "precious"
    quick = ["--recipe", "{name: mean, aggregate: Average}", "--overwrite"]
    main([*words, *quick])
    assert torch.load(output / "merged.ckpt", weights_only=True)["state_dict"]


def test_a_data_folder_that_lacks_its_file(capsys, tmp_path, good):
    data = f"{{class_path: MedMNISTDataModule, init_args: {{root: {tmp_path}/none}}}}"
    words = ["merge", "--recipe", "{name: mean, aggregate: Average}", "--data", data]
    paths = f"[{good[0]}, {good[1]}]"
    line = fails(capsys, [*words, "--checkpoints", paths, "--output", str(tmp_path / "out")])
    assert "pneumoniamnist.npz" in line
    assert "download" in line


def test_an_ensemble_is_not_one_network(capsys, tmp_path, good):
    quick = ["--recipe", "{name: all, aggregate: LogitsEnsemble}"]
    words = ["merge", "-c", CONFIG, *quick, "--output", str(tmp_path / "out")]
    line = fails(capsys, [*words, "--checkpoints", f"[{good[0]}, {good[1]}]"])
    assert "compare" in line


def test_weights_without_their_network(capsys, tmp_path, good):
    for path in good:
        content = torch.load(path, weights_only=True)
        torch.save(content["state_dict"], tmp_path / path.name)
    line = merge(capsys, tmp_path, tmp_path / "a.ckpt", tmp_path / "b.ckpt")
    assert "--model" in line


def test_fit_with_a_missing_ingredient(capsys, tmp_path, good):
    config = str(Path(CONFIG).parents[1] / "fit/np_merge_digits.yaml")
    words = ["fit", "-c", config, "--model.init_args.checkpoints"]
    assert "gone.ckpt: no such file" in fails(capsys, [*words, f"[{good[0]}, gone.ckpt]"])


def test_an_unknown_command(capsys):
    assert "choose fit" in fails(capsys, ["mrege"])


def test_average_refuses_the_same_things(capsys, tmp_path, good):
    output = tmp_path / "mean.safetensors"
    one = ["average", str(good[0]), "--output", str(output)]
    assert "at least two" in fails(capsys, one)
    assert "ends in" in fails(capsys, ["average", *map(str, good), "--output", "mean.bin"])
    shutil.copy(good[0], output)
    before = output.read_bytes()
    assert "exists" in fails(capsys, ["average", *map(str, good), "--output", str(output)])
    assert output.read_bytes() == before


def test_a_source_without_the_figure(capsys, tmp_path, good):
    assert "holds no alphas" in fails(capsys, ["plot", "alphas", str(good[0])])
    (tmp_path / "results.json").write_text("{}")
    assert "--barrier" in fails(capsys, ["plot", "barrier", str(tmp_path / "results.json")])
    assert "no such file" in fails(capsys, ["plot", "methods", "nowhere.json"])


@pytest.mark.parametrize(
    "words",
    [
        ["merge", "-c", CONFIG, "--chekpoints", "[a, b]"],
        ["merge", "-c", "nowhere.yaml"],
        ["fit", "-c", CONFIG.replace("merge/", "fit/"), "--trainer.max_epochz", "3"],
    ],
)
def test_a_mistyped_option_is_reported_in_a_few_lines(capsys, words):
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) <= 8
    assert any(word in "\n".join(said) for word in ("chekpoints", "nowhere.yaml", "max_epochz"))


@pytest.mark.parametrize("command", ["fit", "study"])
@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_a_configuration_that_is_not_in_utf_8(capsys, tmp_path, command, encoding):
    (tmp_path / "own.yaml").write_text("title: Größe\n", encoding=encoding)
    words = [command, "-c", str(tmp_path / "own.yaml")]
    assert "own.yaml is not in UTF-8" in fails(capsys, words)


QUICK = ["--data", "DigitsDataModule", "--recipe", "{name: mean, aggregate: Average}"]


def quick(capsys, tmp_path, good, *words):
    paths = f"[{good[0]}, {good[1]}]"
    base = ["merge", *QUICK, "--checkpoints", paths, "--output", str(tmp_path / "out")]
    return fails(capsys, [*base, *words])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--trainer.max_ep", "1"), "--trainer.max_epochs"),
        (("--trainer.devices", "two"), "devices"),
        (("--trainer.accelerator", "no_such"), "accelerator"),
        (("--data", "DigitDataModule"), "did you mean DigitsDataModule"),
        (("--data", "DigitsDataModule", "--data.channels", "3"), "in_chans"),
        (("--checkpoints", "none-*.ckpt"), "no file is named so"),
    ],
)
def test_what_cannot_be_is_one_line_before_anything_is_made(capsys, tmp_path, good, words, said):
    assert said in quick(capsys, tmp_path, good, *words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("classes", [2, 20])
def test_networks_of_other_classes_than_the_data(capsys, tmp_path, classes):
    made = [write_ingredient(tmp_path / f"{k}.ckpt", k, num_classes=classes) for k in range(2)]
    line = quick(capsys, tmp_path, made)
    assert f"num_classes {classes}" in line
    assert "set num_classes to 10" in line


def test_checkpoints_as_words_commas_and_patterns(tmp_path, monkeypatch):
    from lightning_merge.commands.options import with_checkpoints

    monkeypatch.chdir(tmp_path)
    for name in ("b.ckpt", "a.ckpt", "c,d.ckpt"):
        Path(name).touch()
    wanted = ["--checkpoints", '["a.ckpt", "b.ckpt"]', "--seed", "1"]
    for given in (["a.ckpt", "b.ckpt"], ["a.ckpt,b.ckpt"], ["[a.ckpt, 'b.ckpt']"], ["?.ckpt"]):
        assert with_checkpoints(["--checkpoints", *given, "--seed", "1"]) == wanted
    assert with_checkpoints(["--checkpoints=c,d.ckpt"])[1] == '["c,d.ckpt"]'


def test_a_very_long_name_does_not_make_a_figure_as_wide(tmp_path):
    from PIL import Image

    row = {"kind": "merge", "seed": 0, "accuracy": 0.9, "parameters": 9, "models": 1}
    results = {"title": "t", "summary": [row | {"method": "x" * 9999}, row | {"method": "Mean"}]}
    (tmp_path / "results.json").write_text(json.dumps(results))
    main(["plot", "methods", str(tmp_path / "results.json"), "--output", str(tmp_path / "drawn")])
    with Image.open(tmp_path / "drawn.png") as drawn:
        assert max(drawn.size) < 4000


def test_a_logger_whose_package_is_not_installed(tmp_path, capsys, monkeypatch):
    for name in ("_TENSORBOARD_AVAILABLE", "_TENSORBOARDX_AVAILABLE"):
        monkeypatch.setattr(f"lightning.fabric.loggers.tensorboard.{name}", False)
    words = ["fit", "--model", "ImageClassifier", "--model.init_args.model", "linear_classifier"]
    words += ["--data", "DigitsDataModule", "--trainer.default_root_dir", str(tmp_path)]
    logger = "lightning.pytorch.loggers.TensorBoardLogger"
    words += ["--trainer.logger", logger, "--trainer.logger.save_dir", str(tmp_path)]
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("lightning_merge fit: Trainer: Neither `tensorboard` nor")
    assert "pip install" in line
