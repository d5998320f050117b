"""`predict FOLDER`: a row for each file, as the network computes it on images as it wants them."""

import csv

import pytest
import torch
from made_checkpoints import write_ingredient, write_ingredients
from made_folders import pixels, write_image
from PIL import Image
from strangers import Stranger, randomise
from torchvision import transforms

from lightning_merge import ImageClassifier, predict_folder
from lightning_merge.cli import main

NAMES = ["cat", "dog", "owl", "two words"]
MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]
PREPARED = {
    "input_size": [3, 24, 24],
    "mean": MEAN,
    "std": STD,
    "interpolation": "bicubic",
    "crop_pct": 0.8,
    "label_names": NAMES,
}


def write_network(path, prepared=PREPARED, **changes):
    given = {"model": "linear_classifier", "num_classes": 4, "in_chans": 3, **changes}
    write_ingredient(path, 3, model_kwargs={"img_size": 24}, **given)
    content = torch.load(path, weights_only=True)
    # Logits small enough that no probability is 1.
    content["state_dict"] = {name: one * 0.05 for name, one in content["state_dict"].items()}
    torch.save({**content, **({"preprocessing": prepared} if prepared else {})}, path)
    return path


@pytest.fixture
def folder(tmp_path):
    """Five images, flat and nested, grey and colour, one of them broken, and a note."""
    place = tmp_path / "images"
    for name, shape in (
        ("a.png", (40, 64, 3)),
        ("b.jpg", (64, 40, 3)),
        ("deep/er/c.png", (24, 24, 3)),
        ("deep/d.png", (50, 50)),
    ):
        write_image(place / name, pixels(name, shape=shape))
    (place / "deep/broken.png").write_bytes((place / "a.png").read_bytes()[:200])
    (place / "notes.txt").write_text("of no interest")
    return place


