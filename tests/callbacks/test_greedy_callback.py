import csv
import math
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from strangers import Stranger, image_batches, quiet_trainer, randomise, small_network
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from lightning_merge.callbacks import GreedySoup
from lightning_merge.callbacks.candidate import check_soups
from lightning_merge.checkpoint import read_checkpoint
from lightning_merge.errors import ConfigError
from lightning_merge.modules import MergeModule
from lightning_merge.recalibrate import reset_batchnorm


class Noisy(Stranger):
    """Draws random numbers in training, and logs a loss whose last batch is smaller."""

    def __init__(self, lr: float = 0.3) -> None:
        super().__init__(lr=lr)
        self.loss_of_each_epoch = []

    def training_step(self, batch, batch_idx):
        return super().training_step((batch[0] + torch.randn_like(batch[0]), batch[1]), batch_idx)

    def validation_step(self, batch, batch_idx):
        super().validation_step(batch, batch_idx)
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.log("loss", loss)

    def on_validation_epoch_end(self):
        self.loss_of_each_epoch.append(float(self.trainer.callback_metrics.get("loss", math.nan)))
        super().on_validation_epoch_end()


def validation_data(seed=8):
    return DataLoader(image_batches(seed=seed).dataset, batch_size=20)


def training_data():
    return DataLoader(image_batches().dataset, batch_size=16, shuffle=True)


def module(seed=1, lr=0.3):
    return randomise(Noisy(lr), seed)


def fitted(callbacks=(), epochs=4, seed=3, logger=False, lr=0.3, **changes):
    torch.manual_seed(seed)
    trained = module(lr=lr)
    trainer = quiet_trainer(max_epochs=epochs, callbacks=list(callbacks), logger=logger, **changes)
    trainer.fit(trained, training_data(), validation_data())
    return trained, trainer


def measure(state, metric):
    """The metric of a state dict on all validation data at once."""
    network = small_network()
    network.load_state_dict({k[4:]: v for k, v in state.items() if k.startswith("net.")})
    images, targets = validation_data().dataset.tensors
    with torch.no_grad():
        logits = network.eval()(images)
    if metric == "loss":
        return nn.functional.cross_entropy(logits, targets).item()
    return (logits.argmax(1) == targets).float().mean().item()


def mean(states):
    return {
        name: torch.stack([state[name].double() for state in states]).mean(0).to(value.dtype)
        if value.is_floating_point()
        else states[0][name]
        for name, value in states[0].items()
    }


class KeepWeights(Callback):
    """The weights at the end of each epoch, and what the Trainer says of them."""

    def __init__(self):
        self.states, self.metrics = [], []

    def on_train_epoch_end(self, trainer, pl_module):
        self.states.append({k: v.clone() for k, v in pl_module.state_dict().items()})
        self.metrics.append({k: float(v) for k, v in trainer.callback_metrics.items()})


@pytest.mark.parametrize(("metric", "mode"), [("loss", "min"), ("acc", "max")])
def test_the_soup_is_that_of_recipe_1_by_hand(tmp_path, metric, mode):
    keep = KeepWeights()
    soup = GreedySoup(metric, mode, top_k=None, dirpath=tmp_path)
    fitted([keep, soup], epochs=5)
    alone = [measure(state, metric) for state in keep.states]
    logged = [metrics[metric] for metrics in keep.metrics]
    assert alone == pytest.approx(logged, rel=1e-5)

    sign = 1 if mode == "max" else -1
    # Every epoch has a soup of the epochs so far; the best one of them all is the one written.
    best = None
    for epoch in range(5):
        order = sorted(range(epoch + 1), key=lambda index: -sign * alone[index])
        members, score = order[:1], alone[order[0]]
        for index in order[1:]:
            tried = measure(mean([keep.states[i] for i in [*members, index]]), metric)
            if sign * tried > sign * score + 1e-6:
                members, score = [*members, index], tried
        assert keep.metrics[epoch][f"{metric}_soup"] == pytest.approx(score, rel=1e-5)
        if best is None or sign * score > sign * best[1] + 1e-6:
            best = members, score
    members, score = best
    if metric == "loss":
        assert len(members) > 1, "the data must make a soup of several"
    assert soup.best_score == pytest.approx(score, rel=1e-5)
    written = read_checkpoint(soup.best_path)
    wanted = mean([keep.states[i] for i in members])
    for name, value in written.state_dict.items():
        assert torch.allclose(value, wanted[name], atol=1e-7), name
    assert len(written.content["soup"]["ingredients"]) == len(members)


