"""What networks answer for each test example, recorded from modules as people write them."""

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningDataModule
from sklearn.metrics import confusion_matrix
from strangers import quiet_trainer
from tiny_contexts import Perceptron, Points, trained
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from lightning_merge.measure.guessing import majority
from lightning_merge.measure.measurement import measure
from lightning_merge.measure.recommendation import recommend
from lightning_merge.modules import EnsembleModule, ImageClassifier
from lightning_merge.report.confusion_matrices import confusion_matrices


class PartOnly(Perceptron):
    """Never calls itself, but its network."""

    def _log(self, batch, part):
        x, y = batch
        self.log(f"{part}_acc", (self.net(x).argmax(1) == y).float().mean())


class Returning(Perceptron):
    """Computes outside of any part, and returns what it found."""

    def test_step(self, batch, batch_idx):
        hidden = batch[0]
        for layer in self.net[:-1]:
            hidden = layer(hidden)
        logits = nn.functional.linear(hidden, self.net[-1].weight, self.net[-1].bias)
        self.log("test_acc", (logits.argmax(1) == batch[1]).float().mean())
        return {"preds": logits.argmax(1)}


class InColumns(Returning):
    """Returns a column of classes."""

    def test_step(self, batch, batch_idx):
        return {"preds": super().test_step(batch, batch_idx)["preds"][:, None]}


class Generous(Perceptron):
    """Counts the second guess as well."""

    def _log(self, batch, part):
        near = self(batch[0]).topk(2).indices == batch[1][:, None]
        self.log(f"{part}_acc", near.any(1).float().mean())


class CountedPoints(Points):
    """Counts how often the test set is read."""

    reads = 0

    def test_dataloader(self):
        self.reads += 1
        return super().test_dataloader()


def measured(module, data=None):
    return measure(module, data or Points(), quiet_trainer(), "x", "merge", None, 0, None)


def with_weights(kind):
    module = kind()
    module.load_state_dict(trained(0).state_dict())
    return module.eval()


def of(points, module):
    x, y = points.dataset.tensors
    with torch.no_grad():
        return y.numpy(), module(x).argmax(1).numpy()


@pytest.mark.parametrize("kind", [Perceptron, PartOnly, Returning, InColumns])
def test_answers_are_those_of_the_network(kind):
    module, data = with_weights(kind), CountedPoints()
    truth, predicted = of(data._points(3, 80), module)
    row = measured(module, data)
    np.testing.assert_array_equal(row.answers.targets, truth)
    np.testing.assert_array_equal(row.answers.predicted, predicted)
    np.testing.assert_array_equal(row.answers.right, truth == predicted)
    assert row.interval == "bootstrap"
    assert row.accuracy_low < row.accuracy < row.accuracy_high
    truth, predicted = of(data.val_dataloader(), module)
    assert row.held_out == pytest.approx((truth == predicted).mean())
    assert row.held_out_examples == 70
    assert data.reads == 1
    assert not any(part._forward_hooks for part in module.modules())


def test_an_ensemble_answers_as_one_network():
    members = [trained(seed) for seed in range(3)]
    x, _ = Points().test_dataloader().dataset.tensors
    with torch.no_grad():
        expected = torch.stack([member(x) for member in members]).mean(0).argmax(1)
    row = measured(EnsembleModule(members))
    np.testing.assert_array_equal(row.answers.predicted, expected.numpy())


def test_an_accuracy_of_another_kind_is_not_taken_for_the_answers():
    row = measured(with_weights(Generous))
    assert row.answers is None
    assert row.interval == "Wilson"


def test_the_most_frequent_class_is_that_of_training():
    train, test = (
        Points().statistics_dataloader().dataset.tensors[1],
        of(Points().test_dataloader(), trained(0))[0],
    )
    frequent = int(train.bincount().argmax())
    assert measured(with_weights(Perceptron)).majority == pytest.approx((test == frequent).mean())


