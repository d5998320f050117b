"""Dotted paths of earlier versions, in configurations, checkpoints and scripts."""

import json
from importlib import import_module

import pytest
import torch
import yaml
from made_checkpoints import write_ingredient, write_ingredients

import lightning_merge
from lightning_merge.cli import main
from lightning_merge.recipe.build import build_data, build_module, build_recipe

# Every class that a configuration could name, by the module that it was defined in.
AGGREGATES = {
    "ada_merging": ["AdaMerging"],
    "average": ["Average"],
    "by_data": ["Fisher", "RegMean"],
    "ensembles": [
        "FeaturesEnsemble",
        "GreedyFeaturesEnsemble",
        "GreedyLogitsEnsemble",
        "LogitsEnsemble",
    ],
    "greedy": ["GreedySoup"],
    "learned": ["FineTune", "NPMerge"],
    "model_stock": ["ModelStock"],
    "task_vectors": ["DARE", "TIES", "TaskArithmetic"],
}
OTHERS = {
    "align.activation": ["ActivationMatching"],
    "align.cca": ["CCAMatching"],
    "align.many": ["CycleConsistentMatching", "MergeMany"],
    "align.weight": ["WeightMatching"],
    "callbacks.alphas": ["AlphaMonitor"],
    "callbacks.batchnorm": ["BatchNormReset"],
    "callbacks.freeze": ["FreezeBatchNorm"],
    "callbacks.greedy": ["GreedySoup"],
    "callbacks.last_epochs": ["LastEpochsSoup"],
    "data.celeba": ["CelebADataModule"],
    "data.chest_xray": ["ChestXrayDataModule"],
    "data.cifar": ["CIFARDataModule"],
    "data.digits": ["DigitsDataModule"],
    "data.folders": ["ImageFolderDataModule"],
    "data.handwritten": ["MNISTDataModule", "USPSDataModule"],
    "data.huggingface": ["HuggingFaceDataModule"],
    "data.medmnist": ["MedMNISTDataModule"],
    "data.tiny_imagenet": ["TinyImageNetDataModule"],
    "data.vision_tasks": ["VisionTaskDataModule"],
    "modules.ada_merging": ["AdaMerging"],
    "modules.classifier": ["ImageClassifier"],
    "modules.clip": ["CLIPClassifier"],
    "modules.ensemble": ["EnsembleModule", "FeatureEnsembleModule"],
    "modules.merge": ["MergeModule"],
}
RECIPE = "lightning_merge.recipe"
STUDY = "lightning_merge.study"
MOVED = [
    *(
        (f"{STUDY}.aggregates{module}.{name}", f"{RECIPE}.aggregates")
        for home, names in AGGREGATES.items()
        for name in names
        for module in ("", f".{home}")
    ),
    (f"{STUDY}.select.DPP", f"{RECIPE}.selections"),
    *(
        (f"lightning_merge.{module}.{name}", f"lightning_merge.{module.partition('.')[0]}")
        for module, names in OTHERS.items()
        for name in names
    ),
]


@pytest.mark.parametrize(("path", "home"), MOVED)
def test_an_old_path_is_the_public_class(path, home):
    module, _, name = path.rpartition(".")
    assert getattr(import_module(module), name) is getattr(import_module(home), name)


@pytest.mark.parametrize(
    "module", ["study.aggregates.nothing", "align.nothing", "align.activation.cca", "study.nothing"]
)
def test_what_never_was_there_is_not_found(module):
    with pytest.raises(ModuleNotFoundError, match=module.rpartition(".")[2]):
        import_module(f"lightning_merge.{module}")


def test_a_moved_module_has_no_other_names():
    with pytest.raises(ImportError, match="Nothing"):
        exec(f"from {STUDY}.aggregates.learned import Nothing")


def test_recipes_modules_and_data_of_an_older_configuration_are_built():
    recipe = build_recipe(
        {
            "name": "old",
            "aggregate": {
                "class_path": f"{STUDY}.aggregates.learned.NPMerge",
                "init_args": {"max_epochs": 3},
            },
            "align": "lightning_merge.align.activation.ActivationMatching",
            "select": {"class_path": f"{STUDY}.select.DPP", "init_args": {"size": 2}},
        }
    )
    assert type(recipe.aggregate) is lightning_merge.NPMerge
    assert type(recipe.align) is lightning_merge.ActivationMatching
    assert type(recipe.select) is lightning_merge.DPP
    assert recipe.select.size == 2
    data = build_data({"class_path": "lightning_merge.data.digits.DigitsDataModule"})
    assert type(data) is lightning_merge.DigitsDataModule
    path = "lightning_merge.modules.classifier.ImageClassifier"
    module = build_module({"class_path": path, "init_args": {"model": "resnet20_cifar"}})
    assert type(module) is lightning_merge.ImageClassifier


