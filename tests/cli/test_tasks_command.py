"""`tasks`: trains what is missing, merges, and measures seen, unseen and corrupted tasks."""

import copy
import csv
import json
import re
import statistics
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import seed_everything
from made_data import classes, write_medmnist
from strangers import quiet_trainer

from lightning_merge import ImageClassifier, MedMNISTDataModule, reset_batchnorm
from lightning_merge.checkpoint import read_checkpoint
from lightning_merge.cli import main

CONFIGS = Path(__file__).parents[2] / "configs" / "tasks"


@pytest.fixture
def config(tmp_path):
    """Digits to pre-train on; two tasks of random images, and one that is unseen."""
    for name, shape, count in (
        ("breastmnist", (28, 28), 2),
        ("retinamnist", (28, 28, 3), 5),
        ("pneumoniamnist", (28, 28), 2),
    ):
        write_medmnist(tmp_path, name, shape, classes(count))
    medical = [
        {
            "name": name,
            "data": {"class_path": "MedMNISTDataModule", "init_args": {"name": name, "root": "x"}},
        }
        for name in ("breastmnist", "retinamnist")
    ]
    data = {"class_path": "DigitsDataModule", "init_args": {"examples_per_class": 5}}
    unseen = {**medical[0], "name": "pneumonia", "unseen": True}
    unseen["data"] = {
        "class_path": "MedMNISTDataModule",
        "init_args": {"name": "pneumoniamnist", "root": "x"},
    }
    return {
        "title": "Small",
        "root": str(tmp_path),
        "model": {
            "class_path": "ImageClassifier",
            "init_args": {"model": "resnet20_cifar", "model_kwargs": {"depth": 1}},
        },
        "data_defaults": {"resize": 12, "channels": 3, "split_seed": 0, "batch_size": 16},
        "pretraining": {"data": data, "trainer": {"max_epochs": 1}},
        "training": {"max_epochs": 1},
        "tasks": [*medical, unseen],
        "recipes": [
            {"name": "Average", "aggregate": "Average", "recalibrate": "batchnorm"},
            {
                "name": "TIES",
                "aggregate": {"class_path": "TIES", "init_args": {"candidates": [0.0, 1.0]}},
            },
        ],
        "corruptions": ["contrast"],
        "corrupted_tasks": ["retinamnist"],
    }


def run(config, output, *words):
    path = output.parent / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    main(["tasks", "-c", str(path), "--output", str(output), *words])
    return json.loads((output / "results.json").read_text())


