"""Pieces of one folder are made with the same data, or the folder goes no further."""

import numpy as np
import pytest
from made_data import classes, write_medmnist
from unrendered import unrendered

from lightning_merge import run_study, run_tasks
from lightning_merge.errors import DataError
from lightning_merge.study.same_data import data_of
from lightning_merge.study.store import Store
from lightning_merge.study_verbs import join

MODEL = {"model": "linear_classifier", "in_chans": 1, "model_kwargs": {"img_size": 28}}


@pytest.fixture(autouse=True)
def _drawn_only():
    with unrendered():
        yield


def data(folder, name="breastmnist", **arguments):
    arguments = {"name": name, "root": str(folder), "batch_size": 8, **arguments}
    return {"class_path": "MedMNISTDataModule", "init_args": arguments}


def study(folder, seeds, **changes):
    return {
        "model": {"class_path": "ImageClassifier", "init_args": {**MODEL, "num_classes": 2}},
        "data": data(folder),
        "training": {"max_epochs": 1},
        "recipes": [{"name": "Mean", "aggregate": "Average"}],
        "seeds": seeds,
        **changes,
    }


def with_labels(folder, change, name="breastmnist"):
    """Writes the set again with other labels, as made by `change` from a split's name and them."""
    path = folder / f"{name}.npz"
    arrays = dict(np.load(path))
    for split in ("train", "val", "test"):
        arrays[f"{split}_labels"] = change(split, arrays[f"{split}_labels"])
    np.savez(path, **arrays)


def flipped(changed):
    """Two labels of one split change places: there are as many of each class as before."""
    return lambda split, labels: (
        labels[[1, 0, *range(2, len(labels))]] if split in changed else labels
    )


@pytest.mark.parametrize("changed", ["train", "val", "test"])
def test_labels_of_each_split_are_noted(changed, tmp_path):
    write_medmnist(tmp_path, "breastmnist", (28, 28), classes(2))
    config, store = data(tmp_path, held_out=0.0, split_seed=0), Store(tmp_path / "runs")
    data_of(config, store)
    with_labels(tmp_path, flipped(changed))
    # Of another seed, and of another part, the files are the same.
    divided = {"split": "random", "part": 1, "split_seed": 3}
    for arguments in ({}, {"split_seed": 2}, {"part": None}):
        other = {**config, "init_args": {**config["init_args"], **arguments}}
        with pytest.raises(DataError, match=r"runs: MedMNISTDataModule has other labels, or more"):
            data_of(other, store)
    data_of({**config, "init_args": {**config["init_args"], **divided}}, store)
    with_labels(tmp_path, flipped(changed))
    data_of(config, store)


def test_a_damaged_note_is_written_anew(tmp_path):
    write_medmnist(tmp_path, "breastmnist", (28, 28), classes(2))
    config, store = data(tmp_path), Store(tmp_path / "runs")
    data_of(config, store)
    (note,) = store.folder.glob("data-*.json")
    whole = note.read_text()
    for damaged in ("", "[1]", "{}", whole[: len(whole) // 2]):
        note.write_text(damaged)
        data_of(config, store)
        assert note.read_text() == whole


def test_a_merge_of_networks_that_were_trained_on_other_images_is_none(tmp_path):
    write_medmnist(tmp_path, "breastmnist", (28, 28), classes(2))
    parts = [{"split": "random", "part": part} for part in (0, 1)]
    run_study(study(tmp_path, [0], ingredients=parts), tmp_path / "out")
    path = tmp_path / "breastmnist.npz"
    arrays = dict(np.load(path))
    np.savez(path, **arrays | {f"test_{x}": arrays[f"test_{x}"][1:] for x in ("images", "labels")})
    recipes = [{"name": "Ensemble", "aggregate": "LogitsEnsemble"}]
    with pytest.raises(DataError, match="more or fewer images"):
        run_study(study(tmp_path, [0], ingredients=parts, recipes=recipes), tmp_path / "out")


def test_tasks_go_no_further_on_other_labels(tmp_path):
    names = ("breastmnist", "pneumoniamnist")
    small = {**MODEL, "model": "resnet20_cifar", "model_kwargs": {"width": 1}}
    for name in names:
        write_medmnist(tmp_path, name, (28, 28), classes(2))
    config = {
        "model": {"class_path": "ImageClassifier", "init_args": small},
        "pretraining": {"data": data(tmp_path), "trainer": {"max_epochs": 1}},
        "training": {"max_epochs": 1},
        "tasks": [{"name": name, "data": data(tmp_path, name)} for name in names],
        "recipes": [{"name": "Mean", "aggregate": "Average"}],
    }
    run_tasks(config, tmp_path / "out")
    with_labels(tmp_path, flipped("test"), names[1])
    config["recipes"].append({"name": "Sum", "aggregate": "TaskArithmetic"})
    with pytest.raises(DataError, match="other labels"):
        run_tasks(config, tmp_path / "out")


def test_folders_of_other_data_are_not_joined(tmp_path):
    write_medmnist(tmp_path, "breastmnist", (28, 28), classes(2))
    folders = [tmp_path / f"out{seed}" for seed in range(2)]
    run_study(study(tmp_path, [0]), folders[0])
    with_labels(tmp_path, flipped("test"))
    run_study(study(tmp_path, [1]), folders[1])
    with pytest.raises(DataError, match=r"out1.* was made with data that have other labels"):
        join(folders, tmp_path / "all")
    # What was joined goes no further on other labels either.
    assert join(folders[:1], tmp_path / "one").left == 0
    with pytest.raises(DataError, match="other labels"):
        run_study(study(tmp_path, [0, 1]), tmp_path / "one")
