"""What `fit` keeps and prints: the best epoch under a name of its own, plain lines in a log."""

import csv
import re
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import BasePredictionWriter, Callback

from lightning_merge.callbacks.best_checkpoint import BestCheckpoint
from lightning_merge.checkpoint import read_checkpoint
from lightning_merge.cli import main
from lightning_merge.recipe.described_module import module_of

FIT = [
    *("fit", "--model", "ImageClassifier", "--model.init_args.model", "linear_classifier"),
    *("--model.init_args.in_chans", "1", "--model.init_args.model_kwargs", "{img_size: 8}"),
    *("--model.init_args.optimizer", "{class_path: torch.optim.SGD, init_args: {lr: 3.0}}"),
    *("--data", "DigitsDataModule", "--data.init_args.batch_size", "64"),
]


def fit(folder, *words):
    main([*FIT, "--trainer.default_root_dir", str(folder), *words])
    return sorted(path.name for path in folder.rglob("*.ckpt"))


def test_the_best_epoch_is_kept_and_named(tmp_path, capsys):
    words = ["--trainer.max_epochs", "5", "--data.init_args.part", "1", "--data.init_args.split"]
    names = fit(tmp_path, *words, "80-20", "--seed_everything", "3")
    with next(tmp_path.rglob("metrics.csv")).open() as file:
        logged = [row for row in csv.DictReader(file) if row["val_accuracy"]]
    accuracies = [float(row["val_accuracy"]) for row in logged]
    best = accuracies.index(max(accuracies))
    # With this learning rate it goes up and down: the last is not the best one.
    assert best != len(accuracies) - 1
    stem = "linear_classifier-digits-part1-seed3"
    kept = f"{stem}-epoch={best:02d}-val_accuracy={accuracies[best]:.4f}.ckpt"
    assert names == [kept, f"{stem}-last.ckpt"]
    path = next(tmp_path.rglob(kept))
    said = capsys.readouterr()
    assert f"best checkpoint: {path} (val_accuracy {accuracies[best]:.4f})" in said.out
    assert torch.load(path, weights_only=True)["epoch"] == best
    last = torch.load(path.with_name(f"{stem}-last.ckpt"), weights_only=True)
    assert last["epoch"] == len(accuracies) - 1
    assert module_of(read_checkpoint(path)).hparams["model"] == "linear_classifier"
    lines = [line for line in said.out.splitlines() if line.startswith("epoch ")]
    assert [float(re.search(r"val_accuracy ([\d.]+)", line)[1]) for line in lines] == pytest.approx(
        accuracies, abs=1e-5
    )
    assert not set("\r━┃│") & set(said.out + said.err)


def test_runs_of_other_seeds_have_other_names(tmp_path):
    names = [fit(tmp_path / s, "--seed_everything", s, "--trainer.max_epochs", "1") for s in "12"]
    assert not set(names[0]) & set(names[1])


def test_without_validation_the_last_epoch_is_kept(tmp_path, capsys):
    names = fit(tmp_path, "--trainer.max_epochs", "2", "--data.init_args.held_out", "0")
    stem = "linear_classifier-digits-seed0"
    assert names == [f"{stem}-epoch=01.ckpt", f"{stem}-last.ckpt"]
    assert f"last checkpoint: {next(tmp_path.rglob('*epoch*.ckpt'))}" in capsys.readouterr().out


def test_a_run_goes_on_with_its_best(tmp_path, capsys):
    """What is printed last is the best of both parts of the run, and its file is there."""
    for epochs, more in ((3, []), (4, ["--ckpt_path"])):
        last = [str(path) for path in tmp_path.rglob("*-last.ckpt")]
        fit(tmp_path, "--trainer.logger=false", f"--trainer.max_epochs={epochs}", *more, *last)
    said = capsys.readouterr().out
    accuracies = [float(one) for one in re.findall(r"(?m)^epoch .*?val_accuracy ([\d.]+)", said)]
    assert len(accuracies) == 4
    path, best = re.findall(r"best checkpoint: (\S+) \(val_accuracy (\S+)\)", said)[-1]
    assert float(best) == pytest.approx(max(accuracies), abs=1e-4)
    assert list(tmp_path.rglob("*val_accuracy*.ckpt")) == [Path(path)]


def test_a_checkpoint_callback_of_the_user_stays(tmp_path):
    own = "{class_path: ModelCheckpoint, init_args: {filename: mine, monitor: val_loss}}"
    names = fit(tmp_path, "--trainer.max_epochs", "1", f"--trainer.callbacks=[{own}]")
    assert names == ["mine.ckpt"]
    assert (
        fit(tmp_path / "none", "--trainer.max_epochs=1", "--trainer.enable_checkpointing=false")
        == []
    )


def test_less_is_better_where_only_a_loss_is_logged():
    chosen = BestCheckpoint()
    chosen.filename = "x"
    chosen._choose(torch.nn.Module(), {"val_loss": torch.tensor(1.0), "loss": torch.tensor(1.0)})
    assert (chosen.monitor, chosen.mode, chosen.filename) == ("val_loss", "min", "x-{val_loss:.4f}")


class Writer(BasePredictionWriter):
    """Somebody's own, which says what it has been given."""

    def write_on_epoch_end(self, trainer, pl_module, predictions, batch_indices):
        print(f"wrote {len(predictions)}")


class Noting(Callback):
    """Keeps predictions as they come."""

    def on_predict_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        print("noted")


@pytest.mark.parametrize("own", [None, "Writer", "Noting"])
def test_predictions_that_nobody_writes_are_not_lost_without_a_word(own, tmp_path, capsys):
    words = [*FIT[1:], "--trainer.default_root_dir", str(tmp_path), "--trainer.logger", "false"]
    words += [] if own is None else ["--trainer.callbacks", f"{__name__}.{own}"]
    words += ["--trainer.callbacks.write_interval", "epoch"] if own == "Writer" else []
    main(["predict", *words, "--trainer.limit_predict_batches", "1"])
    said = capsys.readouterr()
    assert ("BasePredictionWriter" in said.err) == (own is None)
    assert {None: "", "Writer": "wrote 1", "Noting": "noted"}[own] in said.out
