"""The pages: their Python runs, their commands exist, and the reference has every name.

The examples of docs/extending.md have tests of their own, in test_extending.py.
"""

import re
import shlex
import shutil
from functools import cache
from pathlib import Path
from typing import get_args, get_origin

import pytest
import yaml
from describe_options import parser_of

import lightning_merge
from lightning_merge.commands.described import read_described
from lightning_merge.presets import presets
from lightning_merge.study.executor import executors

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
WITH_CODE = [page for page in PAGES if "```python" in page.read_text(encoding="utf-8")]
TESTED_APART = {DOCS / "extending.md"}
COMMANDS = read_described()["commands"]
# Options of classes, whose names the parsers check.
OF_CLASSES = ("--trainer.", "--training.", "--data.", "--model.", "--recipe.")


def name(path):
    return str(path.relative_to(ROOT))


def commands(page):
    """The commands of a page, each as its words from the command on."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    called = r"""(["']?)(?:python -m lightning_merge|lightning-merge) +(?=([^`|]+))"""
    for quote, rest in re.findall(called, text):
        rest = rest.partition(quote)[0] if quote else rest
        if rest.split()[0] in COMMANDS:
            yield first_words(rest)


def first_words(text):
    """The words of the first line, and of those after it that its quotes enclose."""
    lines = text.splitlines()
    for end in range(1, len(lines) + 1):
        try:
            return shlex.split("\n".join(lines[:end]).partition(" > ")[0])
        except ValueError:
            continue
    raise AssertionError(f"a quote is not closed: {lines[0]}")


@cache
def of_dicts(command):
    """How an option begins that sets one key of a dict."""
    return tuple(
        f"{flag}."
        for action in parser_of([command])._actions
        for flag in action.option_strings
        if dict in map(get_origin, (hint := getattr(action, "_typehint", None), *get_args(hint)))
    )


def blocks(page):
    """What the YAML of a page says."""
    found = re.findall(r"```yaml\n(.*?)```", page.read_text(encoding="utf-8"), re.S)
    return [yaml.safe_load(block) for block in found]


def recipes(page):
    for block in blocks(page):
        yield from block.get("recipes", [])
        yield from [block["recipe"]] if "recipe" in block else []


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Two checkpoints of `ImageClassifier`, for pages that begin with some."""
    from lightning.pytorch import Trainer

    from lightning_merge import DigitsDataModule, ImageClassifier

    folder = tmp_path_factory.mktemp("checkpoints")
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    for one in "ab":
        module = ImageClassifier("resnet20_cifar", 10, in_chans=1)
        trainer = Trainer(max_steps=1, enable_checkpointing=False, accelerator="cpu", **quiet)
        trainer.fit(module, DigitsDataModule())
        trainer.save_checkpoint(folder / f"{one}.ckpt")
    return folder


@pytest.mark.parametrize("page", [one for one in WITH_CODE if one not in TESTED_APART], ids=name)
def test_the_python_of_a_page_runs(page, checkpoints, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    if "train(seed=" not in page.read_text(encoding="utf-8"):
        for file in checkpoints.iterdir():
            shutil.copy(file, tmp_path)
    # What a page registers ends with its test.
    executors.load()
    monkeypatch.setattr(executors, "_entries", dict(executors._entries))
    space = {"__name__": "page"}
    for block in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S):
        exec(compile(block, str(page), "exec"), space)


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=name)
def test_the_commands_of_a_page_are_ones_that_there_are(page):
    for words in commands(page):
        known = {
            flag
            for one in (words[0], " ".join(words[:2]))
            for option in COMMANDS.get(one, {"options": []})["options"]
            for flag in option["flags"]
        }
        given = [word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)]
        strange = [one for one in given if one not in known and not one.startswith(OF_CLASSES)]
        if strange:
            strange = [one for one in strange if not one.startswith(of_dicts(words[0]))]
        assert set(strange) <= {"--help"}, words
        named = [one.removeprefix("preset:") for one in words if one.startswith("preset:")]
        assert set(named) <= set(presets()), words
        files = [one for one in words if one.startswith("configs/")]
        assert all((ROOT / one).is_file() for one in files), words


def test_the_recipes_of_the_pages_can_be_made():
    from lightning_merge.recipe.build import build_recipe

    made = [build_recipe(one) for page in PAGES for one in recipes(page)]
    assert len(made) > 40


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_the_yaml_of_a_page_can_be_read(page):
    assert all(blocks(page))


def test_the_reference_describes_every_public_name():
    described = re.findall(
        r"^::: lightning_merge\.(\w+)$", (DOCS / "reference.md").read_text(), re.M
    )
    assert sorted(described) == sorted(set(lightning_merge.__all__) - {"__version__"})


def test_the_pages_with_commands_were_found():
    assert sum(1 for page in PAGES for _ in commands(page)) > 15


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path, monkeypatch):
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    monkeypatch.setenv("NO_MKDOCS_2_WARNING", "1")
    monkeypatch.chdir(ROOT)
    config = load_config(str(ROOT / "mkdocs.yml"), strict=True, site_dir=str(tmp_path / "site"))
    build(config)
    made = (tmp_path / "site/reference/index.html").read_text(encoding="utf-8")
    assert all(f'id="lightning_merge.{one}"' in made for one in ("merge", "MergeModule", "Study"))
