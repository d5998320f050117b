"""`join`: puts several folders of one study together into one."""

from lightning_merge.commands import options
from lightning_merge.study_verbs import join as join_folders


def join(words: list[str]) -> None:
    """Checks and copies finished work, and writes the results where nothing is left to do."""
    parser = options.Parser(
        prog="python -m lightning_merge join",
        description="Puts several folders of one study together: seeds, recipes, pool sizes.",
    )
    parser.add_argument("folders", nargs="+", help="folders of `study`, or folders of `tasks`")
    parser.add_argument("--output", type=str, required=True, help="the folder for all of them")
    config = parser.parse_args(words)
    options.quiet()
    joined = join_folders(config.folders, config.output)
    left = f"{joined.left} are left to do" if joined.left else "all are finished"
    text = f"{config.output}: {joined.copied} pieces of work copied; {left}"
    options.console.print(text, soft_wrap=True)
