"""`compare`: several recipes and ensembles on the same checkpoints."""

from lightning_merge.commands import options
from lightning_merge.durations import in_seconds
from lightning_merge.measure.measurement import Measurement
from lightning_merge.measure.sweep import sweeps
from lightning_merge.recipe.recipe import Recipe
from lightning_merge.verbs import compare as run_comparison


def compare(words: list[str]) -> None:
    """Runs recipes on checkpoints: a table, `results.csv`, `results.json`, plots, merges."""
    parser = options.parser(
        "compare",
        "Runs several recipes on the same checkpoints and puts them into one table.",
        "results.csv, results.json, report.md, figures and the merged checkpoints",
    )
    options.add_checkpoints_and_model(parser)
    parser.add_argument("--recipes", type=list[Recipe], required=True, help=options.RECIPES)
    options.add_sweeps(parser)
    options.add_pools(parser)
    options.add_statistics(parser)
    parser.add_argument("--title", type=str, default="Comparison", help=options.TITLE)
    options.add_data_and_trainer(parser)
    config = options.plain(parser, parser.parse_args(options.with_checkpoints(words)))
    options.quiet(config["trainer"])
    swept = {entry.value.option: config[entry.value.option] for entry in sweeps}
    folder = config["output"]
    result = run_comparison(
        config["checkpoints"],
        config["recipes"],
        config["data"],
        **{name: config[name] for name in (*options.OF_CONTEXT, "pool_sizes", "title")},
        output=folder,
        overwrite=config["overwrite"],
        command=["compare", *words],
        config=config,
        on_context=options.print_heads,
        on_row=_print_row,
        **swept,
    )
    options.console.print(result.table())
    options.print_advice(result.recommendation.text)
    options.print_written(folder)


def _print_row(row: Measurement) -> None:
    accuracy = "-" if row.accuracy is None else f"{row.accuracy:.4f}"
    seconds = "" if row.seconds is None else f" ({in_seconds(row.seconds)} s)"
    text = f"  {row.method}: {accuracy}{seconds}"
    options.console.print(f"{text}; {row.chosen}" if row.chosen else text, soft_wrap=True)
