"""`merge`: one recipe on checkpoints."""

from lightning_merge.commands import options
from lightning_merge.recipe.recipe import Recipe
from lightning_merge.verbs import merge as run_merge


def merge(words: list[str]) -> None:
    """Runs one recipe, evaluates it, writes `merged.ckpt` and `result.json`."""
    parser = options.parser(
        "merge",
        "Runs one recipe on checkpoints of one architecture and evaluates the result.",
        "merged.ckpt and result.json",
    )
    options.add_checkpoints_and_model(parser)
    parser.add_argument("--recipe", type=Recipe, required=True)
    options.add_statistics(parser)
    options.add_data_and_trainer(parser)
    config = options.plain(parser, parser.parse_args(options.with_checkpoints(words)))
    options.quiet(config["trainer"])
    folder, overwrite = config["output"], config["overwrite"]
    result = run_merge(
        config["checkpoints"],
        config["recipe"],
        config["data"],
        **{name: config[name] for name in options.OF_CONTEXT},
        output=folder,
        overwrite=overwrite,
        command=["merge", *words],
        config=config,
        on_context=options.print_heads,
    )
    if options.console.is_terminal:
        options.console.print(result.table())
    else:
        header, *lines = result.cells()
        for method, *cells in lines:
            known = [f"{name} {cell}" for name, cell in zip(header[1:], cells, strict=True) if cell]
            options.console.print(f"{method}: {', '.join(known)}", soft_wrap=True)
    if result.rows[0].chosen:
        options.console.print(result.rows[0].chosen, soft_wrap=True)
    options.console.print(f"{folder}/merged.ckpt", soft_wrap=True)
