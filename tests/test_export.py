import json

import pytest
import timm
import torch
from made_checkpoints import write_ingredient
from strangers import Stranger, randomise

import lightning_merge.networks  # noqa: F401
from lightning_merge import ImageClassifier, MergeModule
from lightning_merge.checkpoint import digest, read_checkpoint, write_checkpoint
from lightning_merge.cli import main
from lightning_merge.errors import ArchitectureMismatchError, OutputExistsError
from lightning_merge.model_folder import export

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


def test_other_networks_are_written_as_they_are(tmp_path):
    state = randomise(Stranger(), 1).state_dict()
    write_checkpoint(tmp_path / "a.ckpt", {"state_dict": state})
    folder = export(tmp_path / "a.ckpt", tmp_path / "out")
    read = read_checkpoint(folder / "model.safetensors").state_dict
    assert read.keys() == state.keys()
    assert all(torch.equal(read[name], state[name]) for name in state)
    assert not (folder / "config.json").exists()


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