def test_tables_merges_and_going_on(config, tmp_path, capsys):
    output = tmp_path / "out"
    results = run(config, output)
    methods = ["Pre-trained", "Individual", "Average", "TIES"]
    assert [one["method"] for one in results["methods"]] == methods
    with (output / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    # Three clean tasks (individual ones: two), and one under a corruption.
    assert len(rows) == len(results["measurements"]) == 4 + 3 + 4 + 4
    average = {
        row["task"]: float(row["accuracy"])
        for row in rows
        if (row["method"], row["condition"]) == ("Average", "clean")
    }
    line = next(row for row in results["tables"]["tasks"] if row["method"] == "Average")
    seen = [average["breastmnist"], average["retinamnist"]]
    assert line["seen"] == pytest.approx(statistics.fmean(seen))
    assert line["unseen"] == pytest.approx(average["pneumonia"])
    assert line["all"] == pytest.approx(statistics.fmean(average.values()))
    # The best mean over the seen tasks' held-out examples, worked out from the rows.
    held_out = {
        method: statistics.fmean(
            one["held_out"]
            for one in results["measurements"]
            if (one["method"], one["condition"], one["seen"]) == (method, "clean", True)
        )
        for method in ("Pre-trained", "Average", "TIES")
    }
    advice = results["recommendation"]
    assert advice["use"]["held_out"] >= max(held_out.values()) - advice["use"]["held_out_step"]
    assert advice["use"]["held_out"] == pytest.approx(held_out[advice["use"]["method"]])
    assert all(0 < one["majority"] < 1 for one in results["measurements"])
    assert all(
        one["accuracy_low"] <= one["accuracy"] <= one["accuracy_high"]
        for one in results["measurements"]
    )
    report = (output / "report.md").read_text()
    assert all(f"> {line}" in report for line in advice["text"].splitlines())
    said = "".join(capsys.readouterr().out.split())
    assert "".join(advice["text"].split()) in said
    assert "Mostfrequentclass" in said
    assert "Recommendation" in (output / "report.html").read_text()
    assert (output / "methods.png").is_file()
    assert "fitted to the pre-trained body on 20 labelled examples" in report
    assert "12 labelled examples seen" in report
    assert "### contrast" in report
    merged = ImageClassifier.load_from_checkpoint(output / "merges/seed0/average.ckpt")
    assert merged.hparams["num_classes"] == 2

    # Heads are those that were fitted; bodies have moved.
    store = {one["task"]: key for key, one in results["ingredients"].items()}
    start = read_checkpoint(output / "runs" / store["Pre-trained"] / "weights.ckpt").state_dict
    tuned = read_checkpoint(output / "runs" / store["retinamnist"] / "weights.ckpt").state_dict
    other = read_checkpoint(output / "runs" / store["pneumonia"] / "weights.ckpt").state_dict
    name = "network.layer1.0.conv1.weight"
    assert not start[name].equal(tuned[name])
    assert start[name].equal(other[name])

    shown = ["--show", "[Pre-trained, retinamnist, TIES]", "--method", "pca"]
    main(["plot", "embedding", str(output), *shown])
    drawn = (output / "embedding.svg").read_text()
    for name in ("Pre-trained", "retinamnist", "TIES", "pneumonia", "3 data sets as 3 networks"):
        assert name in drawn
    with pytest.raises(SystemExit):
        main(["plot", "embedding", str(output), "--show", "[None]", "--overwrite"])
    assert "choose among Pre-trained, breastmnist" in capsys.readouterr().err

    steps = {"class_path": "AdaMerging", "init_args": {"max_steps": 3, "granularity": "model"}}
    more = [{"name": "Arithmetic", "aggregate": {"class_path": "TaskArithmetic"}}]
    more.append({"name": "Ada", "aggregate": steps})
    again = run({**config, "recipes": config["recipes"] + more}, output)
    assert "10 pieces of work, 8 already done" in capsys.readouterr().out
    kept = {one["method"]: one for one in again["methods"]}
    assert kept["Average"] == next(one for one in results["methods"] if one["method"] == "Average")
    assert kept["Arithmetic"]["choices"][0]["scale"] in [step / 10 for step in range(11)]
    assert set(kept["Ada"]["choices"][0]["coefficients"]) == {"breastmnist", "retinamnist"}
    assert kept["Ada"]["train_examples"] == 0
    with pytest.raises(SystemExit):
        run({**config, "severity": 5}, output)
    assert "another study" in capsys.readouterr().err


@pytest.mark.usefixtures("drawn_only")
def test_a_recipe_whose_selection_leaves_too_few_is_left_out(config, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        "lightning_merge.recipe.selections.determinantal.relative_gain_quality",
        lambda own, _: torch.tensor([1.0] + [-1.0] * (len(own) - 1)),
    )
    picked = {"name": "Picked", "aggregate": "Average", "select": "DPP"}
    config |= {"recipes": [picked, config["recipes"][0]], "corruptions": []}
    output = tmp_path / "out"
    results = run(config, output)
    assert [row["method"] for row in results["tables"]["tasks"]] == [
        *("Pre-trained", "Individual", "Average")
    ]
    failed = next(one for one in results["methods"] if one["method"] == "Picked")
    said = "DPP: of 2 ingredients only breastmnist can be used"
    assert failed["not_merged"].startswith(said)
    assert f"* Picked, seed 0: not merged: {said}" in (output / "report.md").read_text()
    assert [path.name for path in (output / "merges/seed0").iterdir()] == ["average.ckpt"]
    assert f"Picked: not merged: {said}" in capsys.readouterr().out


@pytest.mark.usefixtures("drawn_only")
def test_what_only_shows_something_is_not_computed_again(config, tmp_path, capsys):
    output = tmp_path / "out"
    config["corruptions"] = []
    run(config, output)
    capsys.readouterr()
    logs = {"class_path": "CSVLogger", "init_args": {"save_dir": str(tmp_path / "logs")}}
    config["trainer"] = {"logger": logs, "enable_progress_bar": False}
    run(config, output)
    assert "8 pieces of work, 8 already done" in capsys.readouterr().out
    (table,) = (tmp_path / "logs").rglob("tasks.csv")
    with table.open() as file:
        assert [row["method"] for row in csv.DictReader(file)][-1] == "TIES"
    with pytest.raises(SystemExit):
        run({**config, "trainer": {"precision": "bf16-true"}}, output)
    assert "another study" in capsys.readouterr().err
    # One recipe of the two: what is stored stays in the tables, unless it is to be overwritten.
    fewer = {**config, "recipes": config["recipes"][:1]}
    methods = [one["method"] for one in run(fewer, output)["methods"]]
    assert methods == ["Pre-trained", "Individual", "Average", "TIES"]
    assert "8 pieces of work, 8 already done" in capsys.readouterr().out
    assert [one["method"] for one in run(fewer, output, "--overwrite")["methods"]] == methods[:3]


@pytest.mark.usefixtures("drawn_only")
def test_own_checkpoints_are_taken_as_they_are(config, tmp_path):
    first = run({**config, "recipes": config["recipes"][:1], "corruptions": []}, tmp_path / "out")
    store = {one["task"]: key for key, one in first["ingredients"].items()}
    path = {name: str(tmp_path / "out/runs" / key / "weights.ckpt") for name, key in store.items()}
    own = {key: value for key, value in config.items() if key not in ("model", "pretraining")}
    own["pretrained"] = path["Pre-trained"]
    own["recipes"], own["corruptions"] = config["recipes"][:1], []
    own["tasks"] = [{**task, "checkpoint": path[task["name"]]} for task in config["tasks"]]
    second = run(own, tmp_path / "own")
    accuracy = {
        (row["method"], row["task"]): row["accuracy"]
        for results in (first, second)
        for row in results["measurements"]
    }
    for row in first["measurements"]:
        assert accuracy[row["method"], row["task"]] == row["accuracy"]
    assert all(
        one.get("head", "of its checkpoint") == "of its checkpoint"
        for one in second["ingredients"].values()
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"pretraining": None}, "either `pretrained`"),
        ({"model": None}, "with `model`"),
        ({"corrupted_tasks": ["none"]}, "no task 'none'"),
        ({"recipes": [{"name": "E", "aggregate": "LogitsEnsemble"}]}, "no one body"),
        ({"recipes": [{"name": "F", "aggregate": "FineTune"}]}, "labels"),
        ({"seeds": [1, 1]}, "seeds"),
        ({"head_examples_per_class": 0}, "head_examples_per_class is 0"),
        ({"recipes": [{"name": "individual", "aggregate": "Average"}]}, "has that name"),
        ({"pretraining": {"trainer": {"max_epochs": 1}}}, "pretraining: say with `data:"),
    ],
)
def test_what_is_wrong_is_reported_in_a_line(config, tmp_path, capsys, change, said):
    with pytest.raises(SystemExit) as stopped:
        run({**config, **change}, tmp_path / "out")
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"corruptions": ["fog of war"]}, "'fog of war' is unknown"),
        ({"severity": 6}, "severity is 6"),
        (
            {"recipes": [{"name": "R", "aggregate": "Average", "recalibrate": "repair"}]},
            "without BatchNorm",
        ),
        (
            {
                "recipes": [
                    {
                        "name": "W",
                        "aggregate": {"class_path": "Average", "init_args": {"weights": [1]}},
                    }
                ]
            },
            "1 weights (1) for 2 networks",
        ),
        ({"training": {"max_epoch": 1}}, "max_epoch"),
        (
            {
                "task_statistics": True,
                "model": {
                    "class_path": "ImageClassifier",
                    "init_args": {"model": "vgg11_cifar"},
                },
                "recipes": [{"name": "Average", "aggregate": "Average"}],
                "data_defaults": {"resize": 32, "channels": 3},
            },
            "task_statistics: this network has no BatchNorm",
        ),
        ({"training": {"callbacks": [{"class_path": "NoSuchCallback"}]}}, "NoSuchCallback"),
    ],
)
def test_what_would_fail_late_fails_at_once(config, tmp_path, capsys, monkeypatch, change, said):
    monkeypatch.setattr("lightning_merge.study.runner.execute", lambda *_: pytest.fail("began"))
    with pytest.raises(SystemExit) as stopped:
        run({**config, **change}, tmp_path / "out")
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_pretraining_must_give_the_body_that_is_tuned(config, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("lightning_merge.study.runner.execute", lambda *_: pytest.fail("began"))
    deeper = copy.deepcopy(config["model"])
    deeper["init_args"]["model_kwargs"]["depth"] = 2
    with pytest.raises(SystemExit):
        run({**config, "pretraining_model": deeper}, tmp_path / "out")
    error = capsys.readouterr().err
    assert "the pre-trained network" in error
    assert len(error.strip().splitlines()) == 1


@pytest.mark.usefixtures("drawn_only")
def test_pretraining_and_fine_tuning_each_have_their_own_settings(config, tmp_path, capsys):
    still = copy.deepcopy(config["model"])
    still["init_args"]["optimizer"] = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.0}}
    changes = {
        "pretraining_model": still,
        "training": {
            "max_epochs": 1,
            "callbacks": [{"class_path": "lightning_merge.callbacks.FreezeBatchNorm"}],
        },
        "recipes": config["recipes"][:1],
        "head_examples_per_class": 2,
    }
    output = tmp_path / "out"
    results = run({**config, **changes}, output)
    capsys.readouterr()
    assert run({**config, **changes}, output)["tables"] == results["tables"]
    assert "7 pieces of work, 7 already done" in capsys.readouterr().out
    report = (output / "report.md").read_text()
    assert "retinamnist: the head is fitted to the pre-trained body on 10 labelled" in report
    store = {one["task"]: key for key, one in results["ingredients"].items()}

    def weights(name):
        return read_checkpoint(output / "runs" / store[name] / "weights.ckpt").state_dict

    start, tuned = weights("Pre-trained"), weights("retinamnist")
    seed_everything(0, verbose=False)
    drawn = ImageClassifier(**config["model"]["init_args"]).state_dict()
    moved = [name for name in tuned if "running" not in name and "fc" not in name]
    for name, value in start.items():
        if "fc" in name:
            continue
        if "running" in name or "num_batches" in name:
            assert not value.equal(drawn[name]), name
            assert value.equal(tuned[name]), name
        else:
            assert value.equal(drawn[name]), name
    assert any(not start[name].equal(tuned[name]) for name in moved)


