"""`merge`: one recipe on checkpoints."""

from lightning_merge.checkpoint import write_checkpoint
from lightning_merge.commands import options
from lightning_merge.errors import ConfigError
from lightning_merge.files import claim_folder, write_json
from lightning_merge.study.build import build_recipe, open_pool
from lightning_merge.study.compare import run_recipe
from lightning_merge.study.provenance import provenance
from lightning_merge.study.publish import metric_columns
from lightning_merge.study.recipe import Recipe
from lightning_merge.study.report import summarise, terminal_table


def merge(words: list[str]) -> None:
    """Runs one recipe, evaluates it, writes `merged.ckpt` and `result.json`.

    Args:
        words: The command line after `merge`.

    Raises:
        MergeError: If the user can mend it.
    """
    parser = options.parser(
        "merge",
        "Runs one recipe on checkpoints of one architecture and evaluates the result.",
        "merged.ckpt and result.json",
    )
    options.add_checkpoints_and_model(parser)
    parser.add_argument("--recipe", type=Recipe, required=True)
    options.add_statistics(parser)
    options.add_data_and_trainer(parser)
    parsed = parser.parse_args(words)
    config = options.plain(parser, parsed)
    options.quiet()
    recipe = build_recipe(config["recipe"])
    if not recipe.aggregate.merges:
        raise ConfigError(
            f"recipe '{recipe.name}' is an ensemble, not one network: `compare` evaluates those"
        )
    folder = claim_folder(config["output"], ("merged.ckpt", "result.json"), config["overwrite"])
    pool, _ = open_pool(config)
    options.say_heads(pool.heads)
    outcome = run_recipe(recipe, pool)
    assert outcome.content is not None
    row = outcome.row()
    write_checkpoint(folder / "merged.ckpt", outcome.content)
    result = {
        **provenance(["merge", *words]),
        "config": config,
        "ingredients": dict(zip(pool.names, pool.digests, strict=True)),
        "split_hash": getattr(pool.data, "split_hash", None),
        "measurement": row,
        "choices": outcome.choices,
    }
    write_json(folder / "result.json", result)
    columns = metric_columns([row])
    options.console.print(terminal_table(summarise([row], columns), recipe.name, columns))
    if outcome.chosen:
        options.console.print(outcome.chosen, soft_wrap=True)
    options.console.print(f"{folder / 'merged.ckpt'}", soft_wrap=True)
