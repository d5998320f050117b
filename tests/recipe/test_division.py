"""Networks trained on another division of the images than the one that they are measured on."""

import json
import warnings

import numpy as np
import pytest
from lightning.pytorch import Trainer
from PIL import Image

from lightning_merge import (
    DigitsDataModule,
    ImageClassifier,
    ImageFolderDataModule,
    Study,
    TaskStudy,
    compare,
    run_tasks,
)
from lightning_merge.checkpoint import read_checkpoint
from lightning_merge.data.splits import digest_of_examples
from lightning_merge.study.checks import check_recipes
from lightning_merge.study.task_checks import check_work

MEAN = [{"name": "Mean", "aggregate": "Average"}]


def trained(data, path, classes=10, size=8):
    module = ImageClassifier("linear_classifier", classes, 1, model_kwargs={"img_size": size})
    trainer = Trainer(
        max_steps=1, logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    trainer.fit(module, datamodule=data)
    trainer.save_checkpoint(path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for name in ("cats", "dogs"):
        (root / name).mkdir()
        for i in range(12):
            pixels = generator.integers(0, 256, (8, 8), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return root


def of_folder(root, **settings):
    return ImageFolderDataModule(
        root, image_size=8, in_chans=1, batch_size=8, **{"test_fraction": 0.25, **settings}
    )


@pytest.mark.parametrize(
    ("now", "named"),
    [
        ({"held_out": 0.3}, "held_out 0.2 (now 0.3)"),
        ({"split_seed": 5}, "split_seed 0 (now 5)"),
        ({"held_out": 0.0}, "held_out 0.2 (now 0.0), split_seed 0 (now None)"),
    ],
)
def test_another_division_of_a_set_is_named(tmp_path, now, named):
    paths = [
        trained(DigitsDataModule(held_out=0.2), tmp_path / f"{name}.ckpt") for name in ("a", "b")
    ]
    data = DigitsDataModule(**{"held_out": 0.2, **now})
    with pytest.warns(UserWarning, match="another division") as caught:
        compare(paths, MEAN, data)
    said = [str(one.message) for one in caught if "another division" in str(one.message)]
    assert len(said) == 2
    assert all(named in one for one in said)


@pytest.mark.parametrize("now", [{"test_fraction": 0.5}, {"test_seed": 3}])
def test_test_images_that_were_trained_on_are_noticed(tmp_path, folder, now):
    path = trained(of_folder(folder), tmp_path / "a.ckpt", classes=2)
    name = next(iter(now))
    with pytest.warns(UserWarning, match=rf"{name} .* \(now {now[name]}\)"):
        compare([path, path], MEAN, of_folder(folder, **now))


def test_the_same_division_parts_and_other_images_are_no_reason(tmp_path, folder):
    ours = DigitsDataModule(held_out=0.2, split="80-20", part=1)
    paths = [trained(ours, tmp_path / "part.ckpt"), tmp_path / "other.ckpt"]
    # Ten classes too, and other images: cats and dogs among them.
    trained(of_folder(folder, held_out=0.4), paths[1], classes=10)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*another division.*")
        compare(paths, MEAN, DigitsDataModule(held_out=0.2))


def test_a_merge_remembers_the_division(tmp_path):
    data = DigitsDataModule(held_out=0.2)
    path = trained(data, tmp_path / "a.ckpt")
    compare([path, path], MEAN, data, output=tmp_path / "out")
    merged = tmp_path / "out/merges/mean.ckpt"
    with pytest.warns(UserWarning, match="held_out 0.2"):
        compare([merged, merged], MEAN, DigitsDataModule(held_out=0.1))


def test_examples_are_the_same_however_they_are_divided():
    labels = np.random.default_rng(0).integers(0, 5, 40)
    tags = np.random.default_rng(1).integers(0, 2, (40, 3))
    for every in (labels, tags):
        first, second = digest_of_examples([every]), digest_of_examples([every[30:], every[:30]])
        assert first == second
        assert digest_of_examples([every[1:]]) != first


def test_ingredients_of_a_study_that_train_on_what_is_held_out_are_named():
    kind = {"class_path": "lightning_merge.DigitsDataModule", "init_args": {"split_seed": 0}}
    linear = {"model": "linear_classifier", "num_classes": 10, "in_chans": 1}
    study = Study(
        data=kind,
        model={"class_path": "lightning_merge.ImageClassifier", "init_args": linear},
        recipes=MEAN,
        ingredients=[{"split": "random", "part": 0}, {"held_out": 0.0}, {"split_seed": 7}],
    )
    with pytest.warns(UserWarning, match="another division") as caught:
        check_recipes(study, [])
    said = [str(one.message) for one in caught if "another division" in str(one.message)]
    assert [one.split(" was trained")[0] for one in said] == ["Ingredient 2", "Ingredient 3"]
    assert "held_out 0.0 (now 0.1)" in said[0]
    assert "split_seed 7 (now 0)" in said[1]


def test_checkpoints_of_tasks_are_held_against_the_data(tmp_path):
    def tasks(checkpoints=(None, None), **data):
        kept = {"class_path": "lightning_merge.DigitsDataModule", "init_args": {"split_seed": 0}}
        kept["init_args"] |= {"examples_per_class": 2, **data}
        kind = {"model": "resnet20_cifar", "in_chans": 1, "model_kwargs": {"depth": 1}}
        return {
            "tasks": [
                {"name": name, "data": kept, "checkpoint": path}
                for name, path in zip("ab", checkpoints, strict=True)
            ],
            "model": {"class_path": "lightning_merge.ImageClassifier", "init_args": kind},
            "pretraining": {"data": kept, "trainer": {"max_steps": 1}},
            "training": {"max_steps": 1},
            "trainer": {"accelerator": "cpu", "limit_test_batches": 1},
            "recipes": MEAN,
        }

    run_tasks(tasks(held_out=0.2), tmp_path / "made", progress=False)
    results = json.loads((tmp_path / "made/results.json").read_text())
    keys = {one["task"]: key for key, one in results["ingredients"].items()}
    paths = [str(tmp_path / "made/runs" / keys[name] / "weights.ckpt") for name in "ab"]
    for again in ({"held_out": 0.2}, {"held_out": 0.3}):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            check_work(TaskStudy(**tasks(paths, **again)), [])
        said = [str(one.message) for one in caught if "another division" in str(one.message)]
        assert len(said) == 2 * (again["held_out"] == 0.3)
    assert said[0].startswith("a was trained")
    assert "held_out 0.2 (now 0.3)" in said[0]
    names = read_checkpoint(paths[0]).content["preprocessing"]["label_names"]
    assert names == [str(digit) for digit in range(10)]