def test_each_task_may_have_statistics_of_its_own_images(config, tmp_path):
    output = tmp_path / "out"
    changes = {"task_statistics": True, "recipes": config["recipes"][:1], "corruptions": []}
    results = run({**config, **changes}, output)
    store = {one["task"]: key for key, one in results["ingredients"].items()}
    found = {
        row["task"]: row["accuracy"]
        for row in results["measurements"]
        if row["method"] == "Individual"
    }
    assert set(found) == {"breastmnist", "retinamnist"}
    for name, accuracy in found.items():
        data = MedMNISTDataModule(name, root=str(tmp_path), **config["data_defaults"])
        data.prepare_data()
        data.setup("fit")
        data.setup("test")
        module = ImageClassifier(num_classes=data.num_classes, **config["model"]["init_args"])
        tuned = read_checkpoint(output / "runs" / store[name] / "weights.ckpt").state_dict
        module.load_state_dict(tuned)
        reset_batchnorm(module, data.statistics_dataloader())
        (expected,) = quiet_trainer().test(module, data, verbose=False)
        assert accuracy == pytest.approx(expected["test_accuracy"])
    main(["plot", "embedding", str(output), "--method", "pca"])
    assert (output / "embedding.svg").is_file()


def test_wrong_tasks_are_named(config, tmp_path, capsys):
    for tasks, said in (
        (config["tasks"][:1], "two seen tasks"),
        ([config["tasks"][0]] * 2, "`name` of its own"),
        ([{"name": "a", "data": {}, "colour": 1}, *config["tasks"]], "`colour` is unknown"),
        ([{"name": "a"}, *config["tasks"]], "`data` is missing"),
        ([{"name": "a", "data": "Digits"}, *config["tasks"]], "task 'a': say with `data:"),
        ([{"name": "all", "data": {}}, *config["tasks"]], "has that name"),
    ):
        with pytest.raises(SystemExit):
            run({**config, "tasks": tasks}, tmp_path / "out")
        assert said in capsys.readouterr().err


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_configurations_are_complete(path, tmp_path, capsys):
    """Their data are not made here: a folder without them is what is found missing."""
    # The command in its head: some are a difference from another.
    head = path.read_text().partition("\ntitle:")[0]
    command = head.partition("lightning_merge tasks ")[2].partition("--root")[0]
    files = [CONFIGS / Path(name).name for name in re.findall(r"configs/tasks/\S+", command)]
    assert path in files
    words = [word for file in files for word in ("-c", str(file))]
    with pytest.raises(SystemExit) as stopped:
        main(["tasks", *words, "--root", str(tmp_path), "--output", str(tmp_path / "out")])
    assert stopped.value.code == 2
    clip = files[0].stem.startswith("clip")
    missing = "SUN397's train files" if clip else "cifar-100-python"
    assert missing in capsys.readouterr().err
