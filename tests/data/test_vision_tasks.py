"""The sets that CLIP is fine-tuned on: what was planted in their files is what is given."""

import numpy as np
import pytest
import torch
import yaml
from made_folders import write_mnist
from made_vision_sets import (
    write_dtd,
    write_eurosat,
    write_gtsrb,
    write_resisc45,
    write_stanford_cars,
    write_sun397,
    write_svhn,
)
from PIL import Image
from torchvision import transforms

from lightning_merge import MNISTDataModule, VisionTaskDataModule
from lightning_merge.data import class_texts, prompts, readable
from lightning_merge.data.sets.vision_readers import VISION_SETS
from lightning_merge.errors import ConfigError, DataError

WRITERS = {
    "sun397": write_sun397,
    "stanford_cars": write_stanford_cars,
    "resisc45": write_resisc45,
    "dtd": write_dtd,
    "gtsrb": write_gtsrb,
}
CLASSES = {
    "sun397": {0: "abbey", 1: "airplane cabin", 2: "indoor church", 3: "outdoor church"},
    "stanford_cars": {0: "Maker Model 0 2000", 195: "Maker Model 195 2000"},
    "resisc45": {0: "airplane", 1: "golf course", 44: "sea ice"},
    "dtd": {0: "banded", 1: "polka-dotted"},
    "gtsrb": {0: "speed limit of 20 km/h", 10: "no overtaking by lorries", 14: "stop"},
}


def pixels_of(dataset):
    """The images before normalisation, and their labels."""
    found = [dataset[index] for index in range(len(dataset))]
    mean = torch.tensor(dataset.normalisation.mean).view(-1, 1, 1)
    std = torch.tensor(dataset.normalisation.std).view(-1, 1, 1)
    return [(int(y), (x * std + mean) * 255) for x, y in found]


def shrunk(image, size):
    """Resized and cut by torchvision."""
    cut = transforms.Compose([transforms.Resize(size), transforms.CenterCrop(size)])
    return torch.from_numpy(np.array(cut(Image.fromarray(image)))).permute(2, 0, 1)


def check(dataset, planted, size):
    assert len(dataset) == len(planted)
    for (label, image), (given, found) in zip(planted, pixels_of(dataset), strict=True):
        assert label == given
        assert found.shape == (3, size, size)
        # Files are JPEG: colours differ a little, images a lot.
        assert (found - shrunk(image, size)).abs().mean() < 12


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("eurosat", "eurosat/2750"),
        ("gtsrb", "gtsrb/GTSRB/Training"),
        ("resisc45", "resisc45/NWPU-RESISC45"),
    ],
)
def test_a_hidden_folder_is_no_class(name, folder, tmp_path):
    writer = write_eurosat if name == "eurosat" else WRITERS[name]
    writer(tmp_path)
    before = VisionTaskDataModule(name, str(tmp_path), image_size=16)
    before.setup()
    (tmp_path / folder / ".ipynb_checkpoints").mkdir()
    after = VisionTaskDataModule(name, str(tmp_path), image_size=16)
    after.setup()
    assert after.class_names == before.class_names
    assert after.split_hash == before.split_hash


@pytest.mark.parametrize("name", WRITERS)
def test_what_was_planted_is_given(name, tmp_path):
    made = WRITERS[name](tmp_path)
    data = VisionTaskDataModule(name, str(tmp_path), image_size=16, held_out=0, augment=False)
    data.prepare_data()
    data.setup()
    planted = made["train"]
    if name == "gtsrb":
        assert [label for label, _ in planted] == data.train_set.targets.tolist()
    order = sorted(range(len(planted)), key=lambda index: planted[index][0])
    assert data.num_classes == len(data.class_names) == VISION_SETS[name].classes
    for label, words in CLASSES[name].items():
        assert data.class_names[label] == words
    assert sorted(data.train_set.targets.tolist()) == [planted[index][0] for index in order]
    check(data.train_set, planted, 16)
    check(data.test_set, made["test"], 16)
    if "val" in made:
        check(data.val_set, made["val"], 16)
    else:
        assert data.val_set is None
    x, y = next(iter(data.train_dataloader()))
    assert x.shape[1:] == (3, 16, 16)
    assert x.dtype == torch.float32
    assert y.dtype == torch.long
    assert data.normalisation.mean == (0.485, 0.456, 0.406)


