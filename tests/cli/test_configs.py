"""Every file under configs/ runs, on a budget of seconds."""

import json
from pathlib import Path

import pytest
import yaml
from made_checkpoints import write_ingredients
from made_data import classes, write_medmnist
from made_folders import (
    write_celeba,
    write_chest_xray,
    write_class_folders,
    write_mnist,
    write_parquet,
    write_tiny_imagenet,
)

from lightning_merge.cli import main
from lightning_merge.data.sets.celeba import ATTRIBUTES

CONFIGS = Path(__file__).parents[2] / "configs"
FILES = sorted(path.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob("*.yaml"))
SHAPES = {"pneumoniamnist": ((28, 28), 2), "retinamnist": ((28, 28, 3), 5)}
WRITERS = {
    "CelebADataModule": lambda root: write_celeba(root, ATTRIBUTES),
    "ChestXrayDataModule": lambda root: write_chest_xray(root, patients=12),
    "ImageFolderDataModule": lambda root: write_class_folders(
        root, ["train", "val"], ["n01443537", "n01629819"], count=4
    ),
    "MNISTDataModule": write_mnist,
    "TinyImageNetDataModule": write_tiny_imagenet,
}
SHALLOW = {"model_kwargs": {"depth": 1}}
NETWORKS = {
    "compare/alignment_resnet20.yaml": {"num_classes": 2, **SHALLOW},
    "compare/digits.yaml": SHALLOW,
    "compare/recommended.yaml": SHALLOW,
    "compare/recommended_without_batchnorm.yaml": {"model": "vgg11_cifar"},
    "compare/rethinking_table2.yaml": {"num_classes": 100, "in_chans": 3, **SHALLOW},
    "compare/least_squares.yaml": {"num_classes": 100, "in_chans": 3, **SHALLOW},
    "compare/alignment_vgg11.yaml": {"model": "vgg11_cifar", "num_classes": 2},
}
# Networks with the same kinds of layers and groups, and fewer or narrower ones.
SMALLER = {
    "studies/demo.yaml": "{depth: 1}",
    "studies/digits.yaml": "{depth: 1}",
    "studies/pneumoniamnist.yaml": "{depth: 1}",
    "studies/retinamnist.yaml": "{depth: 1}",
    "studies/leaders_digits.yaml": "{depth: 1}",
    "studies/zipit_cifar100.yaml": "{depth: 1, width: 1}",
    "studies/least_squares_start.yaml": "{depth: 1}",
    "studies/rethinking_resnet18.yaml": "{channels: [8, 16, 32, 64]}",
    "studies/transformers_small.yaml": "{img_size: 28, patch_size: 7, embed_dim: 24, depth: 2, "
    "num_heads: 3}",
}
FEW = ["--trainer.limit_train_batches", "1", "--trainer.limit_test_batches", "1"]
pytestmark = pytest.mark.usefixtures("narrow_vgg")


def of(folder):
    return [name for name in FILES if name.startswith(f"{folder}/")]


def studies():
    """Those that are not a paper's table, nor a difference from another: these have own tests."""
    later = ("np_merge_table1_resnet20", "transformers_small", "rethinking_resnet18")
    papers = ("paper:", "differs:", *(f"-c configs/studies/{name}.yaml" for name in later))
    return [
        name
        for name in of("studies")
        if not any(word in (CONFIGS / name).read_text() for word in papers)
    ]


def data_options(name, tmp_path, request):
    """Where the data that a configuration wants was made."""
    data = yaml.safe_load((CONFIGS / name).read_text()).get("data")
    if data is None:  # It is for any data.
        return ["--data", "DigitsDataModule"]
    if data["class_path"] == "DigitsDataModule":
        return []
    if data["class_path"] == "MedMNISTDataModule":
        flag = data["init_args"]["name"]
        shape, count = SHAPES[flag]
        write_medmnist(tmp_path, flag, shape, classes(count))
        return ["--data.init_args.root", str(tmp_path)]
    if data["class_path"] == "HuggingFaceDataModule":
        pytest.importorskip("datasets")
        columns = data["init_args"]["image"], data["init_args"]["label"]
        names = [str(number) for number in range(data["init_args"]["num_classes"])]
        write_parquet(tmp_path / "set", ["train", "valid"], names, 1, columns=columns)
        words = ["--data.init_args.path", str(tmp_path / "set"), "--data.init_args.root", "cache"]
        return [*words, "--data.init_args.num_workers", "0"]
    if data["class_path"] in WRITERS:
        WRITERS[data["class_path"]](tmp_path)
        # Processes that load take longer to start than these few images to read.
        words = ["--data.init_args.root", str(tmp_path), "--data.init_args.num_workers", "0"]
        if data["class_path"] == "ImageFolderDataModule":
            words += ["--model.init_args.num_classes", "2"]
        return words
    return ["--data.init_args.root", str(request.getfixturevalue("cifar"))]


def test_no_configuration_is_forgotten():
    folders = {name.split("/")[0] for name in FILES}
    assert folders == {"fit", "merge", "compare", "studies", "tasks", "logger"}
    assert all(of(folder) for folder in folders)


