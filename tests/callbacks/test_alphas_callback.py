import csv

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from lightning.pytorch.loggers.logger import DummyLogger
from strangers import Stranger, image_batches, quiet_trainer, randomise

from lightning_merge.callbacks import AlphaMonitor
from lightning_merge.callbacks.alpha_monitor import alpha_rows
from lightning_merge.callbacks.plain_lines import PlainLines
from lightning_merge.errors import ConfigError
from lightning_merge.modules import MergeModule


def merge():
    states = [randomise(Stranger(), seed).state_dict() for seed in (1, 2)]
    return MergeModule(Stranger(), states)


def test_the_means_reach_a_csv_logger(tmp_path):
    module = merge()
    logger = CSVLogger(tmp_path)
    quiet_trainer(max_epochs=2, logger=logger, callbacks=[AlphaMonitor()]).fit(
        module, image_batches()
    )
    with open(f"{logger.log_dir}/metrics.csv") as file:
        rows = [row for row in csv.DictReader(file) if row.get("alpha/net.3.weight")]
    assert len(rows) == 2
    last = float(rows[-1]["alpha/net.3.weight"])
    assert last == pytest.approx(module.alphas()["net.3.weight"].mean().item(), abs=1e-6)
    assert last != 0.5
    with open(f"{logger.log_dir}/alphas.csv") as file:
        table = {row["layer"]: row for row in csv.DictReader(file)}
    assert set(table) == set(module.alphas())
    layer = module.alphas()["net.3.weight"]
    assert int(table["net.3.weight"]["alphas"]) == layer.numel()
    assert float(table["net.3.weight"]["std"]) == pytest.approx(layer.std(correction=0).item())


def test_the_line_of_an_epoch_leaves_them_to_loggers(capsys):
    callbacks = [AlphaMonitor(), PlainLines()]
    quiet_trainer(max_epochs=2, callbacks=callbacks).fit(merge(), image_batches())
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("epoch 1/2: loss_in_step ")
    assert "alpha" not in first + second


def test_of_three_ingredients_each_has_its_own_mean(tmp_path):
    states = [randomise(Stranger(), seed).state_dict() for seed in (1, 2, 3)]
    module = MergeModule(Stranger(), states)
    logger = CSVLogger(tmp_path)
    quiet_trainer(max_epochs=1, logger=logger, callbacks=[AlphaMonitor()]).fit(
        module, image_batches()
    )
    with open(f"{logger.log_dir}/metrics.csv") as file:
        (row,) = [row for row in csv.DictReader(file) if row.get("alpha/net.3.weight/1")]
    shares = module.alphas()["net.3.weight"].flatten(1).mean(1)
    for index, share in enumerate(shares, 1):
        logged = float(row[f"alpha/net.3.weight/{index}"])
        assert logged == pytest.approx(share.item(), abs=1e-6)
        assert abs(logged - 1 / 3) > 1e-5
    with open(f"{logger.log_dir}/alphas.csv") as file:
        assert len(list(csv.DictReader(file))) == 3 * len(module.alphas())


class Recorded:
    """Keeps what is sent to it."""

    def __init__(self, calls=None):
        self.calls = [] if calls is None else calls

    def __getattr__(self, name):
        return lambda *args, **kwargs: self.calls.append((name, args, kwargs))


class TensorBoardLogger(DummyLogger):
    """Has the name and the methods of Lightning's, and needs no further package."""

    def __init__(self):
        super().__init__()
        self._experiment = Recorded()


def test_histograms_and_a_table_reach_tensorboard():
    module, logger = merge(), TensorBoardLogger()
    quiet_trainer(max_epochs=2, logger=logger, callbacks=[AlphaMonitor()]).fit(
        module, image_batches()
    )
    layers = module.alphas()
    drawn = [args for name, args, _ in logger.experiment.calls if name == "add_histogram"]
    assert [tag for tag, *_ in drawn] == [f"alphas/{name}" for name in layers] * 2
    assert {step for *_, step in drawn} == {6, 12}
    assert torch.equal(drawn[-len(layers)][1], next(iter(layers.values())))
    (text,) = [args for name, args, _ in logger.experiment.calls if name == "add_text"]
    assert all(name in text[1] for name in layers)


def test_histograms_and_a_table_reach_weights_and_biases(tmp_path, monkeypatch):
    import wandb

    sent, tables = [], []
    monkeypatch.setattr(WandbLogger, "experiment", property(lambda self: Recorded(sent)))
    monkeypatch.setattr(WandbLogger, "log_hyperparams", lambda self, params: None)
    monkeypatch.setattr(WandbLogger, "log_table", lambda self, **table: tables.append(table))
    module = merge()
    logger = WandbLogger(save_dir=tmp_path, offline=True)
    quiet_trainer(max_epochs=2, logger=logger, callbacks=[AlphaMonitor()]).fit(
        module, image_batches()
    )
    drawn = [args[0] for name, args, _ in sent if name == "log"]
    histograms = [item["alphas/net.3.weight"] for item in drawn if "alphas/net.3.weight" in item]
    assert len(histograms) == 2
    assert all(isinstance(item, wandb.Histogram) for item in histograms)
    assert sum(histograms[-1].histogram) == module.alphas()["net.3.weight"].numel()
    (table,) = tables
    assert table["key"] == "alphas"
    assert [row[0] for row in table["data"]] == list(module.alphas())


def test_it_works_without_a_logger():
    module = merge()
    trainer = quiet_trainer(max_epochs=1, callbacks=[AlphaMonitor()])
    trainer.fit(module, image_batches())
    mean = module.alphas()["net.3.weight"].mean()
    assert trainer.callback_metrics["alpha/net.3.weight"] == pytest.approx(mean.item(), abs=1e-6)


def test_a_module_without_alphas_is_refused():
    trainer = quiet_trainer(max_epochs=1, callbacks=[AlphaMonitor()])
    with pytest.raises(ConfigError, match="Stranger has no alphas"):
        trainer.fit(Stranger(), image_batches())


def test_the_rows_by_hand():
    (row,) = alpha_rows({"layer": torch.tensor([[0.2, 0.6], [0.7, 0.9]])})
    assert row["layer"] == "layer"
    assert row["alphas"] == 4
    assert row["mean"] == pytest.approx(0.6)
    assert row["std"] == pytest.approx(torch.tensor([0.2, 0.6, 0.7, 0.9]).std(correction=0).item())
    assert (row["min"], row["max"]) == (pytest.approx(0.2), pytest.approx(0.9))
    assert row["above_half"] == 0.75