def test_the_written_soup_loads_in_the_users_class_with_the_metric_that_was_logged(tmp_path):
    soup = GreedySoup("loss", "min", reset_batchnorm=True, dirpath=tmp_path)
    fitted([soup])
    loaded = Noisy.load_from_checkpoint(soup.best_path, weights_only=True)
    assert loaded.hparams.lr == 0.3
    trainer = quiet_trainer()
    (metrics,) = trainer.validate(loaded, validation_data(), verbose=False)
    assert metrics["loss"] == pytest.approx(soup.best_score, rel=1e-6)


class AtTheEnd(Callback):
    """What a run must leave as it was."""

    def on_train_end(self, trainer, pl_module):
        self.optimizer = trainer.optimizers[0].state_dict()
        self.random = torch.get_rng_state()
        self.metrics = dict(trainer.callback_metrics)


def test_training_does_not_notice(tmp_path):
    def run(folder, callbacks):
        end = AtTheEnd()
        logger = CSVLogger(tmp_path / folder)
        trained, _ = fitted([*callbacks, end], logger=logger, log_every_n_steps=1)
        with open(f"{logger.log_dir}/metrics.csv") as file:
            rows = [
                {k: v for k, v in row.items() if k != "loss_soup"} for row in csv.DictReader(file)
            ]
        return trained, end, rows

    plain, plain_end, plain_rows = run("plain", [])
    made, end, rows = run("soup", [soup := GreedySoup("loss", "min", reset_batchnorm=True)])
    assert soup.best_path.is_file()
    for name, value in plain.state_dict().items():
        assert torch.equal(value, made.state_dict()[name]), name
    assert plain.loss_of_each_epoch == made.loss_of_each_epoch
    assert plain.hooks == made.hooks
    assert torch.equal(plain_end.random, end.random)
    assert set(end.metrics) - set(plain_end.metrics) == {"loss_soup"}
    assert all(torch.equal(value, end.metrics[name]) for name, value in plain_end.metrics.items())
    assert rows == plain_rows


def test_batchnorm_is_reset_in_each_candidate(tmp_path):
    keep = KeepWeights()
    soup = GreedySoup("loss", "min", reset_batchnorm=True, top_k=None, dirpath=tmp_path)
    fitted([keep, soup], epochs=5)
    written = read_checkpoint(soup.best_path)
    paths = [path.split("epoch=")[1] for path in written.content["soup"]["ingredients"]]
    epochs = [int(path.split("-")[0]) for path in paths]
    assert len(epochs) > 1
    network = Noisy()
    network.load_state_dict(mean([keep.states[epoch] for epoch in epochs]))
    before = network.net[1].running_mean.clone()
    reset_batchnorm(network.net, image_batches())
    assert not torch.allclose(before, network.net[1].running_mean, atol=1e-3)
    for name, value in network.state_dict().items():
        assert torch.allclose(written.state_dict[name], value, atol=1e-5), name
    assert measure(network.state_dict(), "loss") == pytest.approx(soup.best_score, rel=1e-5)