def test_an_older_configuration_is_compared(tmp_path):
    depth = {"model_kwargs": {"depth": 1}}
    learned = {"class_path": f"{STUDY}.aggregates.NPMerge", "init_args": {"max_epochs": 1}}
    activation = "lightning_merge.align.activation.ActivationMatching"
    config = {
        "model": {
            "class_path": "lightning_merge.modules.ImageClassifier",
            "init_args": {"model": "resnet20_cifar", "in_chans": 1, **depth},
        },
        "data": {"class_path": "lightning_merge.data.digits.DigitsDataModule"},
        "recipes": [
            {"name": "Mean", "aggregate": f"{STUDY}.aggregates.average.Average"},
            {"name": "P", "aggregate": "Average", "align": activation},
            {"name": "NP", "aggregate": learned, "align": activation.replace("activation.", "")},
        ],
        "trainer": {
            "limit_train_batches": 2,
            "limit_test_batches": 1,
            "callbacks": [{"class_path": "lightning_merge.callbacks.freeze.FreezeBatchNorm"}],
        },
        "statistics_examples": 64,
    }
    (tmp_path / "old.yaml").write_text(yaml.safe_dump(config))
    words = ["compare", "-c", str(tmp_path / "old.yaml"), "--output", str(tmp_path / "out")]
    main([*words, "--checkpoints", write_ingredients(tmp_path, **depth)])
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert len({row["loss"] for row in results["measurements"]}) == 5
    merged = {
        name: torch.load(tmp_path / f"out/merges/{name}.ckpt", weights_only=True)
        for name in ("mean", "p", "np")
    }
    states = [torch.load(tmp_path / f"{i}.ckpt", weights_only=True)["state_dict"] for i in (0, 1)]
    name = "network.conv1.weight"
    mean = (states[0][name] + states[1][name]) / 2
    torch.testing.assert_close(merged["mean"]["state_dict"][name], mean)
    # In whatever order the second one's units are, each channel is the mean of two.
    permuted = 2 * merged["p"]["state_dict"][name] - states[0][name]
    torch.testing.assert_close(permuted.sum(0), states[1][name].sum(0), atol=1e-4, rtol=1e-4)
    assert merged["np"]["lightning_merge"]["alphas"][name].shape == mean.shape


def test_a_checkpoint_that_names_its_class_by_an_old_path_is_merged(tmp_path):
    paths = []
    for seed, path in enumerate(("modules.classifier", "modules")):
        paths.append(write_ingredient(tmp_path / f"{seed}.ckpt", seed, model_kwargs={"depth": 1}))
        content = torch.load(paths[-1], weights_only=True)
        named = {"_class_path": f"lightning_merge.{path}.ImageClassifier"}
        content["hyper_parameters"] = {**content["hyper_parameters"], **named}
        torch.save(content, paths[-1])
    result = lightning_merge.merge(
        paths,
        {"name": "mean", "aggregate": f"{STUDY}.aggregates.average.Average"},
        {"class_path": "lightning_merge.data.digits.DigitsDataModule"},
        trainer={"limit_test_batches": 1},
        progress=False,
    )
    states = [torch.load(path, weights_only=True)["state_dict"] for path in paths]
    name = "network.conv1.weight"
    wanted = (states[0][name] + states[1][name]) / 2
    torch.testing.assert_close(result.merged["mean"].state_dict()[name], wanted)


def test_mappings_of_a_study_are_read_with_old_paths(tmp_path):
    study = {
        "model": {
            "class_path": "lightning_merge.modules.ImageClassifier",
            "init_args": {
                "model": "linear_classifier",
                "in_chans": 1,
                "model_kwargs": {"img_size": 8},
            },
        },
        "data": {"class_path": "lightning_merge.data.digits.DigitsDataModule"},
        "training": {"max_epochs": 1},
        "recipes": [{"name": "Mean", "aggregate": f"{STUDY}.aggregates.Average"}],
    }
    result = lightning_merge.run_study(study, tmp_path / "out", progress=False)
    assert [row.method for row in result.rows] == ["Ingredient 1", "Ingredient 2", "Mean"]