class OneByOne(Dataset):
    """Gives inputs as a batch of one, and the class as a number without dimensions."""

    def __init__(self, examples):
        self.examples = examples

    def __len__(self):
        return len(self.examples)

    def __getitem__(self, index):
        x, y = self.examples[index]
        return x[None], y


class Unbatched(Points):
    """The points without batches."""

    def test_dataloader(self):
        return DataLoader(OneByOne(super().test_dataloader().dataset), batch_size=None)


class Unflattened(Perceptron):
    """Takes classes without dimensions, too."""

    def test_step(self, batch, batch_idx):
        x, y = batch
        return super().test_step((x, y.reshape(-1)), batch_idx)


def test_a_class_without_dimensions_is_that_of_one_example():
    module, data = with_weights(Unflattened), Unbatched()
    row = measured(module, data)
    truth, predicted = of(Points().test_dataloader(), module)
    np.testing.assert_array_equal(row.answers.targets, truth)
    np.testing.assert_array_equal(row.answers.predicted, predicted)


class Parity(Dataset):
    """Keeps the classes that its files have, as torchvision's sets do, and gives others."""

    targets = (9, 9, 9, 1, 2, 2)

    def target_transform(self, target):
        return target % 2


class OfLabels(Dataset):
    """Keeps each example's labels in a list of its own."""

    labels = ((0,), (1, 2))


@pytest.mark.parametrize(
    ("trained_on", "tested_on", "wanted"),
    [
        # What is rare in training is frequent in the test: labels, and one label in a column.
        (TensorDataset(torch.zeros(4, 1), torch.ones(4, 2)), [[0, 1], [0, 0], [0, 0]], 1 / 6),
        (TensorDataset(torch.zeros(4, 1), torch.ones(4, 1)), [[0], [0], [1]], 1 / 3),
        (TensorDataset(torch.zeros(4, 1), torch.ones(4, 1).long()), [0, 0, 1], 1 / 3),
        (Subset(TensorDataset(torch.zeros(4, 1), torch.eye(4)), [1, 1]), [[1, 0, 0, 0]], 2 / 4),
        # Where it cannot be told, the test labels decide.
        (TensorDataset(torch.zeros(4, 1), torch.full((4, 1), 0.3)), [[0], [0], [1]], 2 / 3),
        (Parity(), [1, 1, 0], 2 / 3),
        (OfLabels(), [1, 1, 0], 2 / 3),
        # What tests leave out, or -1 and 1.
        (Parity(), [1, 1, -100], None),
        (TensorDataset(torch.zeros(4, 1), torch.ones(4, 1).long()), [1, 1, -100], None),
    ],
)
def test_the_most_frequent_answer_of_any_training_set(trained_on, tested_on, wanted):
    data = LightningDataModule()
    data.train_dataloader = lambda: DataLoader(trained_on)
    assert majority(data, np.array(tested_on)) == pytest.approx(wanted)


def test_without_validation_data_nothing_is_held_out():
    row = measured(with_weights(Perceptron), Points(validated=False))
    assert (row.held_out, row.held_out_examples) == (None, 0)


class Several(Points):
    """Has its validation data in a list of so many loaders."""

    def __init__(self, loaders):
        super().__init__()
        self.loaders = loaders

    def val_dataloader(self):
        return [self._points(2, 70) for _ in range(self.loaders)]


def test_a_list_of_one_loader_is_held_out_and_of_two_is_not_measured():
    module = with_weights(Perceptron)
    plain, one, two = (measured(module, data) for data in (Points(), Several(1), Several(2)))
    assert (one.held_out, one.held_out_examples) == (plain.held_out, 70)
    assert (two.held_out, two.held_out_examples) == (None, None)
    assert recommend([two]).reason == ("No recommendation: these results have no held-out scores.")


