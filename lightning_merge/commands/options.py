"""Options that several commands share, and how they silence Lightning."""

import json
import logging
import warnings
from collections.abc import Mapping, Sequence
from glob import glob, has_magic
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from rich.console import Console

# Imported so that their short names work as `class_path`.
import lightning_merge.callbacks
import lightning_merge.data
import lightning_merge.modules
import lightning_merge.networks  # noqa: F401
from lightning_merge.commands.integers_first import read_integers_first
from lightning_merge.commands.short_errors import ShortErrors
from lightning_merge.commands.whole_lists import WholeLists
from lightning_merge.errors import ConfigError
from lightning_merge.measure.sweep import sweeps
from lightning_merge.quiet_trainers import LOGGERS, MESSAGES
from lightning_merge.recipe.build import load_parts
from lightning_merge.recipe.context import Context
from lightning_merge.recipe.one_device import devices_line

load_parts()

# No `Any`, which would make the text '93.30' a number, and print it as 93.3.
Printed = str | float
Paper = dict[str, Printed | dict[str, Printed | dict[str, Printed]]]

OF_CONTEXT = ("model", "trainer", "seed", "heads", "widen", "statistics_examples")
"""The options of `merge` and `compare` that their functions have under the same names."""

RECIPES = (
    "what to run: a list of recipes, each a name and an aggregate, and how to align, "
    "recalibrate and select (preset:compare/recommended has some to begin with)"
)
_CONFIG = "a YAML file with these options, or preset:NAME (`list presets` shows the names)"
TITLE = "heads the tables, the figures and the report"
_TRAINED = (
    "the LightningModule that is trained: a class of this package or the path of your own, whose "
    "arguments are --model.init_args.NAME"
)

_terminal = Console().is_terminal
# When the output goes to a file, tables need not fit a terminal.
# Names and paths may have brackets, which are no markup.
console = Console(highlight=False, markup=False, width=None if _terminal else 120)


class Parser(ShortErrors, WholeLists, ArgumentParser):
    """jsonargparse's parser with one-line errors, in which a later list replaces an earlier one."""


def parser(command: str, description: str, results: str) -> ArgumentParser:
    """A parser with `-c`, `--config`, `--output`, a folder for `results`, and `--overwrite`."""
    made = Parser(prog=f"python -m lightning_merge {command}", description=description)
    made.add_argument("-c", "--config", action="config", help=_CONFIG)
    made.add_argument("--output", type=str, required=True, help=f"folder for {results}")
    made.add_argument(
        "--overwrite", action="store_true", help="write over results that the folder holds"
    )
    return made


def figure_parser(figure: str, description: str) -> ArgumentParser:
    """A parser of `plot`, with `-c`, `--config`, `--output`, `--title` and `--overwrite`."""
    made = Parser(prog=f"python -m lightning_merge plot {figure}", description=description)
    made.add_argument("-c", "--config", action="config", help=_CONFIG)
    made.add_argument(
        "--output",
        type=str | None,
        default=None,
        help="the figure's path; beside the source if none",
    )
    made.add_argument("--title", type=str, default="", help="heads the figure")
    made.add_argument("--overwrite", action="store_true", help="write over existing files")
    return made


def add_data_and_trainer(to: ArgumentParser) -> None:
    """Adds `--data` and `--trainer`."""
    to.add_subclass_arguments(
        LightningDataModule,
        "data",
        required=True,
        fail_untyped=False,
        help="the LightningDataModule: a class of this package or the path of your own, whose "
        "arguments are --data.init_args.NAME",
    )
    add_trainer(to)


def add_trainer(to: ArgumentParser) -> None:
    """Adds `--trainer`."""
    read_integers_first(Trainer.__init__)
    # Lightning annotates some of the Trainer's arguments loosely and checks them itself.
    to.add_class_arguments(Trainer, "trainer", instantiate=False, fail_untyped=False)


def add_checkpoints_and_model(to: ArgumentParser) -> None:
    """Adds `--checkpoints`, `--model`, `--seed`, `--heads` and `--widen`."""
    to.add_argument(
        "--checkpoints",
        type=list[str],
        required=True,
        help="the ingredients: '[a.ckpt, b.ckpt]', a.ckpt,b.ckpt, several words, or a pattern "
        "such as 'runs/*.ckpt'; the others are aligned to the first",
    )
    add_model(to, "the ingredients' LightningModule, where the checkpoints do not say it")
    to.add_argument("--seed", type=int, default=0, help="seeds whatever a merge draws")
    to.add_argument(
        "--heads",
        type=str | None,
        default=None,
        help="for ingredients of different tasks: `first` gives all of them the first one's head "
        "(the layer whose shapes differ), a regular expression the tensors whose names it matches; "
        "`join` gives the merge the heads of all, side by side in the ingredients' order",
    )
    to.add_argument(
        "--widen",
        type=bool,
        default=False,
        help="for ingredients of one family whose widths differ: narrower ones are brought to the "
        "shapes of the widest, and compute what they did",
    )


