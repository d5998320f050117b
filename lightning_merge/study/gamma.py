"""Choosing CCA's gamma on examples held out of train, never on the test set."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor

from lightning_merge.aggregate import interpolate
from lightning_merge.align.matching.cca import Observation, choose
from lightning_merge.batches import inputs_of
from lightning_merge.checkpoint import StateDict
from lightning_merge.errors import ConfigError
from lightning_merge.study.recalibration import Recalibration, own_recalibration

if TYPE_CHECKING:
    from lightning_merge.study.pool import Pool

_TRY = "give CCAMatching a gamma of its own"


@dataclass(frozen=True)
class GammaChoice:
    """Which gamma was chosen for one ingredient, and by what.

    Attributes:
        ingredient: The ingredient that was mapped onto the first one.
        gamma: The ridge that was chosen, relative to the mean variance.
        scores: The score of each candidate, under its number.
        score: What was scored: `accuracy`, or `-loss` where there is none.
        selected_on: The examples that it was scored on.
        examples: How many of them there are; their labels were used.
    """

    ingredient: str
    gamma: float
    scores: dict[str, float]
    score: str
    selected_on: str
    examples: int

    def plain(self) -> dict[str, Any]:
        """The choice as JSON holds it."""
        return asdict(self)

    def __str__(self) -> str:
        return f"gamma {self.gamma:g}, chosen on {self.examples:,} examples: {self.selected_on}"


def choose_gamma(
    observed: Observation,
    candidates: list[float],
    first: StateDict,
    ingredient: str,
    pool: "Pool",
) -> tuple[dict[str, Tensor], GammaChoice]:
    """The aligned weights with the best gamma.

    The score is the held-out accuracy of the mean of both networks, recalibrated: BatchNorm
    reset, or REPAIR where there is none.

    Args:
        observed: The first ingredient and the one to align.
        candidates: Among which to choose.
        first: The first ingredient.
        ingredient: The name of the other one.
        pool: Gives validation data, Trainer and architecture.

    Returns:
        The aligned state dict, and what was chosen.

    Raises:
        ConfigError: If the validation reports neither accuracy nor loss.
    """
    kind = own_recalibration(pool.module)
    seen: dict[str, Any] = {}

    def score(state: dict[str, Tensor]) -> float:
        aligned = {name: value.cpu() for name, value in state.items()}
        module = pool.build(interpolate(first, aligned, 0.5))
        Recalibration(kind, [first, aligned], pool, "choice of gamma")(module)
        value, seen["score"], seen["examples"] = validate(module, pool.data, pool.trainer())
        return value

    gamma, scores = choose(observed, candidates, score, pool.progress)
    choice = GammaChoice(
        ingredient=ingredient,
        gamma=gamma,
        scores={f"{candidate:g}": value for candidate, value in scores.items()},
        selected_on=_held_out(pool.data),
        **seen,
    )
    return observed.state_for(gamma), choice


def check_held_out(data: LightningDataModule) -> None:
    """Checks that a data module has validation data.

    Raises:
        ConfigError: If it has none.
    """
    has = is_overridden("val_dataloader", data, LightningDataModule)
    if not has or data.val_dataloader() in (None, [], ()):
        raise ConfigError(
            "CCAMatching chooses gamma on examples held out of train, and "
            f"{type(data).__name__} has none: set its held_out, or {_TRY}"
        )


def validate(
    module: LightningModule, data: LightningDataModule, trainer: Trainer
) -> tuple[float, str, int]:
    """The score of a module on the validation data.

    Args:
        module: The module; its `validation_step` says what is measured.
        data: Gives the validation data.
        trainer: Runs the validation.

    Returns:
        The score, higher is better; what it is (`accuracy` or `-loss`); how many examples it
        stands on.

    Raises:
        ConfigError: If the module reports neither accuracy nor loss.
    """
    counter = _Counter()
    trainer.callbacks.append(counter)  # type: ignore[attr-defined]
    metrics: dict[str, float] = {}
    for found in trainer.validate(module, datamodule=data, verbose=False):
        metrics |= _plain_names(found)
    for name in ("accuracy", "acc"):
        if name in metrics:
            return metrics[name], "accuracy", counter.seen
    if "loss" in metrics:
        return -metrics["loss"], "-loss", counter.seen
    raise ConfigError(
        f"{type(module).__name__}'s validation_step logs neither val_accuracy (val_acc) nor "
        f"val_loss, which gamma could be chosen by: log one, or {_TRY}"
    )


def _plain_names(metrics: Mapping[str, float]) -> dict[str, float]:
    return {
        name.removeprefix("val_").removeprefix("val/"): float(value)
        for name, value in metrics.items()
    }


def _held_out(data: LightningDataModule) -> str:
    share = getattr(data, "held_out", None)
    if share is None:
        return f"the validation data of {type(data).__name__}"
    return "held out of train" if share > 0 else "the official validation split"


class _Counter(Callback):
    """Counts the examples that the validation really saw."""

    def __init__(self) -> None:
        self.seen = 0

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *args: Any
    ) -> None:
        """Adds the batch's examples."""
        del trainer, pl_module, outputs, args
        self.seen += len(inputs_of(batch))
