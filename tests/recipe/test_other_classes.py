"""Networks whose outputs stand for other classes than the data's, or than one another's."""

import warnings

import pytest
import torch
from strangers import quiet_trainer
from tiny_contexts import Points

from lightning_merge import ImageClassifier, MergeModule
from lightning_merge.commands.average import average
from lightning_merge.recipe.opening import open_context

ANIMALS = ["cat", "dog", "eel", "fox"]
TURNED = ANIMALS[::-1]
NUMBERS = [str(number) for number in range(4)]


def network(path, names, seed=0):
    """A checkpoint with the names of its classes, as `fit` writes it."""
    torch.manual_seed(seed)
    settings = {"model": "linear_classifier", "num_classes": len(names), "in_chans": 1}
    settings["model_kwargs"] = {"img_size": 2}
    prepared = {"input_size": [1, 2, 2], "mean": [0.5], "std": [0.5], "label_names": names}
    state = ImageClassifier(**settings).state_dict()
    content = {"state_dict": state, "hyper_parameters": settings, "preprocessing": prepared}
    torch.save(content, path)
    return path


def said(tmp_path, first, second, data_names=None, heads=None):
    data = Points()
    if data_names is not None:
        data.class_names = data_names
    paths = [network(tmp_path / f"{k}.ckpt", one, k) for k, one in enumerate((first, second))]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        open_context(paths, data, quiet_trainer, heads=heads)
    return [str(one.message) for one in caught if "output " in str(one.message)]


@pytest.mark.parametrize("names", [None, ANIMALS, NUMBERS])
def test_the_same_classes_are_nothing_to_speak_of(tmp_path, names):
    assert said(tmp_path, ANIMALS, ANIMALS, names) == []
    assert said(tmp_path, NUMBERS, ANIMALS, names) == []
    # An e with an accent as one character, and as two.
    assert said(tmp_path, ["\u00e9", "z"], ["e\u0301", "z"]) == []


def test_another_order_than_the_datas_is_named(tmp_path):
    (line,) = said(tmp_path, ANIMALS, TURNED, ANIMALS)
    assert line.startswith(f"output 0 is '{TURNED[0]}' for 1 and '{ANIMALS[0]}' for the data")
    assert len(said(tmp_path, TURNED, TURNED, ANIMALS)) == 2


def test_another_order_than_the_first_networks_is_named(tmp_path):
    (line,) = said(tmp_path, ANIMALS, TURNED)
    assert line.startswith(f"output 0 is '{TURNED[0]}' for 1 and '{ANIMALS[0]}' for 0")


def test_of_one_shared_head_the_firsts_classes_count(tmp_path):
    others = ["gnu", *ANIMALS[1:]]
    assert said(tmp_path, ANIMALS, others, ANIMALS, heads=".*fc.*|.*head.*|.*weight|.*bias") == []


def test_heads_side_by_side_are_in_the_networks_order(tmp_path):
    first, second = ANIMALS[:2], ANIMALS[2:]
    assert said(tmp_path, first, second, ANIMALS, heads="join") == []
    (line,) = said(tmp_path, second, first, ANIMALS, heads="join")
    assert line.startswith(f"output 0 is '{second[0]}' for the head of all and '{ANIMALS[0]}'")


@pytest.mark.parametrize("way", ["average", "MergeModule"])
@pytest.mark.parametrize(("names", "count"), [(ANIMALS, 0), (TURNED, 1)])
def test_files_that_are_merged_without_data(way, names, count, tmp_path):
    paths = [network(tmp_path / "a.ckpt", ANIMALS), network(tmp_path / "b.ckpt", names, 1)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if way == "average":
            average([*map(str, paths), "-o", str(tmp_path / "c.ckpt")])
        else:
            MergeModule(ImageClassifier(**torch.load(paths[0])["hyper_parameters"]), paths)
    said = [str(one.message) for one in caught if "output " in str(one.message)]
    assert len(said) == count
    assert all("'fox'" in one and "'cat'" in one and "b.ckpt" in one for one in said)
