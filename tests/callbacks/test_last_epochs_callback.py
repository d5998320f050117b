import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from strangers import Stranger, image_batches, quiet_trainer, randomise
from test_greedy_callback import KeepWeights, mean

from lightning_merge.callbacks import LastEpochsSoup
from lightning_merge.checkpoint import read_checkpoint
from lightning_merge.errors import ConfigError
from lightning_merge.recalibrate import reset_batchnorm


def fit(callbacks, epochs=4, **changes):
    module = randomise(Stranger(), 1)
    quiet_trainer(max_epochs=epochs, callbacks=callbacks, **changes).fit(module, image_batches())
    return module


def test_the_soup_is_the_reset_mean_of_the_last_epochs(tmp_path):
    keep, soup = KeepWeights(), LastEpochsSoup(3, tmp_path)
    module = fit([keep, soup])
    wanted = Stranger()
    wanted.load_state_dict(mean(keep.states[-3:]))
    reset_batchnorm(wanted.net, image_batches())
    loaded = Stranger.load_from_checkpoint(soup.best_path, weights_only=True)
    for name, value in loaded.state_dict().items():
        assert torch.allclose(value, wanted.state_dict()[name], atol=1e-6), name
    plain = fit([])
    for name, value in plain.state_dict().items():
        assert torch.equal(value, module.state_dict()[name]), name
    assert len(list(tmp_path.glob("*.safetensors"))) == 3


def test_a_resumed_run_keeps_its_window(tmp_path):
    whole = LastEpochsSoup(3, tmp_path / "whole")
    fit([whole])
    files = ModelCheckpoint(tmp_path, save_last=True)
    fit([LastEpochsSoup(3, tmp_path / "parts"), files], epochs=2, enable_checkpointing=True)
    second = LastEpochsSoup(3, tmp_path / "parts")
    trainer = quiet_trainer(max_epochs=4, callbacks=[second])
    trainer.fit(Stranger(), image_batches(), ckpt_path=tmp_path / "last.ckpt")
    ours, theirs = (read_checkpoint(soup.best_path).state_dict for soup in (second, whole))
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_epochs_that_are_gone_when_a_run_goes_on_are_named(tmp_path):
    files = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    fit([LastEpochsSoup(2, tmp_path / "soup"), files], enable_checkpointing=True)
    again = LastEpochsSoup(2, tmp_path / "soup")
    trainer = quiet_trainer(max_epochs=3, callbacks=[again])
    with pytest.warns(UserWarning, match="soup goes on without it") as said:
        trainer.fit(Stranger(), image_batches(), ckpt_path=tmp_path / "epoch=1.ckpt")
    gone = [str(one.message) for one in said if "is gone" in str(one.message)]
    assert len(gone) == 2
    assert "epoch=0-step=6.safetensors is gone; the soup goes on without it" in gone[0]
    assert len(read_checkpoint(again.best_path).content["soup"]["ingredients"]) == 1


def test_one_callback_serves_several_runs(tmp_path):
    keep, soup = KeepWeights(), LastEpochsSoup(3, tmp_path)
    fit([soup], epochs=2)
    fit([keep, soup], epochs=1)
    ours = read_checkpoint(soup.best_path).state_dict
    (wanted,) = keep.states
    parameters = [name for name in ours if name.endswith(("weight", "bias"))]
    assert all(torch.equal(ours[name], wanted[name]) for name in parameters)


def test_no_epochs_are_refused():
    with pytest.raises(ConfigError, match="last is 0"):
        LastEpochsSoup(0)
