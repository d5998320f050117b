"""Targets that are missing are named; mixed and smoothed ones stand for a class or label."""

import pytest
import torch
from strangers import quiet_trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_merge.errors import DataError
from lightning_merge.modules import ImageClassifier

CLASSES = torch.arange(40) % 3
LABELS = torch.stack([CLASSES == 0, CLASSES < 2, CLASSES == 2], dim=1).long()
ODD = torch.arange(40) % 5 == 3


def classifier(task, metrics=None):
    torch.manual_seed(0)
    return ImageClassifier(
        "linear_classifier",
        num_classes=1 if task == "binary" else 3,
        in_chans=1,
        task=task,
        model_kwargs={"img_size": 2},
        metrics=metrics,
        optimizer=lambda weights: torch.optim.SGD(weights, lr=0.0),
    )


def loader(targets, size=8):
    images = torch.randn(40, 1, 2, 2, generator=torch.Generator().manual_seed(1))
    return DataLoader(TensorDataset(images, targets), batch_size=size)


@pytest.mark.parametrize(
    ("task", "targets", "message"),
    [
        ("multilabel", LABELS.masked_fill(ODD[:, None], -1), "a target is -1, which is no label"),
        ("multilabel", LABELS.float().masked_fill(ODD[:, None], torch.nan), "a target is nan"),
        ("binary", LABELS[:, 0].masked_fill(ODD, -1), "a target is -1"),
        ("binary", LABELS[:, 0] * 2, "a target is 2"),
        # Cross entropy passes over it, and a metric counts it as wrong.
        ("multiclass", CLASSES.masked_fill(ODD, -100), r"-100, which is no class \(0 to 2\)"),
        ("multiclass", CLASSES.masked_fill(ODD, 3), "a target is 3"),
    ],
)
@pytest.mark.parametrize("metrics", [None, ["auroc"], ["sensitivity"]])
def test_an_example_without_a_target_is_named(task, targets, message, metrics):
    with pytest.raises(DataError, match=message) as caught:
        quiet_trainer().test(classifier(task, metrics), loader(targets), verbose=False)
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match=message):
        quiet_trainer(max_epochs=1).fit(classifier(task, metrics), loader(targets, 1))


@pytest.mark.parametrize(
    ("task", "soft", "hard"),
    [
        ("multiclass", nn.functional.one_hot(CLASSES, 3) * 0.7 + 0.1, CLASSES),
        ("multilabel", LABELS * 0.8 + 0.1, LABELS),
        ("binary", LABELS[:, 1] * 0.8 + 0.1, LABELS[:, 1]),
        ("multilabel", LABELS.bool(), LABELS),
        ("binary", LABELS[:, 0].bool(), LABELS[:, 0]),
    ],
)
def test_accuracy_is_that_of_the_likeliest_targets(task, soft, hard):
    module = classifier(task)
    images = loader(soft).dataset.tensors[0]
    with torch.no_grad():
        logits = module(images)
    predicted = logits.argmax(1) if task == "multiclass" else (logits.reshape(hard.shape) > 0)
    wanted = (predicted == hard).double().mean().item()
    assert 0 < wanted < 1
    (found,) = quiet_trainer().test(module, loader(soft), verbose=False)
    assert found["test_accuracy"] == pytest.approx(wanted, abs=1e-6)
    trainer = quiet_trainer(max_epochs=1)
    trainer.fit(module, loader(soft))
    assert float(trainer.callback_metrics["train_accuracy"]) == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_training_loss_of_sixteen_bits_is_a_mean_of_all_batches(dtype):
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(()))

        def forward(self, images):
            return images.flatten(1) + self.weight

    module = classifier("multiclass")
    module.network = Fixed()
    logits = torch.zeros(4000, 3, 1, 1).index_fill_(1, torch.tensor([0]), 30.0)
    data = TensorDataset(logits.to(dtype), torch.ones(4000).long())
    precision = "bf16-true" if dtype == torch.bfloat16 else "16-true"
    trainer = quiet_trainer(max_epochs=1, precision=precision)
    trainer.fit(module, DataLoader(data, batch_size=40))
    # 120,000 in all: beyond the one type, and beyond what the other adds 1,200 to.
    assert float(trainer.callback_metrics["train_loss"]) == pytest.approx(30, abs=1e-3)
