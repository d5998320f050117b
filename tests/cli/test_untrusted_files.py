"""A stranger's files: nothing is imported, fetched or run because one of them says so."""

import contextlib
import json
import pickle

import pytest
import torch
import yaml

from lightning_merge import ImageClassifier
from lightning_merge.checkpoint import read_checkpoint
from lightning_merge.cli import main
from lightning_merge.errors import ConfigError
from lightning_merge.model_folder import export
from lightning_merge.recipe.described_module import module_of

SMALL = {"model": "resnet20_cifar", "num_classes": 3, "model_kwargs": {"depth": 1, "width": 1}}
MERGE = ["--data", "DigitsDataModule", "--recipe", "{name: Mean, aggregate: Average}"]


@pytest.fixture
def trap(tmp_path, monkeypatch):
    """A module in the working folder that leaves a mark when it is imported or called."""
    (tmp_path / "trap.py").write_text(
        "import pathlib\n"
        "pathlib.Path('SPRUNG').touch()\n"
        "class Net:\n    def __init__(self, *a, **k): pass\n"
        "def make(*a, **k): return Net()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    assert not (tmp_path / "SPRUNG").exists()


def planted(folder, **said):
    torch.manual_seed(0)
    state = ImageClassifier(**SMALL).state_dict()
    content = {"state_dict": state, "hyper_parameters": said, "epoch": 0, "global_step": 0}
    torch.save({**content, "pytorch-lightning_version": "2.6.6"}, folder / "a.ckpt")
    return folder / "a.ckpt"


def one_line(words, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([str(word) for word in words])
    error = capsys.readouterr().err
    assert stopped.value.code == 2, error
    assert error.count("\n") == 1
    assert "Traceback" not in error
    return error


PLANTED = {
    "a class": ({"_class_path": "trap.Net"}, "names the class 'trap.Net'"),
    "a class below ours": ({"_class_path": "lightning_merge.cli.main"}, "names the class"),
    "a part of the network": (
        {**SMALL, "model_kwargs": {"depth": 1, "norm_layer": "trap.make"}},
        "no network can be made",
    ),
    "a hub": ({**SMALL, "model": "hf-hub:nobody/nothing"}, "fetched from a hub"),
    "a folder": ({**SMALL, "model": "local-dir:/somewhere"}, "fetched from a hub or folder"),
    "weights to fetch": ({**SMALL, "model_kwargs": {"pretrained": True}}, "'pretrained'"),
    "where to fetch": (
        {**SMALL, "model_kwargs": {"pretrained_cfg": {"url": "http://localhost:9/x"}}},
        "'pretrained_cfg'",
    ),
    "another file": ({**SMALL, "model_kwargs": {"checkpoint_path": "b.pth"}}, "'checkpoint_path'"),
    "more than it has": (
        {**SMALL, "model_kwargs": {"depth": 1, "width": 40}},
        "far larger than the file's own tensors",
    ),
    "more classes": ({**SMALL, "num_classes": 10**9}, "far larger than"),
    "a rate for each layer": (
        {"model": "vit_tiny_patch16_224", "num_classes": 3, "model_kwargs": {"depth": 10**7}},
        "far larger than",
    ),
    "more layers": ({**SMALL, "model_kwargs": {"depth": 10**9}}, "far larger than"),
}


@pytest.mark.parametrize("what", PLANTED)
def test_what_a_checkpoint_says_of_its_network(what, trap, capsys):
    said, why = PLANTED[what]
    path = planted(trap, **said)
    words = ["merge", "--checkpoints", f"[{path}, {path}]", *MERGE, "--output", trap / "out"]
    assert why in one_line(words, capsys)
    if "model_kwargs" in said and ":" not in said["model"]:
        with pytest.raises(ConfigError, match="export its state dict alone"):
            export(path, trap / "exported")
        assert not (trap / "exported").exists()


def test_images_that_a_checkpoint_describes(trap, capsys):
    for kwargs in (7, {"img_size": -8}, {"img_size": float("nan")}):
        path = planted(trap, model="linear_classifier", num_classes=3, model_kwargs=kwargs)
        assert "what images" in one_line(["plot", "templates", path], capsys)


@pytest.mark.parametrize("name", ["optimizer", "lr_scheduler"])
def test_how_it_was_trained_is_left_out(name, trap):
    path = planted(trap, **SMALL, **{name: {"class_path": "trap.make"}})
    assert isinstance(module_of(read_checkpoint(path)), ImageClassifier)


@pytest.mark.parametrize("kind", [list, tuple])
def test_metrics_by_the_path_of_a_class(kind, trap):
    path = planted(trap, **SMALL, metrics=kind(["accuracy", {"class_path": "trap.Net"}]))
    try:
        module = module_of(read_checkpoint(path))
    except ConfigError as error:
        assert "trap.Net" in str(error)  # noqa: PT017
    else:
        assert list(module.val_metrics) == ["val_accuracy"]


class Runs:
    """Pickled, it is a call."""

    def __reduce__(self):
        return exec, ("open('SPRUNG', 'w').close()",)


def test_pickles_that_run_code(trap, capsys):
    path = planted(trap, **SMALL)
    content = torch.load(path, weights_only=True)
    torch.save({**content, "more": Runs()}, path)
    (trap / "b.pt").write_bytes(pickle.dumps({"w": Runs()}))
    model = ["--model", "ImageClassifier", "--model.num_classes", "3"]
    output = ["--output", trap / "out"]
    for words in (
        ["merge", "--checkpoints", f"[{path}, {path}]", *MERGE, *output],
        ["export", path, *output],
        ["plot", "templates", path],
        ["plot", "kernels", path],
        ["plot", "alphas", path],
        ["plot", "embedding", path, "--data", "[{class_path: DigitsDataModule}]"],
        ["average", trap / "b.pt", path, "--output", trap / "c.pt"],
        ["test", *model, "--data", "DigitsDataModule", "--ckpt_path", path],
    ):
        one_line(words, capsys)


def tasks_folder(folder, **changed):
    data = {"class_path": "DigitsDataModule"}
    config = {"tasks": [{"name": "a", "data": data}], "recipes": [], "seeds": [0], **changed}
    found = {"ingredients": {"key": {"task": "Pre-trained", "seed": 0}}, "methods": []}
    (folder / "tasks.json").write_text(json.dumps(config))
    (folder / "results.json").write_text(json.dumps(found))
    return ["plot", "embedding", folder]


@pytest.mark.parametrize(
    "changed",
    [
        {"tasks": [{"name": "a", "data": {"class_path": "trap.Net"}}]},
        {"model": {"class_path": "trap.Net"}},
        {"model": {"class_path": "ImageClassifier", "init_args": {"optimizer": "trap.make"}}},
        {"data_defaults": {"augment": [{"class_path": "trap.Net"}]}},
    ],
    ids=["data", "model", "optimizer", "defaults"],
)
def test_a_folder_of_tasks(changed, trap, capsys):
    error = one_line(tasks_folder(trap, **changed), capsys)
    assert "names the class 'trap." in error
    assert "--trust" in error


def test_other_stored_configurations_are_compared_and_never_made(trap, capsys):
    stolen = {"class_path": "trap.Net"}
    (trap / "out").mkdir()
    for name in ("study.json", "tasks.json"):
        (trap / "out" / name).write_text(json.dumps({"model": stolen, "data": stolen}))
    config = {
        "model": {"class_path": "ImageClassifier"},
        "data": {"class_path": "DigitsDataModule"},
    }
    config["recipes"] = [{"name": "Mean", "aggregate": "Average"}]
    (trap / "study.yaml").write_text(yaml.safe_dump(config))
    words = ["study", "-c", trap / "study.yaml", "--output", trap / "out"]
    assert "another study" in one_line(words, capsys)
    results = {"summary": [{"method": stolen, "kind": "merge", "accuracy": 0.5}]}
    (trap / "results.json").write_text(json.dumps(results))
    for figure in ("methods", "bars", "gap", "pools"):
        with contextlib.suppress(SystemExit):
            main(["plot", figure, str(trap / "results.json"), "--overwrite"])
        assert "Traceback" not in capsys.readouterr().err
