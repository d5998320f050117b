import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from lightning.pytorch import Trainer
from made_checkpoints import write_ingredient
from PIL import Image
from strangers import Stranger, randomise

import lightning_merge.networks  # noqa: F401
from lightning_merge import DigitsDataModule, ImageClassifier, MergeModule, merge
from lightning_merge.checkpoint import digest, read_checkpoint, write_checkpoint
from lightning_merge.cli import main
from lightning_merge.errors import ArchitectureMismatchError, OutputExistsError
from lightning_merge.model_folder import export

QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}
NETWORKS = [
    {"model": "resnet20_cifar", "in_chans": 1, "model_kwargs": {"width": 2}},
    {"model": "vgg11_bn_cifar", "num_classes": 7, "in_chans": 3},
    {"model": "resnet10t", "num_classes": 5, "in_chans": 3},
]


@pytest.mark.parametrize("given", NETWORKS, ids=lambda given: given["model"])
def test_timm_loads_it_and_computes_the_same(tmp_path, given):
    path = write_ingredient(tmp_path / "a.ckpt", 3, **given)
    folder = export(path, tmp_path / "out")
    classifier = ImageClassifier.load_from_checkpoint(path).eval()
    loaded = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    # In the memory format that the classifier computes in: another one rounds otherwise.
    loaded = loaded.to(memory_format=torch.channels_last)
    images = torch.randn(2, given["in_chans"], 32, 32)
    with torch.no_grad():
        expected = classifier(images)
        ours = loaded(images.contiguous(memory_format=torch.channels_last))
    assert torch.equal(ours, expected)
    assert expected.std() > 1e-3
    assert sorted(one.name for one in folder.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]


@pytest.mark.parametrize("mark", ["network._orig_mod.", "module.network."])
def test_marks_of_wrappers_are_left_out(tmp_path, mark):
    path = write_ingredient(tmp_path / "a.ckpt", 3)
    read = read_checkpoint(path)
    whole = {**read.content, "hyper_parameters": read.hyper_parameters}
    whole["state_dict"] = {
        name.replace("network.", mark, 1): value for name, value in read.state_dict.items()
    }
    write_checkpoint(tmp_path / "wrapped.ckpt", whole)
    plain = export(path, tmp_path / "plain") / "model.safetensors"
    wrapped = export(tmp_path / "wrapped.ckpt", tmp_path / "wrapped") / "model.safetensors"
    assert wrapped.read_bytes() == plain.read_bytes()


def test_the_card_says_what_it_is(tmp_path):
    paths = [write_ingredient(tmp_path / f"{k}.ckpt", k) for k in (1, 2)]
    states = [read_checkpoint(path).state_dict for path in paths]
    module = MergeModule(ImageClassifier.load_from_checkpoint(paths[0]), paths)
    merged = tmp_path / "merged" / "merged.ckpt"
    write_checkpoint(
        merged,
        {
            "state_dict": module.state_dict(),
            "hyper_parameters": dict(module.hparams),
            "lightning_merge": {"ingredients": [digest(state) for state in states]},
        },
    )
    main(["export", str(merged), "--output", str(tmp_path / "bare")])
    card = (tmp_path / "bare" / "README.md").read_text()
    assert all(digest(state) in card for state in states)
    assert digest(read_checkpoint(merged).state_dict) in card

    result = {
        "ingredients": {"first.ckpt": "abc123"},
        "config": {"recipe": {"name": "NP on Permute"}, "data": {"class_path": "Digits"}},
        "split_hash": "feed",
        "measurement": {"accuracy": 0.8765, "test_examples": 359, "train_examples": 1438},
    }
    (merged.parent / "result.json").write_text(json.dumps(result))
    main(["export", str(merged), "--output", str(tmp_path / "full")])
    card = (tmp_path / "full" / "README.md").read_text()
    for said in ("first.ckpt", "abc123", "NP on Permute", "Digits", "feed", "0.8765", "1438"):
        assert said in card
    assert "library_name: timm" in card


