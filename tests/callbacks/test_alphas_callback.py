import csv

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from strangers import Stranger, image_batches, quiet_trainer, randomise

from lightning_merge.callbacks import AlphaMonitor
from lightning_merge.callbacks.alphas import alpha_rows
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
