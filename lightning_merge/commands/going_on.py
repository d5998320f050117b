"""What `study` and `tasks` have in common: options to a folder in which stopped work goes on."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser
from lightning.pytorch.loggers import Logger

from lightning_merge.commands import options
from lightning_merge.errors import OutputExistsError
from lightning_merge.files import claim_folder, read_json, write_json
from lightning_merge.loggers import log_config
from lightning_merge.study.build import instantiate_trainer
from lightning_merge.study.plan import Plain, determining
from lightning_merge.study.store import Store

# More of these goes on where less of them ended.
_GROWS = ("seeds", "recipes", "pool_sizes")


@dataclass
class Run:
    """What the command line asks for.

    Attributes:
        config: The study's own options, plain.
        folder: Where results go.
        overwrite: Whether another study's results there may be written over.
        trainer: The Trainer's arguments, with callbacks made.
        loggers: Where results are sent as well.
    """

    config: Plain
    folder: Path
    overwrite: bool
    trainer: dict[str, Any]
    loggers: list[Logger]

    @classmethod
    def of(cls, parser: ArgumentParser, words: list[str]) -> "Run":
        """Parses a command line.

        Args:
            parser: Knows `--output`, `--overwrite`, `--trainer` and the study's options.
            words: The command line after the command.

        Raises:
            MergeError: If a callback or logger cannot be made.
        """
        config = options.plain(parser, parser.parse_args(words))
        options.quiet()
        folder, overwrite = Path(config.pop("output")), config.pop("overwrite")
        trainer = instantiate_trainer(config["trainer"])
        return cls(config, folder, overwrite, trainer, trainer.pop("loggers"))

    @property
    def store(self) -> Store:
        """Where finished work lies."""
        return Store(self.folder / "runs")

    def claim(self, name: str, results: Sequence[str], shown: Sequence[str]) -> None:
        """Takes the folder for this study, and sends the configuration to the loggers.

        The same study, or one that does more, goes on in its folder; another one would write
        over its tables.

        Args:
            name: Of the file that says which study the folder holds.
            results: What is written into the folder.
            shown: Options that change what is shown or added, and nothing that is stored.

        Raises:
            OutputExistsError: If the folder holds another study, and is not to be overwritten.
        """
        kept = self.folder / name
        same = kept.is_file() and goes_on(read_json(kept), self.config, shown)
        if kept.is_file() and not self.overwrite and not same:
            raise OutputExistsError(
                f"{self.folder} holds another study: choose another --output, or add --overwrite "
                "(what both studies share is not computed again)"
            )
        claim_folder(self.folder, () if kept.is_file() else results, self.overwrite)
        write_json(kept, self.config)
        for logger in self.loggers:
            log_config(logger, self.config)


def goes_on(before: Plain, now: Plain, shown: Sequence[str]) -> bool:
    """Whether a study does all that another one did, and that one's results are results of it.

    Args:
        before: The options of the one that was begun.
        now: Those of the one that is asked for.
        shown: As for `Run.claim`.
    """
    before, now = (
        {**one, "trainer": determining(one.get("trainer") or {})} for one in (before, now)
    )
    same = all(before.get(key) == now[key] for key in now if key not in (*_GROWS, *shown))
    more = (key for key in _GROWS if key in now)
    return same and all(item in now[key] for key in more for item in before.get(key) or [])
