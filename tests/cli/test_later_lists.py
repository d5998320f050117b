"""Several configurations: a later list or dict replaces the earlier one, arguments are merged."""

import json

import pytest
import yaml

from lightning_merge.cli import main
from lightning_merge.commands import options

EARLIER = """
model:
  class_path: ImageClassifier
  init_args:
    model: resnet20_cifar
    num_classes: 10
    metrics: [accuracy, f1]
    optimizer: {class_path: torch.optim.SGD, init_args: {momentum: 0.9, weight_decay: 0.5}}
data: {class_path: ImageFolderDataModule, init_args: {root: ., batch_size: 3, classes: [a, b]}}
trainer:
  max_epochs: 7
  callbacks: [{class_path: EarlyStopping, init_args: {monitor: loss, patience: 9}}]
"""
RECIPES = """
recipes:
  - name: A
    aggregate: {class_path: NPMerge, init_args: {max_epochs: 99}}
    align: {class_path: WeightMatching, init_args: {seed: 5}}
    recalibrate: batchnorm
"""


@pytest.fixture
def parsed(tmp_path):
    """The options of `study`, from EARLIER and RECIPES and what comes after them."""
    from lightning_merge.commands.study import _parser

    def parse(later, *words):
        files = {"earlier.yaml": EARLIER + RECIPES, "later.yaml": later}
        for name, text in files.items():
            (tmp_path / name).write_text(text)
        given = [word for name in files for word in ("-c", str(tmp_path / name))]
        parser = _parser()
        return options.plain(parser, parser.parse_args([*given, "--output", "out", *words]))

    return parse


def only(recipes):
    (recipe,) = recipes
    return recipe


def test_a_recipe_has_nothing_of_the_recipe_at_its_place(parsed):
    later = "recipes: [{name: B, aggregate: {class_path: NPMerge, init_args: {alpha: 0.2}}}]"
    recipe = only(parsed(later)["recipes"])
    assert (recipe["name"], recipe["align"], recipe["recalibrate"]) == ("B", None, None)
    assert recipe["aggregate"]["init_args"]["max_epochs"] == 10
    assert recipe["aggregate"]["init_args"]["alpha"] == 0.2


def test_nor_on_the_command_line(parsed):
    for words in (
        ["--recipes", "[{name: B, aggregate: NPMerge}]"],
        ["--recipes=[{name: B, aggregate: NPMerge}]"],
    ):
        recipe = only(parsed("{}", *words)["recipes"])
        assert (recipe["name"], recipe["align"]) == ("B", None)
        assert recipe["aggregate"]["init_args"]["max_epochs"] == 10


def test_lists_inside_mappings_too(parsed):
    config = parsed(
        "trainer: {callbacks: [{class_path: EarlyStopping, init_args: {monitor: accuracy}}]}\n"
        "data: {init_args: {classes: [c]}}\n"
        "model: {metrics: [accuracy]}\n"  # Short for its init_args.
    )
    (callback,) = config["trainer"]["callbacks"]
    assert (callback["init_args"]["monitor"], callback["init_args"]["patience"]) == ("accuracy", 3)
    assert config["data"]["init_args"]["classes"] == ["c"]
    assert config["model"]["init_args"]["metrics"] == ["accuracy"]


def test_mappings_are_merged_key_by_key(parsed):
    config = parsed("trainer: {max_steps: 2}\ndata: {init_args: {batch_size: 4}}")
    assert (config["trainer"]["max_epochs"], config["trainer"]["max_steps"]) == (7, 2)
    assert config["trainer"]["callbacks"][0]["init_args"]["patience"] == 9
    assert config["data"]["init_args"]["batch_size"] == 4
    assert config["data"]["init_args"]["classes"] == ["a", "b"]
    assert only(config["recipes"])["recalibrate"] == "batchnorm"


def test_another_class_keeps_the_arguments_that_it_has(parsed):
    config = parsed("model: {init_args: {optimizer: {class_path: torch.optim.Adam}}}")
    optimizer = config["model"]["init_args"]["optimizer"]
    assert optimizer["class_path"] == "torch.optim.Adam"
    assert optimizer["init_args"]["weight_decay"] == 0.5
    assert "momentum" not in optimizer["init_args"]


@pytest.mark.parametrize(
    "words",
    [
        ["--recipes+", "[{name: B, aggregate: Average}]"],
        ["--recipes+={name: B, aggregate: Average}"],
    ],
)
def test_recipes_are_appended(parsed, words):
    first, second = parsed("{}", *words)["recipes"]
    assert (first["name"], first["align"]["init_args"]["seed"]) == ("A", 5)
    assert (second["name"], second["align"]) == ("B", None)


def test_a_file_appends_too(parsed):
    first, second = parsed("recipes+: [{name: B, aggregate: Average}]")["recipes"]
    assert (first["align"]["init_args"]["seed"], second["align"]) == (5, None)


def test_lightnings_commands(tmp_path, capsys):
    (tmp_path / "a.yaml").write_text(EARLIER)
    (tmp_path / "b.yaml").write_text(
        "trainer: {callbacks: [{class_path: EarlyStopping, init_args: {monitor: accuracy}}]}"
    )
    words = [word for name in ("a", "b") for word in ("-c", str(tmp_path / f"{name}.yaml"))]
    appended = json.dumps({"class_path": "LearningRateMonitor"})
    with pytest.raises(SystemExit):
        main(["fit", *words, f"--trainer.callbacks+={appended}", "--print_config"])
    config = yaml.safe_load(capsys.readouterr().out)
    first, second = config["trainer"]["callbacks"]
    assert (first["init_args"]["monitor"], first["init_args"]["patience"]) == ("accuracy", 3)
    assert second["class_path"].endswith("LearningRateMonitor")
    assert config["trainer"]["max_epochs"] == 7


@pytest.mark.parametrize("later", ["[1, 2", "recipes: 3", "- a"])
def test_a_file_that_is_no_configuration_is_one_line(parsed, later, capsys):
    with pytest.raises(SystemExit) as stopped:
        parsed(later)
    assert stopped.value.code == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_dicts_are_replaced_but_for_a_key_on_the_command_line(parsed):
    earlier = "training: {max_epochs: 3, accelerator: cpu}\nmodel: {init_args: {in_chans: 1}}\n"
    later = parsed(earlier, "-c", "training: {max_steps: 4}", "--training.max_time", "00:00:01:00")
    assert later["training"] == {"max_steps": 4, "max_time": "00:00:01:00"}
    assert later["model"]["init_args"]["num_classes"] == 10
    assert later["trainer"]["max_epochs"] == 7
