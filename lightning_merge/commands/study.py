"""`study`: trains the ingredients too, over several seeds, and resumes where it was stopped."""

from collections.abc import Mapping
from typing import Any

from jsonargparse import ArgumentParser

from lightning_merge.commands import options
from lightning_merge.commands.execution import add_execution, run
from lightning_merge.recipe.recipe import Recipe
from lightning_merge.study_verbs import estimate_study, run_study


def study(words: list[str]) -> None:
    """Trains ingredients, runs recipes on them, and writes tables, figures and a report."""
    result, folder = run("study", _parser(), words, estimate_study, run_study, _measured)
    if result is None:
        return
    options.console.print(result.table())
    options.print_advice(result.recommendation.text)
    options.print_written(folder)


def _parser() -> ArgumentParser:
    parser = options.parser(
        "study",
        "Trains the ingredients that are missing, runs recipes on them over seeds, reports.",
        "results.csv, results.json, report.md, figures, merges and finished runs",
    )
    options.add_model(parser, required=True)
    parser.add_argument(
        "--ingredients",
        type=list[dict[str, Any]],
        default=[{}, {}],
        help="arguments of the data module for each ingredient that is trained, for example "
        "'[{part: 0}, {part: 1}]'",
    )
    parser.add_argument(
        "--training",
        type=dict[str, Any],
        default={},
        help="the Trainer's arguments while ingredients are trained, for example '{max_epochs: 2}'",
    )
    parser.add_argument(
        "--start",
        type=dict[str, Any] | None,
        default=None,
        help="the Trainer's arguments, for example '{max_epochs: 2}', for a network that all "
        "ingredients start from; each has initial weights of its own if not given",
    )
    parser.add_argument(
        "--seeds", type=list[int], default=[0], help="the study is run once for each"
    )
    parser.add_argument("--recipes", type=list[Recipe], required=True, help=options.RECIPES)
    options.add_sweeps(parser)
    options.add_pools(parser)
    options.add_statistics(parser)
    parser.add_argument("--title", type=str, default="Study", help=options.TITLE)
    options.add_paper(parser)
    options.add_data_and_trainer(parser)
    add_execution(parser)
    return parser


def _measured(result: Mapping[str, Any]) -> str:
    row = result.get("row") or {}
    size, accuracy = row.get("pool_size"), row.get("accuracy")
    return (f" of {size}" if size else "") + ("" if accuracy is None else f": {accuracy:.4f}")
