"""What is measured of a module: its metrics on the test set, and what it costs to run."""

import contextlib
import copy
import io
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_merge.loaders import not_torn_down
from lightning_merge.measure.answers import Answers, recording
from lightning_merge.measure.cost import flops, parameters_at_inference
from lightning_merge.measure.guessing import majority
from lightning_merge.measure.intervals import interval_of
from lightning_merge.recipe.counting import ExampleCounter, counting
from lightning_merge.recipe.held_out import validation_loaders

AVERAGE = "Ingredients' average"


@dataclass
class Measurement:
    """One row of a table.

    Attributes:
        method: The recipe's name, or the ingredient's.
        kind: `ingredient`, `merge` (one network) or `ensemble` (several).
        accuracy: The share of test examples that are classified correctly; None if the
            module reports none.
        seconds: How long making it took: alignment, aggregation, recalibration; for an
            ingredient, its training; None if that is not known.
        parameters: How many parameters there are at inference.
        seed: The seed of the ingredients and of the merge.
        test_examples: How many test examples the figures stand on.
        train_examples: How many labelled examples were learned from; 0 if none, None if that
            is not known.
        flops: The operations of one prediction (a multiply-add is two); None if the module
            cannot be called with its input alone.
        pool_size: How many ingredients it was made of; None for an ingredient.
        metrics: Every metric that the module reports, without the prefix `test_`.
        chosen: What was chosen on held-out data, in words; or what was drawn.
        held_out: The accuracy, by the module's own test, on the data module's validation data,
            by which methods may be chosen; None where there are none.
        held_out_examples: How many held-out examples that are: 0 where nothing was held out, None
            where it was not measured.
        majority: The accuracy on the test set of always giving the most frequent training class
            (`measure.guessing.majority`); None if the classes are not known.
        accuracy_low: The lower end of the accuracy's 95% interval over test examples.
        accuracy_high: The upper end.
        interval: How the interval was made: `bootstrap`, or `Wilson` where it is not known which
            examples are right.
        chose: Whether held-out data were looked at to make it. It is no column of a table
            (`stored` keeps it).
        answers: What was answered for each test example; None if that is not known. Likewise.
    """

    method: str
    kind: str
    accuracy: float | None
    seconds: float | None
    parameters: int
    seed: int
    test_examples: int
    train_examples: int | None
    flops: int | None = None
    pool_size: int | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    chosen: str = ""
    held_out: float | None = None
    held_out_examples: int | None = None
    majority: float | None = None
    accuracy_low: float | None = None
    accuracy_high: float | None = None
    interval: str = ""
    chose: bool = False
    answers: Answers | None = field(default=None, repr=False)

    @property
    def test_sizes(self) -> tuple[int, ...]:
        """How many test examples the accuracy stands on, of each task where it is over several."""
        return (self.test_examples,)

    @property
    def held_out_step(self) -> float:
        """How much one held-out example changes the accuracy on all of them."""
        return 1 / (self.held_out_examples or 1)

    def row(self) -> dict[str, Any]:
        """The measurement as in CSV and JSON, with one column for each metric."""
        row = asdict(replace(self, answers=None))
        metrics, chosen = row.pop("metrics"), row.pop("chosen")
        del row["answers"], row["chose"]
        row |= as_cells(
            type(self), {name: one for name, one in metrics.items() if name != "accuracy"}
        )
        return {**row, "chosen": chosen} if chosen else row

    def stored(self) -> dict[str, Any]:
        """The row with what is no column of a table, as `of_row` reads it again."""
        answers = {} if self.answers is None else {"answers": self.answers.plain()}
        return {**self.row(), "chose": self.chose, **answers}

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> "Measurement":
        """The measurement of a stored row."""
        known, metrics = split_row(cls, row)
        known.setdefault("chose", bool(known.get("chosen")))
        if known.get("accuracy") is not None:
            metrics["accuracy"] = known["accuracy"]
        if known.get("answers") is not None:
            known["answers"] = Answers.of_plain(known["answers"])
        return cls(**known, metrics=metrics)


def as_cells(kind: type, metrics: Mapping[str, float]) -> dict[str, float]:
    """Metrics as they stand in a row beside a dataclass's fields: `test_seconds` for `seconds`."""
    own = {one.name for one in fields(kind)}
    return {f"test_{name}" if name in own else name: one for name, one in metrics.items()}


def split_row(kind: type, row: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, float]]:
    """The fields of a dataclass in a stored row, and the metrics beside them."""
    own = {one.name for one in fields(kind)} - {"metrics"}
    known = {name: value for name, value in row.items() if name in own}
    return known, {name: value for name, value in row.items() if name not in own}


