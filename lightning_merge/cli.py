"""The command line: Lightning's commands for any module, and our own for merging."""

import logging
import os
import pickle
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_merge.errors import MergeError
from lightning_merge.files import is_full
from lightning_merge.interrupts import no_interrupt_lost

_HELP = """usage: python -m lightning_merge COMMAND [options]

Train, align and merge image classifiers.

  fit, validate, test, predict   Lightning's own commands, on any LightningModule and
                                 LightningDataModule; with `model: MergeModule`, `fit`
                                 learns the alphas of a merge
  predict FOLDER --ckpt FILE --output predictions.csv
             predict the class of every image in a folder
  merge      run one recipe on checkpoints, evaluate it, write the merged checkpoint
  compare    run several recipes and ensembles on the same checkpoints
  study      train the ingredients too, over seeds; can be stopped, and goes on
  tasks      merge bodies of different tasks, measure on seen and unseen ones, corrupted too
  average    average checkpoint files; needs no network and no data
  join       put several folders of one study together into one
  leaders    rank the merges of several studies, by situation
  export     write a checkpoint as safetensors, as timm loads it, with a model card
  plot       draw figures from stored results and checkpoints
  list       what there is: presets, aggregates, matchings, recalibrations, selections, figures
  completion a script by which bash or zsh completes commands and options

`python -m lightning_merge COMMAND --help` says more about each. `-c preset:NAME` takes one of
the configurations that come with the package (`list presets`).
"""

LIGHTNING = ("fit", "validate", "test", "predict")
# Where Lightning reads the Trainer's settings.
_SETTINGS = (
    "lightning.pytorch.trainer.connectors",
    "lightning.pytorch.accelerators",
    "lightning.fabric",
)
OURS = (
    "merge",
    "compare",
    "study",
    "tasks",
    "average",
    "join",
    "leaders",
    "export",
    "plot",
    "list",
)
_UNDESCRIBED = ("completion",)
# They run in one process, whatever has started several.
_ON_ONE_PROCESS = ("merge", "compare", "study", "tasks")


def main(args: Sequence[str] | None = None) -> None:
    """Runs one command.

    Args:
        args: The command and its options; `sys.argv[1:]` if not given.

    Raises:
        SystemExit: With status 2 for errors that the user can fix (one line on standard
            error), 0 after `--help`, 130 after an interrupt, 143 where SIGTERM ended a Trainer, 1
            if nobody reads its output.
    """
    words = list(sys.argv[1:] if args is None else args)
    command = words[0] if words else "--help"
    try:
        with no_interrupt_lost():
            _run(command, words, args is not None)
        print(end="", flush=True)
    except (KeyboardInterrupt, SystemExit) as error:
        stopped = _stopped(error)
        if stopped is None:
            raise
        word, status = stopped
        more = "; the same command goes on" if command in ("study", "tasks") else ""
        print(f"lightning_merge {command}: {word}{more}", file=sys.stderr)
        raise SystemExit(status) from error
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            # Such as `head`, which has what it wants; Python itself writes at the end once more.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            raise SystemExit(1) from error
        mendable = _mendable(error) or _of_disk(error) or _of_trainer(error)
        if mendable is None:
            raise
        print(f"lightning_merge {command}: {mendable}", file=sys.stderr)
        raise SystemExit(2) from error


def _run(command: str, words: list[str], given: bool) -> None:
    if command in ("-h", "--help"):
        print(_HELP, end="")
        return
    if command == "--version":
        from lightning_merge import __version__

        print(__version__)
        return
    if not {"-h", "--help"}.isdisjoint(words):
        from lightning_merge.commands.described import described_parser

        of_folder = command == "predict" and (_of_folder(words[1:]) or len(words) == 2)
        parser = described_parser(["predict", "FOLDER"] if of_folder else words)
        if parser is not None:
            parser.print_help()
            raise SystemExit(0)
    if command == "predict" and _of_folder(words[1:]):
        from lightning_merge.commands.predict import predict

        predict(words[1:])
    elif command in LIGHTNING:
        _lightning(words if given else None)
    elif command in _ON_ONE_PROCESS and _is_other_rank(command):
        return
    elif command in (*OURS, *_UNDESCRIBED):
        from importlib import import_module

        module = import_module(f"lightning_merge.commands.{command}")
        getattr(module, command)(words[1:])
    else:
        known = ", ".join((*LIGHTNING, *OURS))
        raise MergeError(f"'{command}' is no command: choose {known}")


def _stopped(error: BaseException) -> tuple[str, int] | None:
    """How somebody stopped a command, in a word and as an exit status; None where nobody did."""
    # Lightning's Trainer turns both signals into a SystemExit, and SIGTERM into one of success.
    if type(error).__name__ == "SIGTERMException":
        return "terminated", 128 + signal.SIGTERM
    if isinstance(error, KeyboardInterrupt) or isinstance(error.__context__, KeyboardInterrupt):
        return "interrupted", 128 + signal.SIGINT
    return None


def _nobody_reads() -> bool:
    """Whether the standard output is a pipe that was closed at its other end."""
    from select import POLLERR, poll

    output = poll()
    output.register(1, 0)
    return any(found & POLLERR for _, found in output.poll(0))


def _of_folder(words: Sequence[str]) -> bool:
    """Whether `predict` is given a folder of images, and not a configuration for Lightning."""
    given = any(word.split("=")[0] == "--ckpt" for word in words)
    return given or bool(words and not words[0].startswith("-"))


