"""A study of tasks under a CLIP: heads of text, frozen, from its own weights to a merged one."""

import json
from pathlib import Path

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
from tiny_clip import IMAGE_SIZE, TINY, tiny_clip, write_clip

from lightning_merge import CLIPClassifier, MNISTDataModule, VisionTaskDataModule, task_arithmetic
from lightning_merge import task_vector as vector_of
from lightning_merge.checkpoint import read_checkpoint
from lightning_merge.cli import main
from lightning_merge.data import prompts
from lightning_merge.errors import ConfigError
from lightning_merge.measure.task_heads import check_prompts
from lightning_merge.recipe.build import build_recipe
from lightning_merge.study.task_checks import check_task_recipe

open_clip = pytest.importorskip("open_clip")

CONFIG = Path(__file__).parents[2] / "configs" / "tasks" / "clip_vit_b32.yaml"
HEAD = "network.head.weight"


@pytest.fixture
def config(tmp_path):
    """EuroSAT and GTSRB to tune on, MNIST unseen, and a tiny CLIP in a file."""
    write_eurosat(tmp_path)
    write_gtsrb(tmp_path, train=4)
    write_mnist(tmp_path)
    write_clip(tmp_path / "clip.pt")
    sets = {"class_path": "VisionTaskDataModule", "init_args": {"root": "data"}}
    tasks = [
        {"name": name, "data": {**sets, "init_args": {**sets["init_args"], "name": name}}}
        for name in ("eurosat", "gtsrb")
    ]
    mnist = {"class_path": "MNISTDataModule", "init_args": {"root": "data"}}
    return {
        "root": str(tmp_path),
        "model": {
            "class_path": "CLIPClassifier",
            "init_args": {
                "pretrained": str(tmp_path / "clip.pt"),
                "model_kwargs": TINY,
                "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.001}},
            },
        },
        "data_defaults": {
            "resize": IMAGE_SIZE,
            "channels": 3,
            "normalise": "clip",
            "batch_size": 24,
            "augment": False,
            "held_out": 0.25,
        },
        "training": {"max_epochs": 2},
        "tasks": [*tasks, {"name": "mnist", "unseen": True, "data": mnist}],
        "recipes": [
            {
                "name": "Arithmetic",
                "aggregate": {"class_path": "TaskArithmetic", "init_args": {"scale": 0.4}},
            },
            {
                "name": "TIES",
                "aggregate": {"class_path": "TIES", "init_args": {"candidates": [0, 1]}},
            },
            {"name": "Average", "aggregate": "Average"},
        ],
        "corruptions": ["contrast"],
        "corrupted_tasks": ["eurosat"],
    }


def run(config, output, *words):
    path = output.parent / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    main(["tasks", "-c", str(path), "--output", str(output), *words])
    return json.loads((output / "results.json").read_text())


def head_of_text(clip, names, sentences):
    tokenizer = open_clip.get_tokenizer("ViT-B-32", context_length=24)
    with torch.no_grad():
        made = open_clip.build_zero_shot_classifier(clip, tokenizer, names, sentences)
    return made.T * clip.logit_scale.exp()


def test_from_clip_to_a_merged_body(config, tmp_path):
    output = tmp_path / "out"
    results = run(config, output)
    store = {one["task"]: key for key, one in results["ingredients"].items()}
    state = {
        name: read_checkpoint(output / "runs" / key / "weights.ckpt").state_dict
        for name, key in store.items()
    }
    clip = tiny_clip()
    body = {f"network.visual.{name}": value for name, value in clip.visual.state_dict().items()}

    # CLIP itself is where all start, and what an unseen task keeps.
    for name in ("Pre-trained", "mnist"):
        for key, value in body.items():
            assert state[name][key].equal(value), (name, key)
    moved = [key for key, value in body.items() if not state["gtsrb"][key].equal(value)]
    assert len(moved) == len(body)

    # Heads are those of the data's own names and sentences, also where the body was tuned.
    arguments = {"root": str(tmp_path), **config["data_defaults"]}
    data = {
        "eurosat": VisionTaskDataModule("eurosat", **arguments),
        "gtsrb": VisionTaskDataModule("gtsrb", **arguments),
        "mnist": MNISTDataModule(**arguments),
    }
    for name, one in data.items():
        one.setup()
        expected = head_of_text(clip, one.class_names, prompts(name))
        torch.testing.assert_close(state[name][HEAD], expected)
        said = results["ingredients"][store[name]]["head"]
        assert said == f"made of the classes' names in {len(prompts(name))} prompts"
    seen = {name: results["ingredients"][store[name]]["train_examples"] for name in data}
    assert seen == {"eurosat": 60, "gtsrb": 129, "mnist": 0}

    # The pre-trained row is zero-shot classification.
    rows = {(row["method"], row["task"], row["condition"]): row for row in results["measurements"]}
    for name, one in data.items():
        images, targets = zip(
            *(one.test_set[index] for index in range(len(one.test_set))), strict=True
        )
        with torch.no_grad():
            features = clip.encode_image(torch.stack(images), normalize=True)
        found = (features @ state[name][HEAD].T).argmax(1)
        accuracy = (found == torch.stack(targets)).double().mean().item()
        assert rows["Pre-trained", name, "clean"]["accuracy"] == pytest.approx(accuracy)
    assert ("TIES", "eurosat", "contrast") in rows

    # The merge is task arithmetic of the bodies, and loads where CLIP is not at hand.
    (tmp_path / "clip.pt").unlink()
    merged = CLIPClassifier.load_from_checkpoint(output / "merges/seed0/arithmetic.ckpt")
    vectors = [
        vector_of({key: state[name][key] for key in body}, body) for name in ("eurosat", "gtsrb")
    ]
    for key, value in task_arithmetic(body, vectors, 0.4).items():
        torch.testing.assert_close(merged.state_dict()[key], value)
    assert merged.state_dict()[HEAD].equal(state["eurosat"][HEAD])
    assert merged.hparams["made_from"]["class_names"] == data["eurosat"].class_names


