"""`leaders`: ranks the merges of several studies, by situation."""

from lightning_merge.commands import options
from lightning_merge.files import claim_folder
from lightning_merge.report.leader_table import FILES, leader_table


def leaders(words: list[str]) -> None:
    """Writes a leader table over finished studies."""
    parser = options.Parser(
        prog="python -m lightning_merge leaders",
        description="Mean rank of merges over studies: same or different initialisation, much or "
        "little data, how many networks, the same classes or not.",
    )
    parser.add_argument("folders", nargs="+", help="folders of finished studies")
    parser.add_argument("--output", type=str, required=True, help=f"folder for {', '.join(FILES)}")
    parser.add_argument("--overwrite", action="store_true", help="write over an earlier table")
    config = parser.parse_args(words)
    table = leader_table(config.folders)
    table.save(claim_folder(config.output, FILES, config.overwrite))
    overall = [row for row in table.rows if row.situation == "all"]
    for row in overall:
        options.console.print(
            f"{row.id}  {row.recipe}: rank {row.rank:.2f} of {row.of:.1f}, first in {row.first} of "
            f"{row.fields}",
            soft_wrap=True,
        )
    options.console.print(f"{config.output}: {', '.join(FILES)}", soft_wrap=True)
