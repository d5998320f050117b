from types import SimpleNamespace

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import nn

from lightning_merge.data import (
    ClassificationDataModule,
    DigitsDataModule,
    LabelledImages,
    OfficialSplits,
    splits,
)
from lightning_merge.errors import ConfigError, DataError


class Squares(ClassificationDataModule):
    """Grey squares in memory: `count` of them, and a count of how often they were read."""

    reads = 0

    def __init__(self, count=41, multilabel=False, val=False, **kwargs):
        super().__init__(**kwargs)
        self.count, self.val = count, val
        self.num_classes, self.in_chans, self.image_size = 4, 1, 16
        self.task = "multilabel" if multilabel else "multiclass"

    def load_splits(self):
        self.reads += 1
        val = self.squares(7, 2) if self.val else None
        return OfficialSplits(train=self.squares(self.count, 0), test=self.squares(9, 1), val=val)

    def squares(self, count, seed):
        generator = torch.Generator().manual_seed(seed)
        images = torch.randint(1, 256, (count, 1, 16, 16), dtype=torch.uint8, generator=generator)
        targets = torch.arange(count) % 4
        if self.task == "multilabel":
            targets = nn.functional.one_hot(targets, 4).float()
        return LabelledImages(images, targets)


def chosen(dm):
    return set(dm.train_set.indices.tolist())


def collect(loader):
    images, targets = zip(*loader, strict=True)
    return torch.cat(images), torch.cat(targets)


def ready(**kwargs):
    dm = Squares(**kwargs)
    dm.setup("fit")
    return dm


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"count": 41, "held_out": 0.01}, "held_out 0.01 is less than one example: none"),
        ({"count": 41, "held_out": 0.01, "val": True}, "less than one example: none"),
        ({"count": 41, "held_out": 0.01, "multilabel": True}, "less than one example: none"),
        # Eleven of class 0, ten of the others.
        (
            {"count": 41, "held_out": 0.049},
            "held_out 0.049 is less than one example of 1, 2, 3: none of it",
        ),
    ],
)
def test_a_class_of_which_no_example_can_be_held_out_is_named(arguments, words):
    with pytest.warns(UserWarning, match=words):
        ready(**arguments)


def test_nothing_is_said_where_all_classes_are_held_out_or_none_is_to_be(recwarn):
    for arguments in ({"held_out": 0.1}, {"held_out": 0.0}, {"held_out": 0.0, "val": True}):
        ready(**arguments)
    ready(held_out=0.1, multilabel=True)
    assert not recwarn.list


def test_setup_reads_once_and_loaders_need_no_call_of_it():
    dm = Squares()
    dm.train_dataloader()
    dm.setup("fit")
    dm.setup("test")
    assert dm.reads == 1


@pytest.mark.parametrize("split", ["random", "80-20", "dirichlet"])
def test_parts_and_held_out_cover_train_exactly(split):
    parts = [ready(count=200, split=split, part=part, split_seed=3) for part in (0, 1)]
    held = [set(dm.val_set.indices.tolist()) for dm in parts]
    assert held[0] == held[1]
    assert len(held[0]) == 20
    first, second = map(chosen, parts)
    assert first | second | held[0] == set(range(200))
    assert len(first) + len(second) + len(held[0]) == 200
    whole = ready(count=200, split=split, split_seed=3)
    assert chosen(whole) == first | second
    assert whole.num_train_examples == len(first | second)


def test_both_parts_share_the_statistics_of_all_of_train():
    parts = [ready(split="80-20", part=part, held_out=0.3) for part in (0, 1)]
    pixels = parts[0].train_set.source.images.numpy() / 255
    for dm in parts:
        assert dm.normalisation.mean == pytest.approx([pixels.mean()])
        assert dm.normalisation.std == pytest.approx([pixels.std()])


def test_examples_per_class_come_from_the_part_and_are_nested():
    part = ready(count=200, split="80-20", part=0)
    one, five = (ready(count=200, split="80-20", part=0, examples_per_class=k) for k in (1, 5))
    assert one.num_train_examples == 4
    assert five.num_train_examples == 20
    assert chosen(one) < chosen(five) < chosen(part)