def test_svhn_is_held_in_memory_and_its_tens_are_zeros(tmp_path, monkeypatch):
    made = write_svhn(tmp_path, monkeypatch)
    data = VisionTaskDataModule("svhn", str(tmp_path), held_out=0, augment=False)
    data.setup()
    assert isinstance(data.train_set.source.images, torch.Tensor)
    assert data.class_names == [str(digit) for digit in range(10)]
    for split, dataset in (("train", data.train_set), ("test", data.test_set)):
        for (label, image), (given, found) in zip(made[split], pixels_of(dataset), strict=True):
            assert label == given
            torch.testing.assert_close(found, torch.tensor(image).permute(2, 0, 1).float())
    assert 0 in data.train_set.targets
    larger = VisionTaskDataModule("svhn", str(tmp_path), resize=48, normalise="clip")
    larger.setup()
    assert larger.image_size == 48
    assert larger.train_set[0][0].shape == (3, 48, 48)


def test_eurosat_is_divided_once_and_for_all(tmp_path):
    made = write_eurosat(tmp_path)["all"]
    settings = {"image_size": 16, "held_out": 0, "augment": False}
    data = VisionTaskDataModule("eurosat", str(tmp_path), **settings)
    data.setup()
    again = VisionTaskDataModule("eurosat", str(tmp_path), split_seed=5, **settings)
    again.setup()
    train, test = (
        set(part.source.images.paths.tolist()) for part in (data.train_set, data.test_set)
    )
    assert (len(train), len(test)) == (80, 20)
    assert not train & test
    assert test == set(again.test_set.source.images.paths.tolist())
    assert torch.bincount(data.test_set.targets).tolist() == [2] * 10
    assert data.class_names[0] == "fields of annual crops"
    assert data.class_names[9] == "a sea or lake"
    by_name = {}
    for label, image in made:
        by_name.setdefault(label, []).append(image)
    folders = sorted(path.name for path in (tmp_path / "eurosat/2750").iterdir())
    for path, (label, found) in zip(
        data.test_set.source.images.paths.tolist(), pixels_of(data.test_set), strict=True
    ):
        folder, file = path.decode().split("/")[-2:]
        assert folders[label] == folder
        number = int(file.removesuffix(".jpg").rpartition("_")[2]) - 1
        assert (found - shrunk(by_name[label][number], 16)).abs().mean() < 12


def test_held_out_examples_per_class_and_corruptions(tmp_path):
    write_eurosat(tmp_path)
    data = VisionTaskDataModule(
        "eurosat",
        str(tmp_path),
        image_size=32,
        examples_per_class=3,
        held_out=0.25,
        test_examples=7,
    )
    data.setup()
    assert torch.bincount(data.train_set.targets).tolist() == [3] * 10
    assert torch.bincount(data.val_set.targets).tolist() == [2] * 10
    assert not set(data.train_set.indices.tolist()) & set(data.val_set.indices.tolist())
    noisy = data.corrupted("gaussian_noise", 5)
    assert len(noisy.test_set) == len(data.test_set) == 7
    assert noisy.test_set.targets.equal(data.test_set.targets)
    clean, other = data.test_set[0][0], noisy.test_set[0][0]
    assert (clean - other).abs().mean() > 0.3
    assert data.class_names == noisy.class_names


def test_the_official_validation_split_is_the_default(tmp_path):
    made = write_dtd(tmp_path)
    official = VisionTaskDataModule("dtd", str(tmp_path), image_size=8)
    official.setup()
    assert len(official.val_set) == len(made["val"])
    assert len(official.train_set) == len(made["train"])
    write_eurosat(tmp_path)
    own = VisionTaskDataModule("eurosat", str(tmp_path), image_size=8)
    own.setup()
    assert len(own.val_set) == 10


def test_images_come_as_clip_wants_them(tmp_path):
    write_mnist(tmp_path)
    settings = {"resize": 24, "channels": 3, "normalise": "clip", "augment": False, "held_out": 0}
    data = MNISTDataModule(str(tmp_path), **settings)
    data.setup()
    open_clip = pytest.importorskip("open_clip")
    assert data.normalisation.mean == open_clip.OPENAI_DATASET_MEAN
    assert data.normalisation.std == open_clip.OPENAI_DATASET_STD
    x, _ = data.train_set[0]
    assert x.shape == (3, 24, 24)
    grey = MNISTDataModule(str(tmp_path), normalise="imagenet")
    grey.setup()
    assert grey.normalisation.mean == (0.449,)
    with pytest.raises(ConfigError, match="normalise is 'none'"):
        MNISTDataModule(str(tmp_path), normalise="none")


