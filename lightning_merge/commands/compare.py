"""`compare`: several recipes and ensembles on the same checkpoints."""

from pathlib import Path
from typing import Any

from lightning_merge.align import ActivationMatching
from lightning_merge.checkpoint import write_checkpoint
from lightning_merge.commands import options
from lightning_merge.files import claim_folder
from lightning_merge.loggers import log_config
from lightning_merge.study.barrier import measure_lines
from lightning_merge.study.build import build_recipe, open_pool
from lightning_merge.study.compare import (
    Outcome,
    check_names,
    file_name,
    measure_ingredients,
    run_recipe,
)
from lightning_merge.study.measure import Measurement
from lightning_merge.study.plan import check_barrier
from lightning_merge.study.provenance import provenance
from lightning_merge.study.publish import RESULTS, metric_columns, publish
from lightning_merge.study.recipe import Recipe
from lightning_merge.study.report import summarise, terminal_table


def compare(words: list[str]) -> None:
    """Runs recipes on checkpoints: a table, `results.csv`, `results.json`, plots, merges.

    Args:
        words: The command line after `compare`.

    Raises:
        MergeError: If the user can mend it.
    """
    parser = options.parser(
        "compare",
        "Runs several recipes on the same checkpoints and puts them into one table.",
        "results.csv, results.json, report.md, figures and the merged checkpoints",
    )
    options.add_checkpoints_and_model(parser)
    parser.add_argument("--recipes", type=list[Recipe], required=True)
    parser.add_argument(
        "--barrier",
        type=int,
        default=0,
        help="at how many points between the first two checkpoints to measure the loss",
    )
    parser.add_argument("--title", type=str, default="Comparison")
    options.add_data_and_trainer(parser)
    parsed = parser.parse_args(words)
    config = options.plain(parser, parsed)
    options.quiet()
    check_barrier(config["barrier"])
    recipes = [build_recipe(recipe) for recipe in config["recipes"]]
    check_names(recipes)
    folder = claim_folder(config["output"], RESULTS, config["overwrite"])
    pool, loggers = open_pool(config)
    for logger in loggers:
        log_config(logger, config)

    rows = []
    for measurement in measure_ingredients(pool):
        _say(measurement)
        rows.append(measurement.row())
    alphas = None
    for recipe in recipes:
        outcome = run_recipe(recipe, pool)
        _say(outcome.measurement)
        _keep(outcome, folder)
        rows.append(outcome.measurement.row())
        alphas = (outcome.content or {}).get("lightning_merge", {}).get("alphas", alphas)
    lines: list[dict[str, Any]] = []
    if config["barrier"]:
        lines = [
            line.plain() for line in measure_lines(pool, ActivationMatching(), config["barrier"])
        ]
    columns = metric_columns(rows)
    options.console.print(terminal_table(summarise(rows, columns), config["title"], columns))
    details = {
        "config": config,
        "ingredients": dict(zip(pool.names, pool.digests, strict=True)),
        "split_hash": getattr(pool.data, "split_hash", None),
    }
    made_by = provenance(["compare", *words])
    publish(folder, config["title"], rows, made_by, details, lines, alphas, loggers)
    options.console.print(f"{folder}: results.csv, results.json, report.md, figures, merges/")


def _say(measurement: Measurement) -> None:
    accuracy = "-" if measurement.accuracy is None else f"{measurement.accuracy:.4f}"
    seconds = "" if measurement.seconds is None else f" ({measurement.seconds:.1f} s)"
    options.console.print(f"  {measurement.method}: {accuracy}{seconds}")


def _keep(outcome: Outcome, folder: Path) -> None:
    if outcome.content is not None:
        name = file_name(outcome.measurement.method)
        write_checkpoint(folder / "merges" / f"{name}.ckpt", outcome.content)
