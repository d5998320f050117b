"""`fit` and `test --ckpt_path` with files that are damaged, hostile or another network's."""

import copy
import zipfile
from pathlib import Path

import pytest
import torch

from lightning_merge import ImageClassifier
from lightning_merge.cli import main

SMALL = {"num_classes": 10, "in_chans": 1, "model_kwargs": {"img_size": 8}}
WEIGHT = "network.head.weight"
OPTIONS = {
    "model": "ImageClassifier",
    "model.model": "linear_classifier",
    "model.num_classes": 10,
    "model.in_chans": 1,
    "model.model_kwargs": "{img_size: 8}",
    "data": "DigitsDataModule",
    "trainer.accelerator": "cpu",
    "trainer.max_epochs": 1,
    "trainer.limit_train_batches": 1,
    "trainer.limit_val_batches": 1,
    "trainer.limit_test_batches": 1,
    "trainer.logger": "false",
    "trainer.enable_checkpointing": "false",
    "trainer.enable_model_summary": "false",
    "trainer.enable_progress_bar": "false",
}


@pytest.fixture(scope="module")
def content():
    torch.manual_seed(0)
    state = ImageClassifier("linear_classifier", **SMALL).state_dict()
    assert state[WEIGHT].shape == (10, 64)
    return {"state_dict": state, "pytorch-lightning_version": "2.6.0", "epoch": 0}


def words(command, path):
    options = [str(word) for name, value in OPTIONS.items() for word in (f"--{name}", value)]
    return [command, *options, "--ckpt_path", str(path)]


def weight(value):
    def change(content):
        content["state_dict"][WEIGHT] = value

    return change


BREAKS_LINES = "b\n\x1b[1m"
REPEATED = torch.zeros(1).expand(400_000_000)
CHANGES = {
    "another shape": (weight(torch.zeros(7, 64)), "size mismatch for network.head.weight"),
    "one number repeated": (weight(REPEATED), "far larger than the file"),
    "no numbers": (weight(torch.empty(10, 64, device="meta")), "does not fit this model"),
    "another network": (
        lambda c: c["state_dict"].update({BREAKS_LINES: torch.ones(1)}),
        "b\\n\\x1b",
    ),
    "a name that is no text": (lambda c: c["state_dict"].update({7: torch.ones(1)}), "no text"),
    "no weights": (lambda c: c.pop("state_dict"), "no checkpoint of Lightning"),
    "weights alone": (lambda c: c.pop("pytorch-lightning_version"), "no checkpoint of Lightning"),
    "no version": (lambda c: c.update({"pytorch-lightning_version": 3}), "Invalid version"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_content(what, content, tmp_path, capsys):
    change, why = CHANGES[what]
    changed = copy.deepcopy(content)
    change(changed)
    path = tmp_path / "a.ckpt"
    torch.save(changed, path)
    error = refused(words("test", path), capsys)
    assert why in error
    assert "--ckpt_path" in error


TRAINING = {
    "none": ({}, "does not fit this model or Trainer"),
    "other": ({"optimizer_states": [{"state": {}, "param_groups": []}]}, "does not fit"),
    "repeated": (
        {"optimizer_states": [{"state": {}, "param_groups": [{"lr": REPEATED}]}]},
        "far larger",
    ),
    "loops": ({"loops": {"fit_loop": {"total": {"ready": None}}}}, "'fit_loop.total.ready'"),
}


@pytest.mark.parametrize("what", TRAINING)
def test_state_of_training(what, content, tmp_path, capsys):
    change, why = TRAINING[what]
    torch.save({**content, "loops": {}, "lr_schedulers": [], **change}, tmp_path / "a.ckpt")
    assert why in refused(words("fit", tmp_path / "a.ckpt"), capsys)


@pytest.mark.parametrize("shape", [(3, 3), (640,), ()])
def test_state_of_an_optimizer_for_other_shapes(shape, tmp_path, capsys):
    path, options = tmp_path / "a.ckpt", words("fit", tmp_path / "a.ckpt")
    fit = options[:-2]
    fit[fit.index("--trainer.enable_checkpointing") + 1] = "true"
    main([*fit, "--trainer.default_root_dir", str(tmp_path)])
    written = next(tmp_path.rglob("*.ckpt"))
    trained = torch.load(written, weights_only=False)
    for moments in trained["optimizer_states"][0]["state"].values():
        moments["exp_avg"] = torch.zeros(shape)
    torch.save(trained, path)
    capsys.readouterr()
    options[options.index("--trainer.max_epochs") + 1] = "2"
    assert "does not fit this model" in refused(options, capsys)


def test_a_compressed_archive(content, tmp_path, capsys):
    torch.save(content, tmp_path / "plain.ckpt")
    path = tmp_path / "a.ckpt"
    with (
        zipfile.ZipFile(tmp_path / "plain.ckpt") as old,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    assert "compressed archive" in refused(words("test", path), capsys)


def test_errors_of_a_users_own_hook_keep_their_traceback(content, tmp_path, monkeypatch):
    torch.save(content, tmp_path / "a.ckpt")

    def on_load_checkpoint(self, checkpoint):
        raise KeyError("of the user")

    monkeypatch.setattr(ImageClassifier, "on_load_checkpoint", on_load_checkpoint)
    with pytest.raises(KeyError, match="of the user"):
        main(words("test", Path(tmp_path / "a.ckpt")))


def refused(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(command)
    error = capsys.readouterr().err
    assert stopped.value.code == 2, error
    assert error.count("\n") == 1, error
    assert error.strip("\n").isprintable()
    return error