def test_split_hash_tells_what_was_trained_on():
    base = ready().split_hash
    assert len(base) == 64
    assert ready(batch_size=5, augment=False).split_hash == base
    others = [
        ready(split_seed=1),
        ready(held_out=0.2),
        ready(examples_per_class=2),
        ready(split="80-20", part=0),
        ready(split="80-20", part=1),
        ready(count=42),
    ]
    hashes = {dm.split_hash for dm in others}
    assert len(hashes) == len(others)
    assert base not in hashes


def test_split_hash_depends_on_the_labels(monkeypatch):
    base = ready(held_out=0.0).split_hash
    squares = Squares.squares

    def relabelled(self, count, seed):
        data = squares(self, count, seed)
        return LabelledImages(data.images, 3 - data.targets)

    monkeypatch.setattr(Squares, "squares", relabelled)
    assert ready(held_out=0.0).split_hash != base


def test_split_hash_depends_on_what_was_held_out(monkeypatch):
    hashes = set()
    for held in (39, 40):
        divided = np.arange(30), np.array([held])
        monkeypatch.setattr(splits, "hold_out", lambda *_, divided=divided: divided)
        hashes.add(ready().split_hash)
    assert len(hashes) == 2


def test_validation_is_held_out_else_official_else_nothing():
    assert len(ready(count=40, val=True).val_set) == 4
    official = ready(val=True, held_out=0.0)
    images, _ = collect(official.val_dataloader())
    assert torch.equal(images, official.normalisation(official.squares(7, 2).images))
    nothing = ready(held_out=0.0)
    assert nothing.val_set is None
    assert nothing.val_dataloader() == []
    assert nothing.num_train_examples == 41


def test_only_training_images_are_augmented():
    torch.manual_seed(0)
    dm = ready(val=True, batch_size=8)
    plain = {
        "statistics_dataloader": (dm.train_set.source, dm.train_set.indices),
        "val_dataloader": (dm.val_set.source, dm.val_set.indices),
        "test_dataloader": (dm.test_set.source, torch.arange(9)),
        "predict_dataloader": (dm.test_set.source, torch.arange(9)),
    }
    for name, (source, indices) in plain.items():
        images, targets = collect(getattr(dm, name)())
        assert torch.equal(images, dm.normalisation(source.images[indices])), name
        assert torch.equal(targets, source.targets[indices]), name


def test_training_images_are_shifted_by_an_eighth_at_most_and_not_mirrored():
    torch.manual_seed(0)
    dm = ready(held_out=0.0, count=40)
    dm.train_set.normalisation = torch.Tensor.float
    images = torch.stack([dm.train_set[0][0] for _ in range(300)])
    original = dm.train_set.source.images[0, 0].float()
    shifts = set()
    for image in images[:, 0]:
        hits = [
            (y, x)
            for y in range(-3, 4)
            for x in range(-3, 4)
            if torch.equal(image, shifted(original, y, x))
        ]
        assert len(hits) == 1
        shifts.add(hits[0])
    assert shifts == {(y, x) for y in range(-2, 3) for x in range(-2, 3)}


def shifted(image, y, x):
    result = torch.zeros_like(image)
    height, width = image.shape
    result[max(y, 0) : height + min(y, 0), max(x, 0) : width + min(x, 0)] = image[
        max(-y, 0) : height + min(-y, 0), max(-x, 0) : width + min(-x, 0)
    ]
    return result


def test_augment_false_gives_training_images_as_they_are():
    dm = ready(augment=False, held_out=0.0)
    image, _ = dm.train_set[5]
    assert torch.equal(image, dm.normalisation(dm.train_set.source.images)[5])


def test_training_order_changes_and_follows_torchs_seed():
    dm = ready(count=100)
    orders = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        orders.append(collect(dm.train_dataloader())[1].tolist())
    assert orders[0] == orders[1] != orders[2]
    torch.manual_seed(0)
    loader = dm.train_dataloader()
    assert collect(loader)[1].tolist() != collect(loader)[1].tolist()


@pytest.mark.parametrize(
    ("count", "batch_size", "processes", "seen"),
    [
        (41, 8, 1, 40),  # a last batch of one is dropped
        (42, 8, 1, 42),
        (1, 8, 1, 1),  # but never the only one
        (5, 1, 1, 5),
        (9, 4, 2, 8),  # five each: the fifth is alone
    ],
)
def test_only_a_last_batch_of_one_is_dropped(count, batch_size, processes, seen):
    dm = Squares(count=count, batch_size=batch_size, held_out=0.0)
    dm.trainer = SimpleNamespace(world_size=processes)
    loader = dm.train_dataloader()
    assert loader.drop_last == (seen < count)
    if processes == 1:
        assert sum(len(images) for images, _ in loader) == seen
    assert len(collect(dm.statistics_dataloader())[0]) == count


