"""LightningModules of public projects, wrapped as they are."""

import pytest
import torch
from strangers import image_batches, quiet_trainer, randomise, small_network
from torch import nn
from torch.utils.data import DataLoader

from lightning_merge.align import ActivationMatching
from lightning_merge.modules import MergeModule


def merged_as_it_is(make, load, data):
    """Trains a merge of two modules, and compares its checkpoint in the class it came from."""
    states = []
    for seed in (1, 2):
        made = randomise(make(), seed).state_dict()
        states.append({name: value.clone() for name, value in made.items()})
    module = MergeModule(make(), states, matching=ActivationMatching())
    user = type(make())
    assert isinstance(module, user)
    trainer = quiet_trainer(max_epochs=2)
    trainer.fit(module, data, data)
    # A bias before BatchNorm has no effect on the loss, hence no gradient.
    moved = [bool((alpha - 0.5).abs().max() > 1e-3) for alpha in module.alphas().values()]
    assert sum(moved) > len(moved) // 2
    trainer.save_checkpoint("merged.ckpt")
    loaded = load(user)
    assert type(loaded) is user
    for run in ("validate", "test"):
        printed, again = (
            getattr(quiet_trainer(), run)(one, data, verbose=False)[0] for one in (module, loaded)
        )
        assert len(printed) >= 4
        assert again == pytest.approx(printed, rel=0, abs=0, nan_ok=True)


def test_torch_uncertainty():
    # A step without the batch's number, an optimizer that the module holds, a score of metrics.
    from torch_uncertainty.routines import ClassificationRoutine

    def arguments():
        return {"model": small_network(), "num_classes": 4, "loss": nn.CrossEntropyLoss()}

    def optimizer(model):
        return torch.optim.SGD(model.parameters(), lr=0.1)

    merged_as_it_is(
        lambda: ClassificationRoutine(**arguments(), optim_recipe=optimizer),
        lambda user: user.load_from_checkpoint("merged.ckpt", **arguments()),
        image_batches(),
    )


@pytest.mark.slow
def test_torchgeo():
    # Batches are dicts, the network is timm's, and it is made of hyper-parameters.
    trainers = pytest.importorskip("torchgeo.trainers")
    images, labels = image_batches().dataset.tensors
    data = [{"image": x, "label": y} for x, y in zip(images, labels, strict=True)]
    merged_as_it_is(
        lambda: trainers.ClassificationTask("resnet18", num_classes=4),
        lambda user: user.load_from_checkpoint("merged.ckpt"),
        DataLoader(data, batch_size=16),
    )