def test_one_callback_serves_several_runs(tmp_path):
    soup = GreedySoup("acc", dirpath=tmp_path)
    fitted([soup], epochs=2)
    fitted([soup], epochs=1, lr=0.0)
    assert len(soup.ingredients) == 1
    assert soup.best_ingredients == soup.ingredients
    ours = read_checkpoint(soup.best_path).state_dict
    start = module().state_dict()
    assert all(torch.equal(ours[name], start[name]) for name in start if "weight" in name)


def test_a_resumed_run_makes_the_same_soup(tmp_path):
    whole = GreedySoup("loss", "min", dirpath=tmp_path / "whole")
    fitted([whole], epochs=4)

    first = GreedySoup("loss", "min", dirpath=tmp_path / "parts")
    checkpoint = ModelCheckpoint(tmp_path / "ckpt", save_last=True)
    torch.manual_seed(3)
    trainer = quiet_trainer(max_epochs=2, callbacks=[first, checkpoint], enable_checkpointing=True)
    trainer.fit(module(), training_data(), validation_data())
    state = torch.get_rng_state()

    second = GreedySoup("loss", "min", dirpath=tmp_path / "parts")
    trainer = quiet_trainer(max_epochs=4, callbacks=[second])
    resumed = module()
    torch.set_rng_state(state)
    trainer.fit(resumed, training_data(), validation_data(), ckpt_path=tmp_path / "ckpt/last.ckpt")
    assert len(second.ingredients) == 4
    assert [t.kept for t in second.trace] == [t.kept for t in whole.trace]
    assert second.best_score == whole.best_score
    ours, theirs = (read_checkpoint(soup.best_path).state_dict for soup in (second, whole))
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_the_worst_files_are_deleted_and_every_other_epoch_is_skipped(tmp_path):
    keep = KeepWeights()
    soup = GreedySoup("loss", "min", every_n_epochs=2, top_k=2, dirpath=tmp_path)
    fitted([keep, soup], epochs=8)
    losses = {epoch: keep.metrics[epoch]["loss"] for epoch in (1, 3, 5, 7)}
    left = sorted(int(path.name[6:].split("-")[0]) for path in tmp_path.glob("*.safetensors"))
    assert left == sorted(sorted(losses, key=losses.get)[:2])
    assert sorted(path.name for path in tmp_path.glob("*") if path.suffix != ".safetensors") == [
        "greedy_soup.ckpt"
    ]


def write_files(folder, states):
    paths = [folder / f"{index}.pt" for index in range(len(states))]
    for path, state in zip(paths, states, strict=True):
        torch.save(state, path)
    return paths


def test_a_list_of_files_in_validate(tmp_path):
    keep = KeepWeights()
    fitted([keep], epochs=4)
    # An equal of the best one is never strictly better.
    best = min(keep.states, key=lambda state: measure(state, "loss"))
    paths = write_files(tmp_path, [*keep.states, best])
    soup = GreedySoup("loss", "min", checkpoints=paths, dirpath=tmp_path)
    trained = module(5)
    (metrics,) = quiet_trainer(callbacks=[soup]).validate(trained, validation_data(), verbose=False)
    assert metrics["loss_soup"] == pytest.approx(soup.best_score, rel=1e-6)
    assert metrics["loss"] == pytest.approx(measure(trained.state_dict(), "loss"), rel=1e-5)
    state = read_checkpoint(soup.best_path).state_dict
    assert measure(state, "loss") == pytest.approx(soup.best_score, rel=1e-5)
    members = [row["ingredient"] for row in soup.rows() if row["kept"]]
    index = [torch.equal(state["net.0.weight"], best["net.0.weight"]) for state in keep.states]
    assert members[0] == f"{index.index(True)}.pt"
    assert "4.pt" not in members
    alone = {row["ingredient"]: row["alone"] for row in soup.rows()}
    for number, state in enumerate(keep.states):
        assert alone[f"{number}.pt"] == pytest.approx(measure(state, "loss"), rel=1e-5)


