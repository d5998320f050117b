"""Metrics of raw logits against scikit-learn, whatever the batches and the scale of the logits."""

import copy
import math
import warnings

import numpy as np
import pytest
import torch
from computed_metrics import computed
from lightning.pytorch import seed_everything
from sklearn.metrics import (
    accuracy_score,
    f1_score,
    recall_score,
    roc_auc_score,
    top_k_accuracy_score,
)
from strangers import quiet_trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_merge.callbacks import GreedySoup
from lightning_merge.errors import ConfigError
from lightning_merge.modules import EnsembleModule, ImageClassifier
from lightning_merge.modules.metrics import classification_metrics

SCALES = [(1, 0), (1e-3, 0), (100, 0), (1, 40), (0.1, -60)]


def drawn(task, count, classes, seed, scale=1.0, shift=0.0, dtype=torch.float32):
    """Logits that know something of the targets, in the type in which a network gives them."""
    generator = torch.Generator().manual_seed(seed)
    shape = (count,) if task == "binary" else (count, classes)
    clean = torch.randn(shape, generator=generator)
    noisy = clean + 1.5 * torch.randn(shape, generator=generator)
    targets = noisy.argmax(1) if task == "multiclass" else (noisy > 0).long()
    return (clean * scale + shift).to(dtype), targets


def splits(count, seed):
    """One batch, single examples, and batches of random sizes."""
    cuts = np.sort(np.random.default_rng(seed).choice(np.arange(1, count), 6, replace=False))
    uneven = np.diff([0, *cuts, count]).tolist()
    return [[count], [1] * count, uneven]


def mean_auroc(scores, truth):
    """Of the columns for which it is defined."""
    mixed = [c for c in range(truth.shape[1]) if 0 < truth[:, c].sum() < len(truth)]
    return np.mean([roc_auc_score(truth[:, c], scores[:, c]) for c in mixed])


def auroc_by_hand(task, logits, targets):
    if task == "binary":
        return roc_auc_score(targets.numpy(), logits.double().numpy())
    if task == "multilabel":
        return mean_auroc(logits.double().numpy(), targets.numpy())
    truth = nn.functional.one_hot(targets, logits.shape[1]).numpy()
    return mean_auroc(logits.double().softmax(1).numpy(), truth)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(("task", "classes"), [("binary", 1), ("multilabel", 3), ("multiclass", 7)])
def test_auroc_and_accuracy_are_those_of_all_examples_together(task, classes, scale, dtype):
    seed = SCALES.index(scale)
    count = 60 + 31 * seed
    logits, targets = drawn(task, count, classes, seed, *scale, dtype)
    if task == "multiclass":
        accuracy = accuracy_score(targets, logits.double().argmax(1))
    else:
        accuracy = ((logits > 0) == targets).double().mean()
    for sizes in splits(count, seed):
        found = computed(task, classes, ["accuracy", "auroc"], logits, targets, sizes)
        assert found["auroc"] == pytest.approx(auroc_by_hand(task, logits, targets), abs=1e-6)
        assert found["accuracy"] == pytest.approx(float(accuracy), abs=1e-6)


def test_the_five_best_are_found_where_probabilities_vanish():
    logits, targets = drawn("multiclass", 200, 9, 3, 3000.0)
    wanted = top_k_accuracy_score(targets, logits.double(), k=5, labels=range(9))
    given = {
        "class_path": "torchmetrics.classification.MulticlassAccuracy",
        "init_args": {"top_k": 5, "average": "micro"},
        "name": "again",
    }
    for sizes in ([200], [1] * 200):
        found = computed("multiclass", 9, ["top5", given], logits, targets, sizes)
        assert found["top5"] == pytest.approx(wanted, abs=1e-6)
        assert found["again"] == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_classes_that_do_not_occur_are_left_out_and_named(task):
    logits, targets = drawn(task, 150, 6, 0)
    if task == "multiclass":
        targets[targets == 2] = 3
        targets[targets == 5] = 0
    else:
        targets[:, 2], targets[:, 5] = 0, 1
    noun = "classes" if task == "multiclass" else "labels"
    with pytest.warns(UserWarning, match=f"{noun} that occur .* 150 examples: 2, 5$") as caught:
        found = computed(task, 6, ["auroc"], logits, targets, [150])
    assert len(caught) == 1
    assert found["auroc"] == pytest.approx(auroc_by_hand(task, logits, targets), abs=1e-6)