@pytest.mark.filterwarnings("ignore:AUROC. the mean leaves out labels")  # Of two images.
@pytest.mark.parametrize("name", of("fit"))
def test_fit(name, tmp_path, request, capsys):
    words = ["fit", "--config", str(CONFIGS / name), *data_options(name, tmp_path, request)]
    if yaml.safe_load((CONFIGS / name).read_text())["model"]["class_path"] == "MergeModule":
        words += ["--model.init_args.checkpoints", write_ingredients(tmp_path)]
    main([*words, "--trainer.fast_dev_run", "true"])
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main([*words, "--print_config"])
    assert stopped.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    written = yaml.safe_load((CONFIGS / name).read_text())
    assert printed["trainer"]["max_epochs"] == written["trainer"]["max_epochs"]
    assert printed["model"]["class_path"].endswith(written["model"]["class_path"])


@pytest.mark.parametrize("name", of("merge"))
def test_merge(name, tmp_path, request):
    output = tmp_path / "out"
    words = ["merge", "-c", str(CONFIGS / name), *data_options(name, tmp_path, request), *FEW]
    words += ["--checkpoints", write_ingredients(tmp_path), "--output", str(output)]
    main(words)
    result = json.loads((output / "result.json").read_text())
    assert result["measurement"]["kind"] == "merge"
    assert (output / "merged.ckpt").is_file()


@pytest.mark.usefixtures("drawn_only")
@pytest.mark.parametrize("name", of("compare"))
def test_compare(name, tmp_path, request):
    output = tmp_path / "out"
    network = NETWORKS.get(name, {})
    words = ["compare", "-c", str(CONFIGS / name), *data_options(name, tmp_path, request), *FEW]
    words += ["--checkpoints", write_ingredients(tmp_path, **network), "--output", str(output)]
    main([*words, "--barrier", "3", "--statistics_examples", "20"])
    recipes = yaml.safe_load((CONFIGS / name).read_text())["recipes"]
    check_results(output, 2 + len(recipes), recipes)


@pytest.mark.parametrize("name", studies())
def test_study(name, tmp_path, request):
    if name != "studies/demo.yaml":
        request.getfixturevalue("drawn_only")
    output = tmp_path / "out"
    words = ["study", "-c", str(CONFIGS / name), *data_options(name, tmp_path, request), *FEW]
    words += ["--training", "{max_epochs: 1}", "--seeds", "[0]", "--statistics_examples", "20"]
    written = yaml.safe_load((CONFIGS / name).read_text())
    fewer = {"ingredients": "[{}, {}]", "pool_sizes": "[2]", "magnitudes": "[1, 2]"}
    for option in ("pool_sizes" in written) * list(fewer):
        words += [f"--{option}", fewer[option]]
    if name in SMALLER:
        words += ["--model.init_args.model_kwargs", SMALLER[name]]
    if name == "studies/least_squares_start.yaml":
        # A tenth of the few images that were made is none.
        words += ["--data.init_args.held_out", "0.5"]
    recipes = written["recipes"]
    learned = [one["align"] for one in recipes if "LearnedMatching" in str(one.get("align"))]
    for matching in learned:
        matching["init_args"] = {"steps": 2}
    kinds = [one["aggregate"] for one in recipes if isinstance(one["aggregate"], dict)]
    tuned = [kind["init_args"] for kind in kinds if "max_epochs" in kind.get("init_args", {})]
    for arguments in tuned:
        arguments["max_epochs"] = 1
        if "learning_rates" in arguments:
            arguments["learning_rates"] = arguments["learning_rates"][:2]
    words += ["--recipes", json.dumps(recipes)] if learned or tuned else []
    main([*words, "--barrier", "3", "--output", str(output)])
    check_results(output, 2 + len(recipes), recipes)


@pytest.mark.parametrize("name", of("logger"))
def test_logger(name, tmp_path):
    words = ["fit", "--config", str(CONFIGS / "fit/digits.yaml")]
    words += ["--config", str(CONFIGS / name), "--trainer.default_root_dir", str(tmp_path)]
    words += ["--trainer.logger.init_args.offline", "true"]
    words += ["--trainer.logger.init_args.save_dir", str(tmp_path)]
    main([*words, "--trainer.max_steps", "2", "--trainer.limit_val_batches", "1"])
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))


def check_results(output, rows, recipes):
    written = {path.name for path in output.iterdir()}
    learns = any("NPMerge" in str(recipe["aggregate"]) for recipe in recipes)
    names = ("methods", "barrier", *(["alphas"] if learns else []))
    figures = {f"{name}.{kind}" for name in names for kind in ("png", "svg")}
    assert figures | {"results.csv", "results.json", "report.md", "merges"} <= written
    lines = (output / "results.csv").read_text().splitlines()
    assert {"method", "accuracy", "seconds", "parameters", "seed"} <= set(lines[0].split(","))
    assert len(lines) == 1 + rows
    results = json.loads((output / "results.json").read_text())
    assert results["command"].startswith("python -m lightning_merge")
    assert len(results["measurements"]) == rows
    averaged = [recipe for recipe in recipes if recipe["aggregate"] == "Average"]
    # The direct line is always there, whatever it is compared with.
    pairs = {(str(recipe.get("align")), recipe.get("recalibrate")) for recipe in averaged}
    pairs.add(("None", None))
    assert [len(line["loss"]) for line in results["lines"]] == [3] * len(pairs)