def test_eval_batch_size_is_for_all_but_training():
    dm = ready(batch_size=5, eval_batch_size=11, val=True)
    assert dm.train_dataloader().batch_size == 5
    for name in ("val", "test", "predict", "statistics"):
        assert getattr(dm, f"{name}_dataloader")().batch_size == 11
    assert ready(batch_size=5).test_dataloader().batch_size == 5


def test_workers_give_the_same_batches():
    alone, helped = (collect(ready(num_workers=n).statistics_dataloader()) for n in (0, 1))
    assert torch.equal(alone[0], helped[0])
    assert torch.equal(alone[1], helped[1])


def test_multilabel_targets_are_float_and_split_at_random():
    dm = ready(multilabel=True, split="random", part=1, held_out=0.2)
    _, targets = next(iter(dm.train_dataloader()))
    assert targets.dtype == torch.float32
    assert targets.shape[1] == 4
    with pytest.raises(DataError, match="dirichlet"):
        ready(multilabel=True, split="dirichlet", part=0)


def test_a_part_without_examples_is_refused():
    with pytest.raises(DataError, match="part 4 of split 'random' has no examples"):
        ready(count=4, held_out=0.0, split="random", parts=5, part=4)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"part": 2}, "part is 2 of 2"),
        ({"part": -1}, "part is -1"),
        ({"split": "half"}, "'half' is unknown"),
        ({"split": "80-20", "parts": 4}, "exactly 2"),
        ({"held_out": 1.0}, "held_out is 1.0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"eval_batch_size": 0}, "eval_batch_size is 0"),
        ({"examples_per_class": 0}, "examples_per_class is 0"),
        ({"split_seed": -3}, "split_seed is -3"),
    ],
)
def test_arguments_out_of_range_are_refused_at_once(arguments, words):
    with pytest.raises(ConfigError, match=words) as error:
        Squares(**arguments)
    assert "\n" not in str(error.value)


class Linear(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        self.seen = {"training": [], "validation": [], "test": [], "predict": []}

    def step(self, stage, batch):
        image, target = batch
        self.seen[stage].append(len(image))
        return nn.functional.cross_entropy(self.network(image), target)

    def training_step(self, batch):
        return self.step("training", batch)

    def validation_step(self, batch):
        self.step("validation", batch)

    def test_step(self, batch):
        self.step("test", batch)

    def predict_step(self, batch):
        self.seen["predict"].append(len(batch[0]))
        return self.network(batch[0]).argmax(1)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.05)


@pytest.mark.parametrize(("held_out", "validated"), [(0.1, 143), (0.0, 0)])
def test_digits_through_the_trainer(held_out, validated):
    torch.manual_seed(0)
    dm, model = DigitsDataModule(held_out=held_out, augment=False), Linear()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=3,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, datamodule=dm)
    trainer.test(model, datamodule=dm, verbose=False)
    predicted = torch.cat(trainer.predict(model, datamodule=dm))
    assert sum(model.seen["training"]) == 3 * (1438 - validated)
    assert sum(model.seen["validation"]) == 3 * validated
    assert sum(model.seen["test"]) == sum(model.seen["predict"]) == 359
    assert (predicted == dm.test_set.targets).float().mean() > 0.85


def test_digits_are_scikit_learns_and_the_test_split_is_fixed():
    from sklearn.datasets import load_digits

    one, other = DigitsDataModule(), DigitsDataModule(split_seed=9, held_out=0.3)
    one.setup("fit")
    other.setup("fit")
    assert torch.equal(one.test_set.source.images, other.test_set.source.images)
    counts = np.bincount(load_digits().target)
    assert one.test_set.targets.bincount().tolist() == [round(0.2 * count) for count in counts]
    together = torch.cat([one.train_set.source.images, one.test_set.source.images])
    originals = {image.tobytes() for image in load_digits().images.astype(np.uint8)}
    assert {image.tobytes() for image in (together.squeeze(1) // 15).numpy()} == originals
    assert len(together) == 1797
    assert (one.num_classes, one.in_chans, one.image_size, one.task) == (10, 1, 8, "multiclass")
    assert one.class_names == list("0123456789")
    assert (one.train_set.padding, one.train_set.flip) == (1, False)