@pytest.mark.parametrize(
    ("task", "targets", "message"),
    [
        ("binary", torch.ones(8).long(), "AUROC is not defined: all 8 examples are of one class"),
        ("multiclass", torch.ones(8).long(), "0, 1, 2; none is left"),
        ("multilabel", torch.ones(8, 3).long(), "0, 1, 2; none is left"),
    ],
)
def test_where_no_class_is_left_there_is_no_auroc(task, targets, message):
    classes = 1 if task == "binary" else 3
    logits = torch.randn(8) if task == "binary" else torch.randn(8, 3)
    with pytest.warns(UserWarning, match=message):
        found = computed(task, classes, ["auroc"], logits, targets, [8])
    assert np.isnan(found["auroc"])


def test_of_very_many_classes_a_few_are_named():
    with pytest.warns(UserWarning, match=r": 2, 3, 4, 5, 6, 7, 8, 9, 10, 11 and 88 more$"):
        computed("multiclass", 100, ["auroc"], torch.randn(6, 100), torch.arange(6) % 2, [6])


def test_equal_scores_count_half():
    logits = torch.tensor([0.0, 0.0, 0.0, 1.0])
    targets = torch.tensor([0, 1, 0, 1])
    # Of the four pairs two are right, and two are equal.
    assert computed("binary", 1, ["auroc"], logits, targets, [4])["auroc"] == 0.75


# --- one word for medical sets


@pytest.mark.parametrize(("task", "classes"), [("binary", 1), ("multilabel", 4), ("multiclass", 5)])
@pytest.mark.parametrize("scale", [1, 60])
def test_medical_metrics_are_those_of_scikit_learn(task, classes, scale):
    logits, targets = drawn(task, 120, classes, 8, scale)
    if task == "multiclass":
        truth = nn.functional.one_hot(targets, classes)
        predicted = nn.functional.one_hot(logits.argmax(1), classes)
    else:
        truth, predicted = targets.reshape(120, classes), (logits > 0).long().reshape(120, classes)
    columns = [(truth[:, c].numpy(), predicted[:, c].numpy()) for c in range(classes)]
    wanted = {
        "sensitivity": np.mean([recall_score(*pair) for pair in columns]),
        "specificity": np.mean([recall_score(*pair, pos_label=0) for pair in columns]),
        "f1": np.mean([f1_score(*pair) for pair in columns]),
        "calibration_error": calibration_error(task, logits.double(), targets),
    }
    for sizes in splits(120, 1):
        found = computed(task, classes, ["medical"], logits, targets, sizes)
        assert found == pytest.approx(wanted, abs=1e-5)


def calibration_error(task, logits, targets):
    """The mean distance of confidence and frequency in fifteen bins, by the bins' sizes."""
    if task == "multiclass":
        confidence, predicted = logits.softmax(1).max(1)
        right = predicted == targets
    else:
        confidence, right = logits.sigmoid().flatten(), targets.flatten()
    bins = (confidence * 15).long().clamp(max=14)
    total = 0.0
    for number in range(15):
        own = bins == number
        if own.any():
            gap = confidence[own].mean() - right[own].double().mean()
            total += float(own.double().mean() * gap.abs())
    return total


@pytest.mark.parametrize("sizes", [[100], [1] * 100, [30, 70]])
def test_the_surest_predictions_share_the_last_bin(sizes):
    # Half are sure beyond rounding, and right in 45 of 50; half are right, and 0.94 sure.
    sure = torch.tensor([50.0] * 50 + [math.log(0.94 / 0.06)] * 50)
    wrong = torch.arange(100) < 5
    logits = torch.stack([sure, torch.zeros(100)], dim=1)
    chosen = {"class_path": "MulticlassCalibrationError", "name": "chosen"}
    found = computed("multiclass", 2, ["calibration_error", chosen], logits, wrong.long(), sizes)
    assert found == pytest.approx({"calibration_error": 0.02, "chosen": 0.02}, abs=1e-7)
    for task, given in (
        ("binary", (sure, ~wrong)),
        ("multilabel", (sure[:, None], ~wrong[:, None])),
    ):
        found = computed(task, 1, ["calibration_error"], given[0], given[1].long(), sizes)
        assert found["calibration_error"] == pytest.approx(0.02, abs=1e-7)


def test_the_calibration_error_of_many_examples_loses_no_digits():
    generator = torch.Generator().manual_seed(2)
    logits = torch.rand(200_000, 2, generator=generator) + torch.tensor([3.0, 0.0])
    targets = (torch.rand(200_000, generator=generator) > 0.94).long()
    found = computed("multiclass", 2, ["calibration_error"], logits, targets, [100_000] * 2)
    wanted = calibration_error("multiclass", logits.double(), targets)
    assert found["calibration_error"] == pytest.approx(wanted, abs=1e-12)


