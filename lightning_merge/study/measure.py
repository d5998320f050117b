"""What is measured of a module: its metrics on the test set, and what it costs to run."""

import contextlib
import io
from dataclasses import asdict, dataclass, field
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule, Trainer


@dataclass
class Measurement:
    """One row of a table.

    Attributes:
        method: The recipe's name, or the ingredient's.
        kind: `ingredient`, `merge` (one network) or `ensemble` (several).
        accuracy: The share of test examples that are classified rightly; None if the
            module reports none.
        seconds: What making it took: alignment, aggregation, recalibration; for an
            ingredient, its training.
        parameters: How many parameters there are at inference.
        seed: The seed of the ingredients and of the merge.
        test_examples: How many test examples the figures stand on.
        train_examples: How many labelled examples were learned from; 0 if none.
        metrics: Every metric that the module reports, without the prefix `test_`.
    """

    method: str
    kind: str
    accuracy: float | None
    seconds: float
    parameters: int
    seed: int
    test_examples: int
    train_examples: int
    metrics: dict[str, float] = field(default_factory=dict)

    def row(self) -> dict[str, Any]:
        """The measurement with one column for each metric."""
        row = asdict(self)
        metrics = row.pop("metrics")
        return {**row, **{name: value for name, value in metrics.items() if name != "accuracy"}}


def measure(
    module: LightningModule,
    data: LightningDataModule,
    trainer: Trainer,
    method: str,
    kind: str,
    seconds: float,
    seed: int,
    train_examples: int,
) -> Measurement:
    """Tests a module and counts its parameters.

    Args:
        module: The module; its `test_step` says what is measured.
        data: Gives the test set.
        trainer: Runs the test.
        method: The row's name.
        kind: `ingredient`, `merge` or `ensemble`.
        seconds: What making the module took.
        seed: The seed that the row belongs to.
        train_examples: How many labelled examples the module was made with.

    Returns:
        The measurement.
    """
    metrics = evaluate(module, data, trainer)
    return Measurement(
        method=method,
        kind=kind,
        accuracy=metrics.get("accuracy"),
        seconds=seconds,
        parameters=parameters_at_inference(module),
        seed=seed,
        test_examples=len(data.test_dataloader().dataset),
        train_examples=train_examples,
        metrics=metrics,
    )


def evaluate(
    module: LightningModule, data: LightningDataModule, trainer: Trainer
) -> dict[str, float]:
    """The metrics that a module's test reports, without the prefix `test_` or `test/`."""
    with contextlib.redirect_stdout(io.StringIO()):
        results = trainer.test(module, datamodule=data, verbose=False)
    found: dict[str, float] = {}
    for metrics in results:
        for name, value in metrics.items():
            found[name.removeprefix("test_").removeprefix("test/")] = float(value)
    return found


def parameters_at_inference(module: LightningModule) -> int:
    """How many numbers must be held to predict; the alphas of a merge are not among them."""
    return sum(
        parameter.numel() for name, parameter in module.named_parameters() if name != "alpha_logits"
    )
