"""What all tests share: one thread each, and a place for Lightning's files."""

import os
import sys
import warnings

# Several test processes share the cores; threads that wait for each other cost more than
# they give.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("WANDB_SILENT", "true")

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    """Nothing that a test forgets to place lands in the source tree."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        yield


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """A folder with CIFAR-10 and CIFAR-100 of a few images each."""
    from made_data import write_cifar

    return write_cifar(tmp_path, monkeypatch)


@pytest.fixture
def narrow_vgg(monkeypatch):
    """VGG11 with an eighth of its channels."""
    from lightning_merge.networks import vgg_cifar

    narrow = [[channels // 8 for channels in row] for row in vgg_cifar.VGG11_CHANNELS]
    monkeypatch.setattr(vgg_cifar, "VGG11_CHANNELS", narrow)


@pytest.fixture
def drawn_only():
    """Figures are drawn and written, but not rendered."""
    from unrendered import unrendered

    with unrendered():
        yield


@pytest.fixture(autouse=True)
def _no_open_run():
    """A Weights & Biases run that a test leaves open would take over the next one's logger."""
    yield
    wandb = sys.modules.get("wandb")
    if wandb is not None and getattr(wandb, "run", None) is not None:
        wandb.finish()