def test_the_files_that_a_modelcheckpoint_keeps(tmp_path):
    keep = KeepWeights()
    files = ModelCheckpoint(tmp_path / "ckpt", monitor="loss", save_top_k=3)
    soup = GreedySoup("loss", "min", checkpoints="best", dirpath=tmp_path)
    logger = CSVLogger(tmp_path)
    fitted([soup, files, keep], epochs=5, enable_checkpointing=True, logger=logger)
    assert sorted(soup.ingredients) == sorted(map(str, (tmp_path / "ckpt").glob("*.ckpt")))
    losses = sorted(metrics["loss"] for metrics in keep.metrics)[:3]
    assert sorted(row["alone"] for row in soup.rows()) == pytest.approx(losses, rel=1e-5)
    state = read_checkpoint(soup.best_path).state_dict
    assert measure(state, "loss") == pytest.approx(soup.best_score, rel=1e-5)


class Unindexed(IterableDataset):
    def __iter__(self):
        images, targets = validation_data().dataset.tensors
        yield from zip(images[:50], targets[:50], strict=True)


def test_validation_data_without_an_index(tmp_path):
    soup = GreedySoup("loss", "min", dirpath=tmp_path)
    generator = torch.Generator().manual_seed(4)
    loader = DataLoader(Unindexed(), batch_size=16, generator=generator)
    trainer = quiet_trainer(max_epochs=1, callbacks=[soup], limit_val_batches=2)
    trainer.fit(module(), image_batches(), loader)
    metrics = trainer.callback_metrics
    assert float(metrics["loss_soup"]) == pytest.approx(float(metrics["loss"]), rel=1e-6)
    # The Trainer alone has drawn from it, once.
    wanted = torch.Generator().manual_seed(4)
    iter(DataLoader(Unindexed(), batch_size=16, generator=wanted))
    assert torch.equal(generator.get_state(), wanted.get_state())


def test_refusals(tmp_path):
    with pytest.raises(ConfigError, match="mode is 'best'"):
        GreedySoup("loss", "best")
    with pytest.raises(ConfigError, match="top_k is 0"):
        GreedySoup("loss", top_k=0)
    with pytest.raises(ConfigError, match="needs validation data"):
        quiet_trainer(max_epochs=1, callbacks=[GreedySoup("loss")]).fit(module(), image_batches())
    with pytest.raises(ConfigError, match=r"'los' is not logged in validation; .* acc, loss"):
        fitted([GreedySoup("los")])
    states = [randomise(Stranger(), seed).state_dict() for seed in (1, 2)]
    merging = MergeModule(Stranger(), states)
    with pytest.raises(ConfigError, match="follow from its alphas"):
        quiet_trainer(max_epochs=1, callbacks=[GreedySoup("acc")]).fit(
            merging, image_batches(), validation_data()
        )
    with pytest.raises(ConfigError, match="no checkpoints to make a soup of"):
        fitted([GreedySoup("loss", checkpoints=[])])
    sharded = SimpleNamespace(strategy=type("FSDPStrategy", (), {})())
    with pytest.raises(ConfigError, match="FSDPStrategy divides"):
        check_soups("GreedySoup", sharded, module())
    paths = write_files(tmp_path, [module(seed).state_dict() for seed in (1, 2)])
    soup = GreedySoup("loss", checkpoints=paths, reset_batchnorm=True)
    with pytest.raises(ConfigError, match="give the Trainer a data module"):
        quiet_trainer(callbacks=[soup]).validate(module(), validation_data(), verbose=False)


def test_weights_that_diverged_are_left_out(tmp_path):
    soup = GreedySoup("loss", "min", dirpath=tmp_path)
    torch.manual_seed(3)
    trained = module()
    trained.hparams.lr = float("inf")
    trainer = quiet_trainer(max_epochs=2, callbacks=[soup])
    trainer.fit(trained, training_data(), validation_data())
    assert math.isnan(trainer.callback_metrics["loss_soup"])
    assert soup.best_path is None
