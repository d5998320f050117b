"""The papers' tables: every command in the heads of configs/studies parses; small ones run."""

import json
import re
from pathlib import Path

import pytest
import yaml

from lightning_merge.cli import main
from lightning_merge.commands import study as study_command
from lightning_merge.measure.measurement import AVERAGE
from lightning_merge.study.plan import Study, plan
from lightning_merge.study.study_options import check_paper

ROOT = Path(__file__).parents[2]
STUDIES = ROOT / "configs/studies"


def commands_of(path):
    """The lists of files that a configuration's head names, one for each command."""
    head = "".join(
        line[1:].rstrip("\n") for line in path.open(encoding="utf-8") if line.startswith("#")
    )
    found = re.findall(r"lightning_merge study((?:[ \\]+-c [\w./-]+)+)", head)
    return [re.findall(r"configs/[\w./-]+", one) for one in found]


COMMANDS = {
    " + ".join(Path(file).stem for file in files): files
    for path in sorted(STUDIES.glob("*.yaml"))
    for files in commands_of(path)
}
# Those that run here: the differences that each makes, on networks that a test has time for.
FAST = {
    "np_merge_table1_resnet20 + np_merge_small": [],
    "np_merge_table1_resnet20 + np_merge_table1_vgg11 + np_merge_small + "
    "np_merge_table1_vgg11_small": [],
    "np_merge_table1_resnet20 + np_merge_table2_80-20 + np_merge_small": [],
    "np_merge_table1_resnet20 + np_merge_table2_dirichlet + np_merge_small": [],
    "np_merge_table1_resnet20 + np_merge_table2_dirichlet + np_merge_small + np_merge_table4_1": [],
    "np_merge_table1_resnet20 + np_merge_table3 + np_merge_table3_small": [],
    "np_merge_table1_resnet20 + np_merge_fig1 + np_merge_fig1_same + np_merge_small": [],
    "rethinking_table1_cifar10 + rethinking_small": [],
    "rethinking_table1_cifar10 + rethinking_table1_tinyimagenet + rethinking_table3 + "
    "rethinking_small": ["--magnitudes", "[1, 100]"],
    "rethinking_table1_cifar10 + rethinking_table10 + rethinking_small + "
    "rethinking_table10_small": [],
}


def words_of(files):
    return [word for file in files for word in ("-c", str(ROOT / file))]


@pytest.fixture
def parsed(monkeypatch, tmp_path):
    """Parses a command; nothing is run."""

    def parse(words):
        found = []

        def keep(config, *_, **__):
            found.append(config)
            raise SystemExit(0)

        with monkeypatch.context() as patch:
            patch.setattr(study_command, "run_study", keep)
            with pytest.raises(SystemExit) as stopped:
                main(["study", *words, "--output", str(tmp_path / "out")])
        assert stopped.value.code == 0
        return found[0]

    return parse


def test_every_table_has_a_command_and_every_command_its_file():
    named = {file for files in COMMANDS.values() for file in files}
    papers = [p for p in STUDIES.glob("*.yaml") if p.stem.startswith(("np_merge", "rethinking_t"))]
    assert {f"configs/studies/{path.name}" for path in papers} <= named
    assert all((ROOT / file).is_file() for file in named)
    assert FAST.keys() <= COMMANDS.keys()


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_parses(name, parsed, monkeypatch):
    monkeypatch.chdir(ROOT)  # Folders of images are looked for when a data module is made.
    config = parsed(words_of(COMMANDS[name]))
    last = yaml.safe_load((ROOT / COMMANDS[name][-1]).read_text())
    for option in ("title", "pool_sizes", "training", "differs", "ingredients"):
        if option in last:
            assert config[option] == last[option]
    for part in ("model", "data"):
        for option, value in last.get(part, {}).get("init_args", {}).items():
            if option not in ("optimizer", "lr_scheduler"):
                assert config[part]["init_args"][option] == value
    assert plan(Study.of_config(config))
    paper = check_paper(config["paper"])
    if "paper" in last:
        assert paper == check_paper(last["paper"])
    said = [yaml.safe_load((ROOT / file).read_text()).get("recipes") for file in COMMANDS[name]]
    for recipe, own in zip(config["recipes"], [one for one in said if one][-1], strict=True):
        assert recipe["name"] == own["name"]
        for part in ("align", "recalibrate", "select"):
            assert (recipe[part] is None) == (own.get(part) is None)
    recipes = {recipe["name"] for recipe in config["recipes"]}
    assert set(paper.get("figures", {})) <= recipes | {AVERAGE}


@pytest.mark.usefixtures("drawn_only", "narrow_vgg")
@pytest.mark.parametrize("name", FAST)
def test_the_smallest_part_of_a_small_table_runs(name, parsed, tmp_path, cifar):
    words = [*words_of(COMMANDS[name]), "--data.init_args.root", str(cifar)]
    config = parsed(words)
    kept = [one for one in config["recipes"] if "Average" in str(one["aggregate"])][-1:]
    learning = [one for one in config["recipes"] if "NPMerge" in str(one["aggregate"])][:1]
    for recipe in kept:
        if "CCA" in str(recipe["align"]):
            recipe["align"]["init_args"]["candidates"] = [0.1, 1.0]
    for recipe in learning:
        recipe["aggregate"]["init_args"] |= {"max_epochs": 1}
        recipe["align"] = recipe["align"] and "WeightMatching"
    words += ["--recipes", json.dumps(kept + learning), "--training", "{max_steps: 1}"]
    words += ["--ingredients", json.dumps(config["ingredients"][:2]), "--pool_sizes", "[2]"]
    if config["start"] is not None:
        words += ["--start", "{max_epochs: 0}"]
    words += ["--data.init_args.held_out", "0.5", "--statistics_examples", "8", "--seeds", "[0]"]
    words += ["--trainer.limit_train_batches", "1", "--trainer.limit_test_batches", "1"]
    main(["study", *words, *FAST[name], "--output", str(tmp_path / "out")])
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert {row["method"] for row in results["measurements"]} == {
        "Ingredient 1",
        "Ingredient 2",
        *(one["name"] for one in kept + learning),
    }
    report = (tmp_path / "out/report.md").read_text()
    assert "## The paper's table" in report
    assert all(f"* {line}\n" in report for line in config["differs"])
    if config["paper"].get("figures"):
        measured = {(r["method"], r["column"]): r for r in results["paper_table"]}
        assert any(r["printed_in_the_paper"] for r in measured.values())
        assert any(r["measured"] is not None for r in measured.values())
