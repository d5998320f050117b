"""The command line: Lightning's own commands on any module, and ours for merging."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_merge.errors import MergeError

_HELP = """usage: python -m lightning_merge COMMAND [options]

Train, align and merge image classifiers.

  fit, validate, test, predict   Lightning's own commands, on any LightningModule and
                                 LightningDataModule; with `model: MergeModule`, `fit`
                                 learns the alphas of a merge
  merge      run one recipe on checkpoints, evaluate it, write the merged checkpoint
  compare    run several recipes and ensembles on the same checkpoints
  study      train the ingredients too, over seeds; can be stopped, and goes on
  tasks      merge bodies of different tasks, measure on seen and unseen ones, corrupted too
  average    average checkpoint files; needs no network and no data
  export     write a checkpoint as safetensors, as timm loads it, with a model card
  plot       draw figures from stored results and checkpoints
  list       what there is: aggregates, matchings, recalibrations, selections, figures

`python -m lightning_merge COMMAND --help` says more about each.
"""

_LIGHTNING = ("fit", "validate", "test", "predict")
_OURS = ("merge", "compare", "study", "tasks", "average", "export", "plot", "list")


def main(args: Sequence[str] | None = None) -> None:
    """Runs one command.

    Args:
        args: The command and its options; those of the process if not given.

    Raises:
        SystemExit: With status 2 for what the user can mend (one line on standard error),
            with status 0 after `--help`.
    """
    words = list(sys.argv[1:] if args is None else args)
    command = words[0] if words else "--help"
    if command in ("-h", "--help"):
        print(_HELP, end="")
        return
    if command == "--version":
        from importlib.metadata import version

        print(version("lightning-merge"))
        return
    try:
        if command in _LIGHTNING:
            _lightning(words if args is not None else None)
        elif command in _OURS:
            from importlib import import_module

            module = import_module(f"lightning_merge.commands.{command}")
            getattr(module, command)(words[1:])
        else:
            known = ", ".join((*_LIGHTNING, *_OURS))
            raise MergeError(f"'{command}' is no command: choose {known}")
    except Exception as error:
        mendable = _mendable(error)
        if mendable is None and isinstance(error, OSError) and error.filename is not None:
            mendable = MergeError(f"{error.filename}: {error.strerror}; choose another path")
        if mendable is None:
            raise
        print(f"lightning_merge {command}: {mendable}", file=sys.stderr)
        raise SystemExit(2) from error


def _mendable(error: BaseException | None) -> MergeError | None:
    # jsonargparse wraps what a class raises while it is being built from a configuration, and
    # names it as the cause. What goes wrong while a MergeError is handled has none: it is ours.
    while error is not None and not isinstance(error, MergeError):
        error = error.__cause__
    return error


def _lightning(words: list[str] | None) -> None:
    from lightning.pytorch import LightningDataModule, LightningModule
    from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback

    # This import also makes the short names of our classes work as `class_path`.
    from lightning_merge.commands.options import plain
    from lightning_merge.files import write_text
    from lightning_merge.loggers import log_config
    from lightning_merge.short_errors import ShortErrors

    class KeepConfig(SaveConfigCallback):
        """Writes `config.yaml` where a logger gives each run a folder, and to W&B."""

        def save_config(self, trainer: Any, pl_module: Any, stage: Any) -> None:
            del pl_module, stage
            for logger in trainer.loggers:
                if type(logger).__name__ == "WandbLogger":
                    log_config(logger, plain(self.parser, self.config))
                elif logger.log_dir:
                    path = Path(logger.log_dir) / "config.yaml"
                    write_text(path, self.parser.dump(self.config, skip_none=False))

    class Parser(ShortErrors, LightningArgumentParser):
        """Lightning's parser, brief about what is wrong."""

    class CLI(LightningCLI):
        def _parse_ckpt_path(self) -> None:
            # The configuration says what the module is; a checkpoint's hyper-parameters are
            # those of the module inside a merge, or lack a class.
            return

        def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
            parser.set_defaults({"trainer.num_sanity_val_steps": 0})

    CLI(
        LightningModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        seed_everything_default=0,
        parser_class=Parser,
        save_config_callback=KeepConfig,
        save_config_kwargs={"save_to_log_dir": False},
        auto_configure_optimizers=False,
        parser_kwargs={"prog": "python -m lightning_merge"},
        args=words,
    )