def test_a_class_that_does_not_occur_has_no_sensitivity():
    logits, targets = drawn("multiclass", 90, 4, 2)
    targets[targets == 3] = 0
    assert (logits.argmax(1) == 3).any()
    with pytest.warns(UserWarning, match=r"sensitivity: .*: 3$"):
        found = computed("multiclass", 4, ["sensitivity"], logits, targets, [90])
    wanted = recall_score(targets, logits.argmax(1), labels=[0, 1, 2], average="macro")
    assert found["sensitivity"] == pytest.approx(wanted)


# --- torchmetrics by class_path


@pytest.mark.parametrize(
    ("name", "arguments", "function"),
    [
        ("MulticlassF1Score", {"average": "macro"}, lambda t, p: f1_score(t, p, average="macro")),
        ("F1Score", {"average": "micro"}, lambda t, p: f1_score(t, p, average="micro")),
        ("MulticlassCohenKappa", {}, None),
    ],
)
def test_any_metric_of_torchmetrics_by_its_class(name, arguments, function):
    from sklearn.metrics import cohen_kappa_score

    logits, targets = drawn("multiclass", 80, 4, 5)
    path = f"torchmetrics.classification.{name}"
    found = computed(
        "multiclass",
        4,
        ["accuracy", {"class_path": path, "init_args": arguments}],
        logits,
        targets,
        [3] * 26 + [2],
    )
    (value,) = (value for key, value in found.items() if key != "accuracy")
    wanted = (function or cohen_kappa_score)(targets.numpy(), logits.argmax(1).numpy())
    assert value == pytest.approx(wanted, abs=1e-6)


def test_probabilities_reach_metrics_that_want_them():
    from sklearn.metrics import average_precision_score

    logits, targets = drawn("binary", 70, 1, 4, 0.2)
    chosen = [{"class_path": "BinaryAveragePrecision", "name": "ap"}]
    for sizes in splits(70, 2):
        found = computed("binary", 1, chosen, logits, targets, sizes)
        wanted = average_precision_score(targets, logits.double().sigmoid())
        assert found["ap"] == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ("recall", "metric 'recall' does not fit .* medical"),
        ({"class_path": "os.system"}, r"'os\.system' is no class of torchmetrics"),
        ({"class_path": "evil.MulticlassF1Score"}, "no class of torchmetrics"),
        ({"class_path": "torchmetrics.MulticlasF1Score"}, "did you mean MulticlassF1Score"),
        ({"class_path": "MulticlassF1Score", "init_args": {"topk": 2}}, "topk"),
        ({"class_path": "MulticlassConfusionMatrix"}, "more than one number"),
        ({"class_path": "BinaryAccuracy"}, "does not fit a multiclass task"),
        ({}, "metric 'None'"),
        (7, "metric '7'"),
        ({"class_path": "MulticlassF1Score", "init_args": 3}, "does not fit"),
    ],
)
def test_metrics_that_do_not_fit_are_refused(chosen, message):
    with pytest.raises(ConfigError, match=message) as caught:
        classification_metrics("multiclass", 4, [chosen])
    assert "\n" not in str(caught.value)


# --- in the modules


def classifier(task, classes, metrics):
    """What it is given are the logits."""
    module = ImageClassifier(
        "linear_classifier",
        num_classes=classes,
        in_chans=1,
        task=task,
        model_kwargs={"img_size": 2},
        metrics=metrics,
    )
    module.forward = lambda images: images.flatten(1)
    return module


@pytest.mark.parametrize("batch", [1, 7, 45])
@pytest.mark.parametrize(("task", "classes"), [("binary", 1), ("multilabel", 3), ("multiclass", 4)])
def test_what_is_logged_does_not_depend_on_batches(task, classes, batch):
    logits, targets = drawn(task, 45, classes, 6, 0.3)
    data = DataLoader(TensorDataset(logits.reshape(45, -1, 1, 1), targets), batch_size=batch)
    wanted = auroc_by_hand(task, logits, targets)
    module = classifier(task, classes, ["accuracy", "auroc", "medical"])
    for run, prefix in (("validate", "val"), ("test", "test")):
        (found,) = getattr(quiet_trainer(), run)(module, data, verbose=False)
        assert found[f"{prefix}_auroc"] == pytest.approx(wanted, abs=1e-6)
        names = ("loss", "accuracy", "auroc", "sensitivity", "specificity", "f1")
        assert found.keys() == {f"{prefix}_{name}" for name in (*names, "calibration_error")}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("task", "classes"), [("binary", 1), ("multilabel", 3), ("multiclass", 4)])