def test_a_bar_or_a_line_break_in_a_name_stays_in_its_cell_of_the_card(tmp_path):
    path = write_ingredient(tmp_path / "a.ckpt", 1)
    prepared = {
        "input_size": [1, 8, 8],
        "mean": [0.3],
        "std": [0.2],
        "label_names": ["cat | kitten", "dog"],
    }
    weights = read_checkpoint(path).state_dict
    write_checkpoint(path, {"state_dict": weights, "preprocessing": prepared})
    result = {"ingredients": {"a|b.ckpt": "1"}, "measurement": {"chosen": "2 | 3\nof 4"}}
    card = (export(path, tmp_path / "out", result) / "README.md").read_text()
    assert "| label names | cat \\| kitten, dog |\n" in card
    assert "| a\\|b.ckpt | `1` |\n" in card
    assert "| chosen | 2 \\| 3 of 4 |\n" in card


def test_other_networks_are_written_as_they_are(tmp_path):
    state = randomise(Stranger(), 1).state_dict()
    write_checkpoint(tmp_path / "a.ckpt", {"state_dict": state})
    folder = export(tmp_path / "a.ckpt", tmp_path / "out")
    read = read_checkpoint(folder / "model.safetensors").state_dict
    assert read.keys() == state.keys()
    assert all(torch.equal(read[name], state[name]) for name in state)
    assert not (folder / "config.json").exists()
    # Nor does its card send anyone to timm.
    assert "timm" not in (folder / "README.md").read_text()


def test_a_network_is_found_behind_the_weights_of_a_loss(tmp_path):
    network = timm.create_model("resnet20_cifar", num_classes=3, in_chans=1)
    module = torch.nn.ModuleDict({"loss": torch.nn.CrossEntropyLoss(torch.ones(3)), "net": network})
    assert next(iter(module.state_dict())) == "loss.weight"
    said = {"model": "resnet20_cifar", "num_classes": 3, "in_chans": 1}
    content = {"state_dict": module.state_dict(), "hyper_parameters": said}
    write_checkpoint(tmp_path / "a.ckpt", content)
    folder = export(tmp_path / "a.ckpt", tmp_path / "out")
    loaded = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    images = torch.randn(2, 1, 8, 8)
    assert torch.equal(loaded(images), network.eval()(images))


def test_what_cannot_be_exported_is_refused(tmp_path, capsys):
    path = write_ingredient(tmp_path / "a.ckpt", 1)
    export(path, tmp_path / "out")
    with pytest.raises(OutputExistsError, match="already holds"):
        export(path, tmp_path / "out")
    export(path, tmp_path / "out", overwrite=True)
    content = torch.load(path, weights_only=True)
    content["hyper_parameters"]["num_classes"] = 4
    torch.save(content, tmp_path / "b.ckpt")
    with pytest.raises(ArchitectureMismatchError, match="not those of 'resnet20_cifar'"):
        export(tmp_path / "b.ckpt", tmp_path / "other")
    with pytest.raises(SystemExit) as stopped:
        main(["export", str(tmp_path / "none.ckpt"), "--output", str(tmp_path / "x")])
    assert stopped.value.code == 2
    assert "no such file" in capsys.readouterr().err


# What a stranger has: timm, Pillow, the folder, and images as files.
ALONE = """
import json, sys
from pathlib import Path
import timm, torch
from PIL import Image

folder, images = map(Path, sys.argv[1:])
network = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
config = timm.data.resolve_data_config(model=network)
transform = timm.data.create_transform(**config)
mode = "L" if config["input_size"][0] == 1 else "RGB"
files = sorted(images.rglob("*.png"))
batch = torch.stack([transform(Image.open(file).convert(mode)) for file in files])
labels = torch.tensor([int(file.parent.name) for file in files])
with torch.no_grad():
    right = network(batch).argmax(1) == labels
assert "lightning_merge" not in sys.modules
print(json.dumps({
    "accuracy": right.double().mean().item(),
    "names": network.pretrained_cfg["label_names"],
}))
"""


@pytest.fixture(scope="module")
def ingredients(tmp_path_factory):
    """Two networks trained on grey images of 8 x 8, as Lightning's Trainer saves them."""
    folder = tmp_path_factory.mktemp("trained")
    for seed in range(2):
        torch.manual_seed(seed)
        module = ImageClassifier("test_resnet", in_chans=1)
        trainer = Trainer(max_epochs=2, limit_val_batches=0, **QUIET)
        trainer.fit(module, datamodule=DigitsDataModule(batch_size=32, augment=False))
        trainer.save_checkpoint(folder / f"{seed}.ckpt")
    return folder


