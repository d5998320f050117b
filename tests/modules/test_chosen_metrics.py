"""Metrics of torchmetrics chosen by their class, against scikit-learn, in batches of any size."""

import numpy as np
import pytest
import torch
from computed_metrics import computed
from sklearn.metrics import average_precision_score, f1_score, precision_score, roc_auc_score

from lightning_merge.modules.metrics import classification_metrics

pytestmark = pytest.mark.filterwarnings("ignore:.*leaves out")


def by_class(chosen):
    return [{"class_path": path, "name": name} for name, path in chosen.items()]


@pytest.mark.parametrize("size", [1, 10, 90])
def test_metrics_that_agree_on_the_first_example_stay_apart(size):
    # The first example's class is the largest logit: right among one, two and five.
    logits = torch.randn(90, 8, generator=torch.Generator().manual_seed(0))
    targets = logits.argsort(1, descending=True)[range(90), torch.arange(90) % 8]
    chosen = [
        {
            "class_path": "MulticlassAccuracy",
            "name": f"top{k}",
            "init_args": {"top_k": k, "average": "micro"},
        }
        for k in (2, 5)
    ]
    values = computed("multiclass", 8, ["accuracy", *chosen], logits, targets, size)
    found = {name: round(value * 90) for name, value in values.items()}
    assert found == {"accuracy": 12, "top2": 24, "top5": 57}


@pytest.mark.parametrize("size", [1, 7, 80])
def test_a_class_that_no_example_has_is_left_out(size):
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(80, 4, generator=generator)
    targets = (logits + torch.randn(80, 4, generator=generator)).argmax(1) % 3
    predicted, truth = logits.argmax(1).numpy(), targets.numpy()
    assert (predicted == 3).any()
    chosen = {
        "recall": "MulticlassRecall",
        "balanced": "MulticlassAccuracy",
        "area": "MulticlassAUROC",
        "f1": "MulticlassF1Score",
        "precision": "MulticlassPrecision",
    }
    found = computed("multiclass", 4, by_class(chosen), logits, targets, size)
    recalls = [np.mean(predicted[truth == c] == c) for c in range(3)]
    assert found["recall"] == pytest.approx(np.mean(recalls), abs=1e-6)
    assert found["balanced"] == pytest.approx(np.mean(recalls), abs=1e-6)
    shares = logits.double().softmax(1).numpy()
    areas = [roc_auc_score(truth == c, shares[:, c]) for c in range(3)]
    assert found["area"] == pytest.approx(np.mean(areas), abs=1e-6)
    scores = [f1_score(truth == c, predicted == c) for c in range(3)]
    assert found["f1"] == pytest.approx(np.mean(scores), abs=1e-6)
    # What was predicted and never there is a wrong prediction, not an undefined one.
    all_four = precision_score(truth, predicted, average="macro", zero_division=0)
    assert found["precision"] == pytest.approx(all_four, abs=1e-6)


def test_examples_that_are_ignored_do_not_make_a_class_occur():
    logits = torch.eye(4)[[0, 1, 2, 3]] * 9
    targets = torch.tensor([0, 2, 3, 3])
    metric = {"class_path": "MulticlassRecall", "init_args": {"ignore_index": 2}}
    metrics = classification_metrics("multiclass", 4, [metric])
    metrics.update(logits, targets)
    assert float(metrics.compute()["MulticlassRecall"]) == pytest.approx((1 + 0.5) / 2)
    metrics.reset()
    metrics.update(logits, torch.tensor([0, 1, 2, 2]))
    assert float(metrics.compute()["MulticlassRecall"]) == 1


@pytest.mark.parametrize("shift", [0, 50, -50])
@pytest.mark.parametrize("size", [1, 8, 99])
def test_ranks_are_those_of_the_logits(size, shift):
    generator = torch.Generator().manual_seed(2)
    clean = torch.randn(99, generator=generator)
    targets = (clean + torch.randn(99, generator=generator) > 0).long()
    # Sixteen bits: many are equal, and a probability would be 0 or 1.
    logits = (clean + shift).bfloat16()
    chosen = {"area": "BinaryAUROC", "precision": "BinaryAveragePrecision"}
    found = computed("binary", 1, by_class(chosen), logits, targets, size)
    right = logits.double().numpy()
    assert found["area"] == pytest.approx(roc_auc_score(targets, right), abs=1e-6)
    assert found["precision"] == pytest.approx(average_precision_score(targets, right), abs=1e-6)
    several = torch.stack([logits, logits.flip(0), logits], 1)
    truth = torch.stack([targets, targets.flip(0), targets * 0], 1)
    found = computed("multilabel", 3, by_class({"area": "MultilabelAUROC"}), several, truth, size)
    assert found["area"] == pytest.approx(roc_auc_score(targets, right), abs=1e-6)


@pytest.mark.parametrize("scale", [1, 40, 1000])
@pytest.mark.parametrize("size", [1, 13, 60])
def test_ranks_of_an_examples_labels_are_those_of_its_logits(size, scale):
    from sklearn.metrics import (
        coverage_error,
        label_ranking_average_precision_score,
        label_ranking_loss,
    )

    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(60, 5, generator=generator)
    targets = (logits + torch.randn(60, 5, generator=generator) > 0).long()
    logits *= scale
    chosen = {
        "loss": "MultilabelRankingLoss",
        "precision": "MultilabelRankingAveragePrecision",
        "coverage": "MultilabelCoverageError",
    }
    found = computed("multilabel", 5, by_class(chosen), logits, targets, size)
    wanted = {
        "loss": label_ranking_loss(targets, logits),
        "precision": label_ranking_average_precision_score(targets, logits),
        "coverage": coverage_error(targets, logits),
    }
    assert found == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("size", [1, 11, 70])
def test_each_label_is_right_or_wrong_for_every_example(size):
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(70, 3, generator=generator)
    targets = (logits + torch.randn(70, 3, generator=generator) > 0).long()
    targets[:, 0], targets[:, 1] = 0, 1
    chosen = {"right": "MultilabelAccuracy", "wrong": "MultilabelHammingDistance"}
    found = computed("multilabel", 3, by_class(chosen), logits, targets, size)
    right = float(((logits > 0) == targets).double().mean())
    assert found == pytest.approx({"right": right, "wrong": 1 - right}, abs=1e-6)


@pytest.mark.parametrize("size", [1, 70])
def test_a_weighted_mean_leaves_out_what_is_not_defined(size):
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(70, 4, generator=generator)
    targets = (logits + torch.randn(70, 4, generator=generator) > 0).long()
    # All have the one and none has the other: neither has an area, which is not 0.
    targets[:, 1], targets[:, 3] = 1, 0
    weighted = {"init_args": {"average": "weighted"}}
    chosen = [
        {"class_path": f"Multilabel{name}", "name": name, **weighted}
        for name in ("AUROC", "F1Score", "AveragePrecision")
    ]
    metrics = classification_metrics("multilabel", 4, chosen)
    for batch, truth in zip(logits.split(size), targets.split(size), strict=True):
        metrics.update(batch, truth)
    found = {name: float(value) for name, value in metrics.compute().items()}
    wanted = {
        "AUROC": roc_auc_score(targets[:, [0, 2]], logits[:, [0, 2]], average="weighted"),
        "F1Score": f1_score(targets, logits > 0, average="weighted", zero_division=0),
        "AveragePrecision": average_precision_score(
            targets[:, :3], logits[:, :3], average="weighted"
        ),
    }
    assert found == pytest.approx(wanted, abs=1e-6)