def with_checkpoints(words: Sequence[str]) -> list[str]:
    """The command's arguments, with `--checkpoints` as one list of files.

    It may be a list in brackets, several words, names joined by commas, or patterns such as
    `runs/*.ckpt`, whose files are sorted by name.
    """
    made: list[str] = []
    left = list(words)
    while left:
        word = left.pop(0)
        name, equals, value = word.partition("=")
        if name != "--checkpoints":
            made.append(word)
            continue
        given = [value] if equals else []
        while left and not left[0].startswith("-"):
            given.append(left.pop(0))
        paths = [path for one in given for path in _listed(one)]
        made += [name, json.dumps([file for path in paths for file in _matching(path)])]
    return made


def _listed(word: str) -> list[str]:
    if Path(word).exists():
        return [word]
    inside = word.strip().removeprefix("[").removesuffix("]")
    return [path.strip().strip("'\"") for path in inside.split(",") if path.strip()]


def _matching(path: str) -> list[str]:
    if Path(path).exists() or not has_magic(path):
        return [path]
    found = sorted(glob(path, recursive=True))
    if not found:
        raise ConfigError(f"--checkpoints {path}: no file is named so; give another pattern")
    return found


def add_statistics(to: ArgumentParser) -> None:
    """Adds `--statistics_examples`."""
    to.add_argument(
        "--statistics_examples",
        type=int | None,
        default=None,
        help="how many training examples, drawn at random, to read activations, BatchNorm "
        "statistics and REPAIR's from; all if not given",
    )


def add_sweeps(to: ArgumentParser) -> None:
    """Adds an option for each registered sweep: `--barrier`, `--triangle`, `--magnitudes`."""
    for entry in sweeps:
        sweep = entry.value
        to.add_argument(
            f"--{sweep.option}", type=sweep.type, default=sweep.default, help=sweep.help
        )


def add_pools(to: ArgumentParser) -> None:
    """Adds `--pool_sizes`."""
    to.add_argument(
        "--pool_sizes",
        type=list[int],
        default=[],
        help="run every recipe on the first so many ingredients, for each number, for example "
        "'[2, 3, 5]'; on all of them if not given",
    )


def add_paper(to: ArgumentParser) -> None:
    """Adds `--paper` and `--differs`."""
    to.add_argument(
        "--paper",
        type=Paper,
        default={},
        help="the table of a paper that is repeated: '{title: ..., table: ..., figures: {recipe: "
        "what the paper prints}}'; the report then has both side by side",
    )
    to.add_argument(
        "--differs",
        type=list[str],
        default=[],
        help="what differs from the paper's settings, a line each",
    )


def add_model(
    to: ArgumentParser, help: str = _TRAINED, name: str = "model", required: bool = False
) -> None:
    """Adds `--model`, a LightningModule; the one that is trained if no help is given."""
    to.add_subclass_arguments(
        LightningModule, name, required=required, fail_untyped=False, help=help
    )


def plain(of: ArgumentParser, config: Namespace) -> dict[str, Any]:
    """The parsed options as nested dicts, lists, numbers and strings."""
    found: dict[str, Any] = yaml.safe_load(of.dump(config, skip_none=False))
    found.pop("config", None)
    return found


def print_heads(context: Context) -> None:
    """Prints which tensors all ingredients take from the first, or which are joined, if any."""
    if context.heads:
        what = "side by side" if context.joins_heads else "kept from the first ingredient"
        console.print(f"  {what}: {', '.join(context.heads)}", soft_wrap=True)


def print_advice(text: str) -> None:
    """Prints a recommendation; in a log a line stays a line."""
    console.print(text, soft_wrap=not console.is_terminal)


def print_written(folder: str) -> None:
    """Prints what a comparison or a study has written."""
    console.print(
        f"{folder}: report.html, report.md, results.csv, results.json, figures, merges/",
        soft_wrap=True,
    )


def quiet(trainer: Mapping[str, Any] | None = None) -> None:
    """Silences Lightning's messages about each Trainer, for commands that make dozens.

    Of settings for several devices a line says where they apply.
    """
    line = "" if trainer is None else devices_line(trainer)
    if line:
        console.print(line, soft_wrap=True)
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    for message in MESSAGES:
        warnings.filterwarnings("ignore", message)
    without_tips()


def without_tips() -> None:
    """Silences Lightning's advice about other packages, and deprecations inside packages."""
    for name in LOGGERS:
        # The logger that writes what the first process alone writes.
        logging.getLogger(f"{name}.utilities.rank_zero").addFilter(_is_no_tip)
    warnings.filterwarnings("ignore", ".*smaller than the logging interval.*")
    warnings.filterwarnings("ignore", ".*`tensorboardX` has been removed as a dependency.*")
    for category in (FutureWarning, DeprecationWarning):
        warnings.filterwarnings("ignore", category=category, module="(lightning|torch).*")


def _is_no_tip(record: logging.LogRecord) -> bool:
    return "Tip: " not in record.getMessage()
