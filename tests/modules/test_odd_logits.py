"""Metrics of logits that are NaN or infinite."""

import numpy as np
import pytest
import torch
from computed_metrics import computed


def test_a_logit_that_is_no_number_spoils_no_other_examples():
    logits = torch.tensor([-3.0, float("nan"), -3.0, 2.0])
    targets = torch.tensor([0, 1, 0, 1])
    found = computed("binary", 1, ["accuracy", "auroc"], logits, targets, [4])
    assert found["accuracy"] == 0.75
    assert np.isnan(found["auroc"])


def test_a_broken_network_is_right_about_nothing():
    nothing = torch.full((12, 4), torch.nan)
    targets = torch.arange(12) % 4
    chosen = ["accuracy", "sensitivity", "f1", {"class_path": "MulticlassRecall"}]
    assert set(computed("multiclass", 4, chosen, nothing, targets, [5, 7]).values()) == {0.0}
    labels = torch.stack([targets % 2, targets // 2], dim=1)
    names = ["accuracy", "sensitivity", "specificity"]
    for task, classes, logits, truth in (
        ("multilabel", 2, nothing[:, :2], labels),
        ("binary", 1, nothing[:, 0], labels[:, 0]),
    ):
        assert set(computed(task, classes, names, logits, truth, [5, 7]).values()) == {0.0}


@pytest.mark.parametrize("sizes", [[24], [1] * 24, [5, 19]])
def test_an_example_with_a_logit_of_nan_is_wrong(sizes):
    logits = torch.eye(6).repeat(4, 1)
    targets = torch.arange(24) % 6
    # Of the class 0, to which the largest of numbers that are none would belong; and of others.
    for example, column in ((0, 0), (6, 3), (7, 1), (13, 5)):
        logits[example, column] = torch.nan
    top5 = {"class_path": "MulticlassAccuracy", "name": "balanced", "init_args": {"top_k": 5}}
    found = computed(
        "multiclass", 6, ["accuracy", "top5", "sensitivity", top5], logits, targets, sizes
    )
    share = 20 / 24
    wanted = {"accuracy": share, "top5": share, "sensitivity": share, "balanced": share}
    assert found == pytest.approx(wanted, abs=1e-6)


def test_a_logit_of_infinity_is_the_largest():
    logits = torch.tensor([[0, torch.inf, 1], [-torch.inf, -torch.inf, 0], [2, 1, -torch.inf]])
    targets = torch.tensor([1, 2, 0])
    chosen = ["accuracy", "auroc", {"class_path": "MulticlassCohenKappa"}]
    for sizes in ([3], [1, 1, 1]):
        assert set(computed("multiclass", 3, chosen, logits, targets, sizes).values()) == {1.0}