def test_the_loss_of_sixteen_bits_is_not_rounded_to_them(task, classes, dtype):
    logits, targets = drawn(task, 45, classes, 1, 0.3)
    logits = logits.to(dtype)
    data = DataLoader(TensorDataset(logits.reshape(45, -1, 1, 1), targets), batch_size=20)
    (found,) = quiet_trainer().test(classifier(task, classes, []), data, verbose=False)
    if task == "multiclass":
        wanted = nn.functional.cross_entropy(logits.double(), targets)
    else:
        given = logits.double().reshape(targets.shape)
        wanted = nn.functional.binary_cross_entropy_with_logits(given, targets.double())
    assert found["test_loss"] == pytest.approx(wanted.item(), rel=1e-6)


def test_training_accuracy_is_that_of_all_examples():
    logits = torch.cat([torch.linspace(-60, 60, 64), torch.tensor([0.3])])
    targets = (logits > 0).long()

    class Shown(ImageClassifier):
        def forward(self, images):
            return images.flatten(1) + 0 * self.network.head.weight.sum()

    module = Shown(
        "linear_classifier", num_classes=1, in_chans=1, task="binary", model_kwargs={"img_size": 2}
    )
    data = DataLoader(TensorDataset(logits.reshape(-1, 1, 1, 1), targets), batch_size=64)
    trainer = quiet_trainer(max_epochs=2)
    trainer.fit(module, data)
    assert float(trainer.callback_metrics["train_accuracy"]) == 1.0


def test_the_ensembles_metrics_are_those_of_its_mean_logits():
    seed_everything(3, verbose=False)
    members = [
        ImageClassifier(
            "linear_classifier",
            num_classes=1,
            in_chans=1,
            task="binary",
            model_kwargs={"img_size": 4},
        )
        for _ in range(3)
    ]
    images, targets = torch.randn(60, 1, 4, 4), torch.arange(60) % 2
    with torch.no_grad():
        mean = torch.stack([member(images) for member in copy.deepcopy(members)]).mean(0)[:, 0]
    data = DataLoader(TensorDataset(images, targets), batch_size=1)
    (found,) = quiet_trainer().test(EnsembleModule(members), data, verbose=False)
    assert found["test_auroc"] == pytest.approx(auroc_by_hand("binary", mean, targets), abs=1e-6)


def test_it_comes_back_with_its_metrics(tmp_path):
    metrics = ["accuracy", {"class_path": "torchmetrics.classification.MulticlassF1Score"}]
    module = ImageClassifier(
        "linear_classifier", 3, 1, metrics=metrics, model_kwargs={"img_size": 2}
    )
    trainer = quiet_trainer(max_epochs=1)
    data = DataLoader(TensorDataset(torch.randn(9, 1, 2, 2), torch.arange(9) % 3), batch_size=4)
    trainer.fit(module, data, data)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    loaded = ImageClassifier.load_from_checkpoint(tmp_path / "a.ckpt")
    (found,) = quiet_trainer().validate(loaded, data, verbose=False)
    assert "val_MulticlassF1Score" in found
    assert copy.deepcopy(loaded).val_metrics.keys() == loaded.val_metrics.keys()


def test_a_soup_is_searched_by_the_auroc_of_all_examples(tmp_path):
    seed_everything(1, verbose=False)
    shape = {"num_classes": 1, "in_chans": 1, "model_kwargs": {"img_size": 4}}
    images = torch.randn(40, 1, 4, 4)
    targets = (images.mean((1, 2, 3)) + 0.1 * torch.randn(40) > 0).long()
    data = DataLoader(TensorDataset(images, targets), batch_size=3)
    soup = GreedySoup("val_auroc", dirpath=tmp_path)
    module = ImageClassifier("linear_classifier", task="binary", **shape)
    quiet_trainer(max_epochs=3, callbacks=[soup]).fit(module, data, data)
    loaded = ImageClassifier.load_from_checkpoint(soup.best_path, weights_only=True).eval()
    with torch.no_grad():
        wanted = auroc_by_hand("binary", loaded(images)[:, 0], targets)
    assert soup.best_score == pytest.approx(wanted, abs=1e-6)


def test_there_is_no_warning_where_all_classes_occur():
    logits, targets = drawn("multiclass", 60, 3, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        computed("multiclass", 3, ["accuracy", "auroc", "medical"], logits, targets, [60])