def test_timm_alone_prepares_images_as_the_card_measured_them(tmp_path, ingredients):
    paths = [ingredients / f"{seed}.ckpt" for seed in range(2)]
    data = DigitsDataModule(split_seed=1)
    merge(
        paths,
        {
            "name": "soup",
            "aggregate": {"class_path": "Average", "init_args": {"weights": [0.9, 0.1]}},
        },
        data,
        trainer={"accelerator": "cpu"},
        output=tmp_path / "merged",
        progress=False,
    )
    main(["export", str(tmp_path / "merged/merged.ckpt"), "--output", str(tmp_path / "out")])
    card = (tmp_path / "out" / "README.md").read_text()
    measured = float(re.search(r"\| accuracy \| ([\d.]+) \|", card)[1])
    assert measured > 0.3
    _write_images(tmp_path / "images", data)
    command = [sys.executable, "-c", ALONE, str(tmp_path / "out"), str(tmp_path / "images")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["accuracy"] == pytest.approx(measured, abs=1e-6)
    assert found["names"] == list("0123456789")


def _write_images(folder, data):
    source, order = data.test_set.source, data.test_set.indices
    for number in range(len(data.test_set)):
        at = torch.tensor([number if order is None else order[number]])
        label = folder / str(int(source.targets[at]))
        label.mkdir(parents=True, exist_ok=True)
        Image.fromarray(source.images[at][0, 0].numpy()).save(label / f"{number}.png")


def test_the_folder_claims_nothing_of_timms_own_weights(tmp_path, ingredients):
    folder = export(ingredients / "0.ckpt", tmp_path / "out")
    stored = json.loads((folder / "config.json").read_text())
    prepared = stored["pretrained_cfg"]
    assert prepared["input_size"] == [1, 8, 8]
    pixels = torch.cat([batch[0] for batch in _unprepared()]).double()
    assert prepared["mean"] == pytest.approx([pixels.mean().item()], abs=1e-6)
    assert prepared["std"] == pytest.approx([pixels.std(correction=0).item()], abs=1e-6)
    assert prepared["crop_pct"] == 1.0
    assert prepared["num_classes"] == stored["num_classes"] == 10
    foreign = {"tag", "license", "paper_ids", "paper_name", "url", "hf_hub_id", "origin_url"}
    assert not foreign & (stored.keys() | prepared.keys())


def _unprepared():
    from lightning_merge.data.normalisation import Normalisation

    data = DigitsDataModule(held_out=0.0, augment=False)
    data.setup()
    data.normalisation = Normalisation((0.0,), (1.0,))
    return data.statistics_dataloader()


@pytest.mark.parametrize("model", ["resnet10t", "test_vit"])
def test_a_checkpoint_that_says_nothing_of_its_images(tmp_path, model):
    given = {"model": model, "in_chans": 3, "num_classes": 4}
    kwargs = {"img_size": 32} if model == "test_vit" else {}
    path = write_ingredient(tmp_path / "a.ckpt", 1, **given, model_kwargs=kwargs)
    folder = export(path, tmp_path / "out")
    prepared = json.loads((folder / "config.json").read_text())["pretrained_cfg"]
    assert not {"mean", "std", "crop_pct", "interpolation", "tag", "license"} & prepared.keys()
    assert prepared.get("input_size") == ([3, 32, 32] if kwargs else None)
    card = (folder / "README.md").read_text()
    assert "is not known" in card
    assert "resolve_data_config` then gives numbers of its own" in card
    timm.create_model(f"local-dir:{folder}", pretrained=True).eval()(torch.randn(1, 3, 32, 32))


def test_what_is_said_of_loading_it_gives_its_weights(tmp_path, capsys):
    path = write_ingredient(tmp_path / "a.ckpt", 3, **NETWORKS[0])
    folder = export(path, tmp_path / "out")
    with pytest.raises(SystemExit):
        main(["export", "--help"])
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    x = torch.randn(2, 1, 32, 32)
    expected = ImageClassifier.load_from_checkpoint(path).eval()(x)
    for text in (capsys.readouterr().out, readme, export.__doc__):
        (call,) = re.findall(r"timm\.create_model\([^)]*\)", " ".join(text.split()))
        loaded = eval(re.sub(r"local-dir:[A-Z.]+", f"local-dir:{folder}", call)).eval()
        torch.testing.assert_close(loaded(x), expected, rtol=1e-4, atol=1e-4)