def measure(
    module: LightningModule,
    data: LightningDataModule,
    trainer: Trainer,
    method: str,
    kind: str,
    seconds: float | None,
    seed: int,
    train_examples: int | None,
) -> Measurement:
    """Tests a module on held-out and on test data, and counts its parameters and operations.

    `method` and what follows are as in `Measurement`.
    """
    # Before the test, so that what a module's hooks write last is of the test.
    held_out, held_out_examples = on_held_out(module, data, trainer)
    tested = answered_test(module, data, trainer)
    return Measurement(
        method=method,
        kind=kind,
        accuracy=tested.metrics.get("accuracy"),
        seconds=seconds,
        parameters=parameters_at_inference(module),
        seed=seed,
        test_examples=tested.examples,
        train_examples=train_examples,
        flops=_flops(module, tested.example),
        metrics=tested.metrics,
        held_out=held_out,
        held_out_examples=held_out_examples,
        majority=tested.majority,
        **tested.interval,
        answers=tested.answers,
    )


@dataclass(frozen=True)
class Tested:
    """A test of a module, with what is known of each example.

    Metrics and examples are those of `evaluate`, answers and majority those of `Measurement`;
    `example` is a batch's first input, None if there is none.
    """

    metrics: dict[str, float]
    examples: int
    answers: Answers | None
    majority: float | None
    example: Tensor | None

    @property
    def interval(self) -> dict[str, Any]:
        """The fields of a measurement that are about its accuracy's interval."""
        right = None if self.answers is None else self.answers.right
        found = interval_of(right, self.metrics.get("accuracy"), self.examples)
        if found is None:
            return {}
        return {"accuracy_low": found.low, "accuracy_high": found.high, "interval": found.how}


def answered_test(module: LightningModule, data: LightningDataModule, trainer: Trainer) -> Tested:
    """Tests a module, and records what it answers."""
    with recording(trainer, module) as recorded:
        metrics, seen = _tested(module, data, trainer)
    answers, targets = recorded.answers(seen.count, metrics.get("accuracy")), recorded.targets
    if answers is None and targets is not None and targets.ndim > 1:
        # Probabilities of classes, or one class as a row of zeros and a one, are no labels.
        targets = None
    with isolate_rng():
        guessed = majority(data, targets)
    return Tested(metrics, seen.count, answers, guessed, seen.example)


def evaluate(
    module: LightningModule, data: LightningDataModule, trainer: Trainer
) -> tuple[dict[str, float], int]:
    """Tests a module.

    Returns:
        The metrics that the module's test reports, without the prefix `test_` or `test/` (`acc` is
        `accuracy`), and how many examples they stand on. Of several loaders each has its own, and
        accuracy and loss are those of all examples.
    """
    metrics, seen = _tested(module, data, trainer)
    return metrics, seen.count


def on_held_out(
    module: LightningModule, data: LightningDataModule, trainer: Trainer
) -> tuple[float | None, int | None]:
    """The accuracy of the module's own test on the validation data, and on how many examples.

    Nothing is measured, None and None, where these are in several loaders.
    """
    with isolate_rng():
        loaders = validation_loaders(data)
        if not loaders:
            return None, 0
        loader, *others = loaders
        if others or not isinstance(loader, DataLoader):
            return None, None
        held_out = copy.copy(data)
        held_out.test_dataloader = lambda: loader  # type: ignore[method-assign]
        metrics, examples = evaluate(module, held_out, trainer)
    return metrics.get("accuracy"), examples


def _tested(
    module: LightningModule, data: LightningDataModule, trainer: Trainer
) -> tuple[dict[str, float], ExampleCounter]:
    quiet = contextlib.redirect_stdout(io.StringIO())
    with quiet, counting(trainer) as seen, not_torn_down(data):
        results = trainer.test(module, datamodule=data, verbose=False)
    found = {
        name.removeprefix("test_").removeprefix("test/"): float(value)
        for metrics in results
        for name, value in metrics.items()
    }
    # Lightning reports what several loaders have one by one.
    for name in ("acc", "accuracy", "loss"):
        parts = {f"{name}/dataloader_idx_{index}": count for index, count in seen.counts.items()}
        if parts and parts.keys() <= found.keys():
            found[name] = sum(found[part] * count for part, count in parts.items()) / seen.count
    if "acc" in found and "accuracy" not in found:
        found["accuracy"] = found.pop("acc")
    return found, seen


def _flops(module: LightningModule, example: Tensor | None) -> int | None:
    if example is None:
        return None
    try:
        return flops(module, example)
    except Exception:
        # A module that has no `forward`, or one that takes more than the input: a whole batch of
        # which it unpacks the target raises what it likes.
        return None