def read(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def transformed(path):
    """What torchvision's own transforms make of a file."""
    steps = transforms.Compose(
        [
            transforms.Resize(30, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(24),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )
    return steps(Image.open(path).convert("RGB"))


def fails(capsys, words):
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def test_each_file_has_the_row_that_the_network_gives(tmp_path, folder, capsys):
    path = write_network(tmp_path / "x.ckpt")
    out = tmp_path / "new/predictions.csv"
    words = ["predict", str(folder), "--ckpt", str(path), "--output", str(out)]
    main([*words, "--batch_size", "2"])
    found = read(out)
    order = ["a.png", "b.jpg", "deep/broken.png", "deep/d.png", "deep/er/c.png"]
    assert [row["path"] for row in found] == order
    assert list(found[0]) == [
        "path",
        "predicted",
        *(f"probability {name}" for name in NAMES),
        "error",
    ]
    network = ImageClassifier.load_from_checkpoint(path).eval()
    for row in found:
        if row["path"] == "deep/broken.png":
            continue
        with torch.no_grad():
            likely = network(transformed(folder / row["path"])[None]).softmax(1)[0]
        given = [float(row[f"probability {name}"]) for name in NAMES]
        assert given == pytest.approx(likely.tolist(), abs=1e-5)
        assert row["predicted"] == NAMES[int(likely.argmax())]
        assert row["error"] == ""
    # Otherwise any preparation would have passed.
    assert len({row["probability cat"] for row in found}) == 5
    broken = found[2]
    assert broken["predicted"] == broken["probability cat"] == ""
    assert "truncated" in broken["error"] or "broken" in broken["error"]
    said = capsys.readouterr()
    assert "4 images; 1 could not be read" in said.out
    assert "1 file that is no image (notes.txt)" in said.out
    # No terminal: neither a bar nor a carriage return.
    assert "\r" not in said.out + said.err
    assert "━" not in said.out + said.err
    before = out.read_bytes()
    assert f"{out} exists" in fails(capsys, words)
    assert out.read_bytes() == before
    main([*words, "--overwrite"])
    assert [row["predicted"] for row in read(out)] == [row["predicted"] for row in found]


def test_what_merge_writes_predicts_the_images_of_its_data(tmp_path):
    from lightning_merge import DigitsDataModule

    data = DigitsDataModule(batch_size=100)
    data.setup("test")
    images = data.test_set.source.images
    for k, image in enumerate(images[:60]):
        write_image(tmp_path / f"digits/{k:03}.png", image[0].numpy())
    config = "{name: Mean, aggregate: Average}"
    linear = {"model": "linear_classifier", "model_kwargs": {"img_size": 8}}
    paths = write_ingredients(tmp_path, **linear)
    words = ["merge", "--checkpoints", paths, "--recipe", config]
    main([*words, "--data", "DigitsDataModule", "--output", str(tmp_path / "merged")])
    merged = tmp_path / "merged/merged.ckpt"
    out = tmp_path / "out.csv"
    main(["predict", str(tmp_path / "digits"), "--ckpt", str(merged), "--output", str(out)])
    network = ImageClassifier.load_from_checkpoint(merged).eval()
    with torch.no_grad():
        wanted = network(data.normalisation(images[:60])).argmax(1)
    assert [int(row["predicted"]) for row in read(out)] == wanted.tolist()
    assert len(wanted.unique()) > 1


def test_a_stranger_is_named_and_says_how_images_are_prepared(tmp_path, folder, capsys):
    module = randomise(Stranger(), 1)
    path = tmp_path / "stranger.ckpt"
    torch.save({"state_dict": module.state_dict(), "hyper_parameters": {"channels": 6}}, path)
    out = tmp_path / "out.csv"
    words = ["predict", str(folder), "--ckpt", str(path), "--output", str(out)]
    assert "--model" in fails(capsys, words)
    words += ["--model", "strangers.Stranger"]
    assert "does not say how its images were prepared" in fails(capsys, words)
    assert "together" in fails(capsys, [*words, "--image_size", "24"])
    words += ["--image_size", "24", "--mean", "[0.5, 0.5, 0.5]", "--std", "[0.5, 0.5, 0.5]"]
    main(words)
    found = {row["path"]: row for row in read(out)}
    whole = Image.open(folder / "deep/er/c.png").convert("RGB")
    with torch.no_grad():
        likely = module.eval()(transforms.ToTensor()(whole)[None] * 2 - 1).softmax(1)[0]
    row = found["deep/er/c.png"]
    assert [float(row[f"probability {k}"]) for k in range(4)] == pytest.approx(
        likely.tolist(), abs=1e-4
    )


def test_one_logit_and_several_labels(tmp_path, folder):
    for task, classes in (("binary", 1), ("multilabel", 4)):
        names = ["no", "yes"] if task == "binary" else NAMES
        prepared = {**PREPARED, "label_names": names}
        path = write_network(tmp_path / f"{task}.ckpt", prepared, num_classes=classes, task=task)
        out = tmp_path / f"{task}.csv"
        main(["predict", str(folder / "a.png"), "--ckpt", str(path), "--output", str(out)])
        (row,) = read(out)
        network = ImageClassifier.load_from_checkpoint(path).eval()
        with torch.no_grad():
            likely = network(transformed(folder / "a.png")[None])[0].sigmoid().tolist()
        given = [float(row[f"probability {name}"]) for name in names]
        if task == "binary":
            assert given == pytest.approx([1 - likely[0], likely[0]], abs=1e-5)
            assert row["predicted"] == names[likely[0] >= 0.5]
        else:
            assert given == pytest.approx(likely, abs=1e-5)
            chosen = [name for name, one in zip(NAMES, likely, strict=True) if one >= 0.5]
            assert row["predicted"] == ";".join(chosen)
            assert 0 < len(chosen) < 4


def test_a_label_is_predicted_where_the_metrics_of_a_test_count_it(tmp_path, folder):
    path = write_network(tmp_path / "a.ckpt", num_classes=4, task="multilabel")
    content = torch.load(path, weights_only=True)
    # A logit of 0 says nothing; the smallest one above it, too small for float32's sigmoid, yes.
    small = torch.tensor([0.0, 1e-9, -1e-9, 2.0])
    content["state_dict"] = {
        name: small if name.endswith("bias") else one * 0
        for name, one in content["state_dict"].items()
    }
    torch.save(content, path)
    (row,) = predict_folder(folder / "a.png", path, progress=False).rows
    assert row["predicted"] == "dog;two words"


def test_one_number_is_the_mean_and_deviation_of_grey(tmp_path, folder):
    path = write_network(tmp_path / "grey.ckpt", None, in_chans=1)
    shown = []
    for mean, std in (("[0.4]", "[0.2]"), ("0.4", "0.2"), ("0.1", "0.2")):
        words = ["predict", str(folder / "a.png"), "--ckpt", str(path), "--image_size", "24"]
        words += ["--mean", mean, "--std", std, "--output", str(tmp_path / "out.csv")]
        main([*words, "--overwrite"])
        shown.append((tmp_path / "out.csv").read_text())
    assert shown[0] == shown[1] != shown[2]


def test_what_cannot_be_predicted_is_refused_in_a_line(tmp_path, folder, capsys):
    path = write_network(tmp_path / "x.ckpt")
    rest = ["--ckpt", str(path), "--output", str(tmp_path / "out.csv")]
    assert "no such folder" in fails(capsys, ["predict", str(tmp_path / "gone"), *rest])
    (tmp_path / "empty").mkdir()
    assert "has no images" in fails(capsys, ["predict", str(tmp_path / "empty"), *rest])
    (tmp_path / "empty/x.png").write_bytes(b"no image")
    assert "none of the 1 images" in fails(capsys, ["predict", str(tmp_path / "empty"), *rest])
    assert "no such file" in fails(
        capsys, ["predict", str(folder), "--ckpt", str(tmp_path / "no.ckpt"), *rest[2:]]
    )
    grey = write_network(tmp_path / "grey.ckpt", in_chans=1)
    assert "does not take images (3, 24, 24)" in fails(
        capsys, ["predict", str(folder), "--ckpt", str(grey), *rest[2:]]
    )
    odd = write_network(tmp_path / "odd.ckpt", {**PREPARED, "std": [0.1, 0, 0.1]})
    assert "cannot be prepared" in fails(
        capsys, ["predict", str(folder), "--ckpt", str(odd), *rest[2:]]
    )
    content = torch.load(path, weights_only=True)
    content["state_dict"]["network.head.bias"][1] = float("nan")
    torch.save(content, tmp_path / "nan.ckpt")
    assert "is NaN or infinite" in fails(
        capsys, ["predict", str(folder), "--ckpt", str(tmp_path / "nan.ckpt"), *rest[2:]]
    )
    assert "is a folder" in fails(capsys, ["predict", str(folder), *rest[:3], str(tmp_path)])
    assert not (tmp_path / "out.csv").exists()
