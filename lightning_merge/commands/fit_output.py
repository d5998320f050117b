"""What Lightning's commands print and keep: plain lines in logs, the best checkpoint of a fit."""

import sys
from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import (
    BasePredictionWriter,
    ModelCheckpoint,
    ModelSummary,
    ProgressBar,
    RichModelSummary,
)

from lightning_merge.callbacks.best_checkpoint import BestCheckpoint, kept_line
from lightning_merge.callbacks.plain_lines import PlainLines, in_words, print_line


def is_terminal() -> bool:
    """Whether the output is read by a person as it appears."""
    return sys.stdout.isatty()


def without_bars(given: dict[str, Any]) -> dict[str, Any]:
    """What switches a Trainer's bar off, where it has not chosen one and there is no terminal."""
    callbacks = given.get("callbacks") or []
    chosen = given.get("enable_progress_bar") is not None or any(
        isinstance(one, ProgressBar)
        for one in (callbacks if isinstance(callbacks, Sequence) else [callbacks])
    )
    return {} if chosen or is_terminal() else {"enable_progress_bar": False}


def add_output(trainer: Any, own: Sequence[Callback]) -> None:
    """Gives a Trainer lines where it has no bar, and the checkpoint of the best epoch.

    A ModelCheckpoint among its configuration's `own` callbacks stays.
    """
    for place, callback in enumerate(trainer.callbacks):
        if type(callback) is ModelCheckpoint and not any(callback is one for one in own):
            trainer.callbacks[place] = BestCheckpoint()
        if type(callback) is RichModelSummary and not is_terminal():
            trainer.callbacks[place] = ModelSummary(callback._max_depth)
    if trainer.progress_bar_callback is None and not is_terminal():
        # Before checkpoints, which are written last.
        trainer.callbacks.insert(0, PlainLines())


def print_metrics(trainer: Trainer) -> None:
    """Prints the metrics of `validate` and `test`, a line each."""
    for name, value in trainer.callback_metrics.items():
        print_line(in_words({name: value}))


def print_kept(trainer: Trainer) -> None:
    """Prints which checkpoint a fit leaves."""
    line = kept_line(trainer)
    if line:
        print_line(line)


def say_if_unwritten(trainer: Any, module: LightningModule) -> None:
    """Says before `predict` that nothing keeps what it computes, where that is so."""
    hooks = ("on_predict_batch_end", "on_predict_epoch_end", "on_predict_end")
    others = [
        one
        for one in (module, *trainer.callbacks)
        # Bars and timers take part, too.
        if not type(one).__module__.startswith(("lightning.", "lightning_merge."))
    ]
    keeps = any(isinstance(one, BasePredictionWriter) for one in trainer.callbacks) or any(
        getattr(type(one), hook)
        is not getattr(LightningModule if one is module else Callback, hook)
        for one in others
        for hook in hooks
    )
    if not keeps:
        print(
            "lightning_merge predict: no callback writes the predictions, which are lost: add a "
            "BasePredictionWriter of yours to trainer.callbacks",
            file=sys.stderr,
        )