def test_own_prompts_trained_heads_and_individuals(config, tmp_path):
    sentence = "the digit {}, written by hand"
    config["tasks"][2] |= {"prompts": [sentence]}
    config |= {"recipes": config["recipes"][2:], "corruptions": [], "train_heads": True}
    results = run(config, tmp_path / "out")
    store = {one["task"]: key for key, one in results["ingredients"].items()}
    state = {
        name: read_checkpoint(tmp_path / "out/runs" / key / "weights.ckpt").state_dict
        for name, key in store.items()
    }
    clip = tiny_clip()
    digits = [str(digit) for digit in range(10)]
    torch.testing.assert_close(state["mnist"][HEAD], head_of_text(clip, digits, [sentence]))
    names = VisionTaskDataModule("eurosat", str(tmp_path))
    names.setup()
    fixed = head_of_text(clip, names.class_names, prompts("eurosat"))
    assert not torch.allclose(state["eurosat"][HEAD], fixed)
    methods = {one["method"] for one in results["methods"]}
    assert methods == {"Pre-trained", "Individual", "Average"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"resize": 24}, "takes 16x16 with 3: set resize: 16"),
        ({"channels": 1}, "with 1 channels"),
        ({"normalise": None}, "set normalise: clip"),
    ],
)
def test_images_of_another_kind_are_refused_at_once(config, tmp_path, capsys, change, said):
    config["data_defaults"] |= change
    with pytest.raises(SystemExit) as stopped:
        run(config, tmp_path / "out")
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert said in error
    assert "task 'eurosat'" in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("prompts", "said"),
    [(["a photo"], "with one {}"), ([], "with one {}"), ("flags", "prompts 'flags' are unknown")],
)
def test_prompts_are_read_before_anything_else(config, tmp_path, capsys, prompts, said):
    config["tasks"][1]["prompts"] = prompts
    with pytest.raises(SystemExit):
        run(config, tmp_path / "out")
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_prompts_without_a_text_tower_are_refused():
    with pytest.raises(ConfigError, match="task 'a': only a CLIPClassifier reads prompts"):
        check_prompts({"class_path": "ImageClassifier"}, {"name": "a", "prompts": ["{}"]})
    check_prompts(
        {"class_path": "lightning_merge.CLIPClassifier"}, {"name": "a", "prompts": "mnist"}
    )
    check_prompts(None, {"name": "a"})


def test_a_clip_without_weights_is_no_start(config, tmp_path, capsys):
    config["model"]["init_args"]["pretrained"] = None
    with pytest.raises(SystemExit):
        run(config, tmp_path / "out")
    assert "a model whose own `pretrained`" in capsys.readouterr().err


@pytest.mark.slow
def test_the_configuration_runs_on_a_tiny_clip(tmp_path, monkeypatch):
    shape = {"shape": (16, 16, 3)}
    write_sun397(tmp_path, train=2, test=1, **shape)
    write_stanford_cars(tmp_path, count=2, **shape)
    write_resisc45(tmp_path, **shape)
    write_dtd(tmp_path, **shape)
    write_svhn(tmp_path, monkeypatch)
    write_gtsrb(tmp_path, **shape)
    write_mnist(tmp_path)
    write_eurosat(tmp_path, **shape)
    write_clip(tmp_path / "clip.pt")
    written = yaml.safe_load(CONFIG.read_text())
    model, defaults = written["model"], written["data_defaults"]
    model["init_args"] |= {"pretrained": str(tmp_path / "clip.pt"), "model_kwargs": TINY}
    defaults |= {"resize": IMAGE_SIZE, "num_workers": 0, "batch_size": 64}
    # A tenth of two images is none.
    defaults |= {"held_out": 0.5, "test_examples": 8}
    words = ["tasks", "-c", str(CONFIG), "--model", json.dumps(model)]
    words += ["--data_defaults", json.dumps(defaults)]
    words += ["--training", "{max_steps: 2, max_epochs: -1}", "--root", str(tmp_path)]

    for recipe in written["recipes"]:
        check_task_recipe(build_recipe(recipe))
    # A random CLIP is right so rarely that nothing can be chosen by what it gets right.
    recipes = [recipe for recipe in written["recipes"] if "select" not in recipe]
    for recipe in recipes[1:]:
        recipe["aggregate"]["init_args"] |= {"candidates": None, "scale": 0.3}
    words += ["--recipes", json.dumps(recipes), "--corruptions", "[contrast]"]
    main([*words, "--output", str(tmp_path / "out")])
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    names = [recipe["name"] for recipe in recipes]
    assert [one["method"] for one in results["methods"]] == ["Pre-trained", "Individual", *names]
    merged = CLIPClassifier.load_from_checkpoint(tmp_path / "out/merges/seed0/ties.ckpt")
    assert any(type(layer).__name__ == "QuickGELU" for layer in merged.network.modules())
    assert len(merged.hparams["made_from"]["class_names"]) == 397
    table = results["tables"]["tasks"]
    assert {"SUN397", "Cars", "MNIST", "EuroSAT", "seen", "unseen"} <= table[0].keys()
    report = (tmp_path / "out" / "report.md").read_text()
    assert "SUN397: the head is made of the classes' names in 5 prompts" in report