@pytest.mark.parametrize("name", VISION_SETS)
def test_missing_files_are_named_with_what_to_do(name, tmp_path):
    data = VisionTaskDataModule(name, str(tmp_path))
    with pytest.raises(DataError) as raised:
        data.setup()
    message = str(raised.value)
    assert str(tmp_path / VISION_SETS[name].folder) in message
    assert "missing or damaged" in message
    assert "\n" not in message
    assert ("set download to true" in message) == (name != "stanford_cars")
    assert "https://" in message or "http://" in message


def test_what_cannot_be_downloaded_is_said(tmp_path, monkeypatch):
    data = VisionTaskDataModule("stanford_cars", str(tmp_path), download=True)
    with pytest.raises(DataError, match=r"cannot be downloaded .* their source is gone"):
        data.prepare_data()
    write_stanford_cars(tmp_path)
    data.prepare_data()

    def refuse(*_, **__):
        raise OSError("no network")

    # Each way in which torchvision fetches.
    for place in ("utils", "eurosat", "dtd", "gtsrb"):
        monkeypatch.setattr(f"torchvision.datasets.{place}.download_and_extract_archive", refuse)
    monkeypatch.setattr("torchvision.datasets.svhn.download_url", refuse)
    for name in set(VISION_SETS) - {"stanford_cars"}:
        data = VisionTaskDataModule(name, str(tmp_path), download=True)
        with pytest.raises(DataError, match=r"could not be downloaded .*no network"):
            data.prepare_data()


def test_resisc45_and_sun397_fetch_their_lists(tmp_path, monkeypatch):
    fetched = []
    place = "torchvision.datasets.utils"
    monkeypatch.setattr(f"{place}.download_url", lambda url, root, **_: fetched.append((url, root)))
    monkeypatch.setattr(
        f"{place}.download_and_extract_archive", lambda url, root, **_: fetched.append((url, root))
    )
    VisionTaskDataModule("resisc45", str(tmp_path), download=True).prepare_data()
    names = [url.rpartition("/")[2] for url, _ in fetched]
    lists = [f"resisc45-{split}.txt" for split in ("train", "val", "test")]
    assert sorted(names) == sorted(["NWPU-RESISC45.zip", *lists])
    assert {root for _, root in fetched} == {str(tmp_path / "resisc45")}
    fetched.clear()
    (tmp_path / "SUN397").mkdir()
    VisionTaskDataModule("sun397", str(tmp_path), download=True).prepare_data()
    assert [url.rpartition("/")[2] for url, _ in fetched] == ["Partitions.zip"]


def test_too_few_classes_are_said(tmp_path):
    write_gtsrb(tmp_path)
    for path in (tmp_path / "gtsrb/GTSRB/Training/00042").iterdir():
        path.unlink()
    (tmp_path / "gtsrb/GTSRB/Training/00042").rmdir()
    with pytest.raises(DataError, match="42 classes, not 43"):
        VisionTaskDataModule("gtsrb", str(tmp_path)).setup()
    with pytest.raises(ConfigError, match="name 'imagenet' is unknown"):
        VisionTaskDataModule("imagenet")


def test_every_set_has_sentences_that_name_its_classes():
    for name in [*VISION_SETS, "mnist", "photo"]:
        sentences = prompts(name)
        assert len(sentences) == len(set(sentences)) >= 5
        assert all(sentence.count("{}") == 1 for sentence in sentences)
    assert MNISTDataModule.prompt_set == "mnist"
    with pytest.raises(ConfigError, match="prompts 'none' are unknown"):
        prompts("none")
    names = class_texts._texts()["gtsrb"]["names"]
    assert list(names) == [str(label) for label in range(43)]
    assert len(set(names.values())) == 43
    assert len(set(class_texts._texts()["eurosat"]["names"].values())) == 10
    assert readable("sun397", "desert/sand_dune") == "sand dune desert"
    # A car of that name is among the 196.
    car = "Ram C/V Cargo Van Minivan 2012"
    assert readable("stanford_cars", car) == car


def test_the_file_of_sentences_is_valid_yaml_without_doubles():
    class Strict(yaml.SafeLoader):
        pass

    def mapping(loader, node):
        keys = [loader.construct_object(key) for key, _ in node.value]
        assert len(keys) == len(set(keys))
        return {
            key: loader.construct_object(value, deep=True)
            for key, (_, value) in zip(keys, node.value, strict=True)
        }

    Strict.add_constructor("tag:yaml.org,2002:map", mapping)
    from importlib.resources import files

    text = files("lightning_merge.data").joinpath("prompts.yaml").read_text(encoding="utf-8")
    assert yaml.load(text, Strict) == class_texts._texts()