class Images(LightningDataModule):
    """Grey images with targets of a task."""

    def __init__(self, targets):
        super().__init__()
        images = torch.randn(len(targets), 1, 8, 8, generator=torch.Generator().manual_seed(0))
        self.loader = DataLoader(TensorDataset(images, targets), batch_size=16)

    def train_dataloader(self):
        return self.loader

    def test_dataloader(self):
        return self.loader


@pytest.mark.parametrize(("task", "classes"), [("binary", 1), ("multilabel", 3)])
def test_other_tasks(task, classes):
    torch.manual_seed(0)
    shape = (40,) if task == "binary" else (40, classes)
    targets = (torch.rand(shape) > 0.3).long()
    module = ImageClassifier("linear_classifier", classes, 1, task, model_kwargs={"img_size": 8})
    row = measured(module.eval(), Images(targets))
    with torch.no_grad():
        found = module(row_images := Images(targets).loader.dataset.tensors[0]) > 0
    right = found.reshape(targets.shape).long() == targets
    assert len(row_images) == 40
    expected = right.double() if task == "binary" else right.double().mean(1)
    np.testing.assert_allclose(row.answers.right, expected.numpy())
    answer = targets.double().mean(0) > 0.5
    assert row.majority == pytest.approx(float((targets == answer).double().mean()))


def test_smoothed_labels_are_the_nearer_ones():
    labels = (torch.rand(40, 3, generator=torch.Generator().manual_seed(0)) > 0.7).long()
    torch.manual_seed(0)
    options = {"model_kwargs": {"img_size": 8}}
    module = ImageClassifier("linear_classifier", 3, 1, "multilabel", **options).eval()
    plain, smoothed = (measured(module, Images(one)) for one in (labels, 0.8 * labels + 0.1))
    np.testing.assert_array_equal(smoothed.answers.right, plain.answers.right)
    assert smoothed.answers.examples == plain.answers.examples
    assert smoothed.majority == plain.majority


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_probabilities_of_classes_are_no_labels(smoothing):
    classes = nn.functional.one_hot(torch.arange(40) % 5)
    targets = (1 - smoothing) * classes.float() + smoothing / 5
    torch.manual_seed(0)
    module = ImageClassifier("linear_classifier", 5, 1, model_kwargs={"img_size": 8}).eval()
    row = measured(module, Images(targets))
    assert row.answers is None
    assert row.majority is None


def test_confusion_matrices_count_over_seeds():
    rows = [measured(trained(seed)) for seed in range(2)]
    found = confusion_matrices(rows, ["a", "b", "c"])
    expected = sum(
        confusion_matrix(*of(Points().test_dataloader(), trained(seed))) for seed in range(2)
    )
    (matrix,) = found["matrices"]
    np.testing.assert_array_equal(matrix["counts"], expected)
    assert found["classes"] == ["a", "b", "c"]
    assert confusion_matrices(rows)["classes"] == ["0", "1", "2"]
    for row in rows:
        row.answers = None
    assert confusion_matrices(rows) is None


class OfSeveral(Perceptron):
    """Is tested on several loaders."""

    def test_step(self, batch, batch_idx, dataloader_idx=0):
        self._log(batch, "test")


class TwoTestSets(Points):
    """Test images in two loaders of 30 and of what is left."""

    def test_dataloader(self):
        test = super().test_dataloader().dataset
        parts = [Subset(test, range(30)), Subset(test, range(30, len(test)))]
        return [DataLoader(part, batch_size=16) for part in parts]


def test_the_accuracy_on_several_test_loaders_is_that_of_all_their_examples():
    module = with_weights(OfSeveral)
    whole, found = measured(with_weights(Perceptron)), measured(module, TwoTestSets())
    assert found.test_examples == whole.test_examples
    assert found.accuracy == pytest.approx(whole.accuracy)
    targets, predicted = of(Points().test_dataloader(), module)
    assert found.metrics["acc/dataloader_idx_0"] == pytest.approx(
        (targets == predicted)[:30].mean()
    )
    assert np.array_equal(found.answers.predicted, predicted)