def _is_other_rank(command: str) -> bool:
    """Whether this process is not the first of those that torchrun (or srun) started."""
    # Several tasks of a Slurm job may be given a study and share it.
    ranks = ("RANK", "SLURM_PROCID") if command in ("merge", "compare") else ("RANK",)
    return any(os.environ.get(rank, "0") not in ("", "0") for rank in ranks)


def _of_disk(error: BaseException) -> MergeError | None:
    """An error of the file system, or of torch's file reader, as a `MergeError`."""
    # torch raises its own kind of error when it cannot open a file, or the disk is full.
    _, failed, why = str(error).partition("open file failed with strerror: ")
    if failed:
        return MergeError(f"the output cannot be written ({why}); choose another --output")
    if is_full(error):
        name = getattr(error, "filename", None)
        where = f"{name}: " if name else ""
        return MergeError(
            f"{where}the disk is full, or the file too large for it; make room, or choose another "
            "--output"
        )
    if isinstance(error, pickle.UnpicklingError):
        return MergeError(
            "the checkpoint holds more than weights and plain values, and reading that could run "
            "code; give another one, or one saved without it"
        )
    if isinstance(error, OSError) and error.filename is not None:
        return MergeError(f"{error.filename}: {error.strerror}; choose another path")
    return None


def _mendable(error: BaseException | None) -> MergeError | None:
    # jsonargparse wraps an error raised while a class is built from a configuration, and sets
    # it as the cause. An error raised while a MergeError is handled has no cause: it is a bug.
    while error is not None and not isinstance(error, MergeError):
        error = error.__cause__
    return error


def _of_trainer(error: BaseException) -> MergeError | None:
    """An error of Lightning about the Trainer's settings or the module, as a `MergeError`."""
    if "lightning.pytorch" not in sys.modules:
        return None
    from lightning.pytorch.utilities.exceptions import MisconfigurationException

    from lightning_merge.commands.resumable import of_restoring, raised_in

    of_checkpoint = of_restoring(error)
    if of_checkpoint is not None:
        return of_checkpoint
    found: BaseException | None = error
    while found is not None:
        where = raised_in(found)
        if (
            isinstance(found, MisconfigurationException)
            or (isinstance(found, ValueError | TypeError) and where.startswith(_SETTINGS))
            # A logger or callback whose own package is not installed.
            or (isinstance(found, ModuleNotFoundError) and where.startswith("lightning."))
        ):
            return MergeError(f"Trainer: {' '.join(str(found).split())}")
        found = found.__cause__
    return None


def _lightning(words: list[str] | None) -> None:
    from lightning.pytorch import LightningDataModule, LightningModule, Trainer
    from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback

    # This import also makes the short names of our classes work as `class_path`.
    from lightning_merge.callbacks.first_batch import FirstBatch
    from lightning_merge.commands import fit_output
    from lightning_merge.commands.integers_first import read_integers_first
    from lightning_merge.commands.options import plain, without_tips
    from lightning_merge.commands.resumable import check_resumable
    from lightning_merge.commands.short_errors import ShortErrors
    from lightning_merge.commands.whole_lists import WholeLists
    from lightning_merge.files import write_text
    from lightning_merge.loggers import log_config

    without_tips()
    read_integers_first(Trainer.__init__)
    # After an interrupt `main` prints one line.
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: "KeyboardInterrupt" not in record.getMessage()
    )

    class KeepConfig(SaveConfigCallback):
        """Writes `config.yaml` into the run's folder if a logger makes one, and to W&B."""

        def save_config(self, trainer: Any, pl_module: Any, stage: Any) -> None:
            del pl_module, stage
            for logger in trainer.loggers:
                if type(logger).__name__ == "WandbLogger":
                    log_config(logger, plain(self.parser, self.config))
                elif logger.log_dir:
                    path = Path(logger.log_dir) / "config.yaml"
                    write_text(path, self.parser.dump(self.config, skip_none=False))

    class Parser(ShortErrors, WholeLists, LightningArgumentParser):
        """Lightning's parser with one-line errors, in which a later list replaces an earlier."""

    class CLI(LightningCLI):
        def _parse_ckpt_path(self) -> None:
            # The configuration defines the module. A checkpoint's hyper-parameters belong to
            # the module inside a merge, or do not name a class.
            return

        def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
            parser.set_defaults({"trainer.num_sanity_val_steps": 0})

        def before_instantiate_classes(self) -> None:
            check_resumable(self.config[self.subcommand].get("ckpt_path"))

        def instantiate_trainer(self, **kwargs: Any) -> Any:
            given = dict(self.config_init[self.subcommand]["trainer"])
            own = given.get("callbacks") or []
            own = list(own) if isinstance(own, list) else [own]
            trainer: Any = super().instantiate_trainer(**fit_output.without_bars(given), **kwargs)
            fit_output.add_output(trainer, own)
            trainer.callbacks.append(FirstBatch())
            return trainer

        def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
            given: dict[str, Any] = super()._prepare_subcommand_kwargs(subcommand)
            # Lightning's table of results has lines of letters that a log cannot be searched for.
            self._lines = bool(given.get("verbose")) and not fit_output.is_terminal()
            return {**given, "verbose": False} if self._lines else given

        def after_fit(self) -> None:
            fit_output.print_kept(self.trainer)

        def after_validate(self) -> None:
            if self._lines:
                fit_output.print_metrics(self.trainer)

        after_test = after_validate

        def before_predict(self) -> None:
            fit_output.say_if_unwritten(self.trainer, self.model)

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
