"""`compare`: several recipes and ensembles on the same checkpoints."""

from pathlib import Path
from typing import Any

from lightning_merge.checkpoint import StateDict, read_checkpoint, write_checkpoint
from lightning_merge.commands import options
from lightning_merge.files import claim_folder
from lightning_merge.loggers import log_config
from lightning_merge.study.barrier import check_triangle, measure_lines, measure_triangles
from lightning_merge.study.build import build_recipe, open_pool
from lightning_merge.study.compare import (
    Outcome,
    check_names,
    measure_ingredients,
    merge_path,
    network_name,
    run_recipe,
)
from lightning_merge.study.lines import lines_of
from lightning_merge.study.magnitude import check_classes, measure_magnitudes
from lightning_merge.study.measure import Measurement
from lightning_merge.study.plan import check_barrier, check_magnitudes, check_pool_sizes
from lightning_merge.study.provenance import provenance
from lightning_merge.study.publish import RESULTS, keep_only, metric_columns, publish
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
    options.add_landscape(parser)
    options.add_pools(parser)
    options.add_statistics(parser)
    parser.add_argument("--title", type=str, default="Comparison")
    options.add_data_and_trainer(parser)
    parsed = parser.parse_args(words)
    config = options.plain(parser, parsed)
    options.quiet()
    check_barrier(config["barrier"])
    check_triangle(config["triangle"], len(config["checkpoints"]))
    check_magnitudes(config["magnitudes"])
    check_pool_sizes(config["pool_sizes"], len(config["checkpoints"]))
    sizes = config["pool_sizes"] or [len(config["checkpoints"])]
    recipes = [build_recipe(recipe) for recipe in config["recipes"]]
    check_names(recipes)
    folder = claim_folder(config["output"], RESULTS, config["overwrite"])
    pool, loggers = open_pool(config)
    for size in sizes:
        for recipe in recipes:
            recipe.check_pool(pool.first(size))
    if config["magnitudes"]:
        check_classes(pool)
    for logger in loggers:
        log_config(logger, config)

    options.say_heads(pool.heads)
    rows = []
    for measurement in measure_ingredients(pool):
        _say(measurement)
        rows.append(measurement.row())
    alphas = None
    kept: set[Path] = set()
    choices: dict[str, Any] = {}
    for size in sizes:
        if len(sizes) > 1:
            options.console.print(f"  [bold]{size} ingredients[/bold]")
        for recipe in recipes:
            outcome = run_recipe(recipe, pool.first(size))
            _say(outcome.measurement, outcome.chosen)
            kept |= _keep(outcome, merge_path(folder, recipe.name, size, sizes))
            rows.append(outcome.row())
            if outcome.choices:
                of = f", {size} ingredients" if len(sizes) > 1 else ""
                choices[recipe.name + of] = outcome.choices
            alphas = (outcome.content or {}).get("lightning_merge", {}).get("alphas", alphas)
    landscape = [build_recipe(line) for line in lines_of(config["recipes"])]
    lines, triangles = [], []
    if config["barrier"]:
        lines = [line.plain() for line in measure_lines(pool, landscape, config["barrier"])]
    if config["triangle"]:
        found = measure_triangles(pool, landscape, config["triangle"])
        triangles = [triangle.plain() for triangle in found]
    magnitudes = []
    if config["magnitudes"]:

        def weights(name: str, size: int) -> StateDict:
            return read_checkpoint(merge_path(folder, name, size, sizes)).state_dict

        measured = measure_magnitudes(pool, recipes, config["magnitudes"], sizes, weights)
        magnitudes = [one.plain() for one in measured]
    columns = metric_columns(rows)
    options.console.print(terminal_table(summarise(rows, columns), config["title"], columns))
    details = {
        "config": config,
        "network": network_name(pool.module),
        "ingredients": dict(zip(pool.names, pool.digests, strict=True)),
        "split_hash": getattr(pool.data, "split_hash", None),
        "statistics_examples": pool.statistics_examples,
        "choices": choices,
    }
    made_by = provenance(["compare", *words])
    keep_only(folder, kept)
    publish(
        folder,
        config["title"],
        rows,
        made_by,
        details,
        lines,
        triangles,
        alphas,
        loggers,
        magnitudes,
    )
    options.console.print(f"{folder}: results.csv, results.json, report.md, figures, merges/")


def _say(measurement: Measurement, chosen: str = "") -> None:
    accuracy = "-" if measurement.accuracy is None else f"{measurement.accuracy:.4f}"
    seconds = "" if measurement.seconds is None else f" ({measurement.seconds:.1f} s)"
    text = f"  {measurement.method}: {accuracy}{seconds}"
    options.console.print(f"{text}; {chosen}" if chosen else text, soft_wrap=True)


def _keep(outcome: Outcome, path: Path) -> set[Path]:
    return set() if outcome.content is None else {write_checkpoint(path, outcome.content)}
