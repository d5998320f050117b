"""Scoring candidates: on the validation data, never on the test set."""

import copy
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from lightning.fabric.utilities.data import sized_len
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from lightning_merge.batches import inputs_of, needed_arguments
from lightning_merge.checkpoint import StateDict
from lightning_merge.errors import ConfigError
from lightning_merge.loaders import Transferred, example_inputs, loaders_in, not_torn_down
from lightning_merge.modules.last_layer import last_layer, take_off
from lightning_merge.orders import examples_of
from lightning_merge.recipe.counting import counting
from lightning_merge.reloading import reloaded

if TYPE_CHECKING:
    from lightning_merge.recipe.context import Context

_ACCURACY = ("val_accuracy", "val_acc", "val/accuracy", "val/acc")
_LOSS = ("val_loss", "val/loss")


def are_classes(targets: Tensor) -> bool:
    """Whether targets are one class an example."""
    return not targets.is_floating_point() and targets.numel() == len(targets)


def predicted_classes(logits: Tensor) -> Tensor:
    """The predicted classes `(B,)`; -1, which is none, where a logit is NaN.

    Of logits `(B, C)` the largest counts; those `(B, 1)` count by their signs.
    """
    # The largest of numbers of which one is NaN is NaN: a broken network would know that class.
    if logits.numel() == len(logits):
        logits = logits.flatten()
        return (logits > 0).long().masked_fill(logits.isnan(), -1)
    return logits.argmax(dim=1).masked_fill(logits.isnan().any(dim=1), -1)


def are_probabilities(outputs: Tensor) -> bool:
    """Whether outputs, one for each example, are probabilities, whose signs say nothing."""
    one = outputs.numel() == len(outputs) > 1
    return one and bool(0 <= outputs.min() < outputs.max() <= 1)


def are_right(logits: Tensor, targets: Tensor) -> Tensor:
    """Which predictions are right: `(B,)` booleans."""
    return predicted_classes(logits) == targets


def validation_loaders(data: LightningDataModule) -> list[Any]:
    """The loaders of a data module's validation data, in whatever collection they are given."""
    if not is_overridden("val_dataloader", data, LightningDataModule):
        return []
    return loaders_in(data.val_dataloader())


class HeldOut:
    """A context's validation data; a `ConfigError` if they are not in one loader."""

    def __init__(self, context: "Context") -> None:
        self.context = context
        loaders = validation_loaders(context.data)
        loader = loaders[0] if len(loaders) == 1 else None
        if not isinstance(loader, DataLoader) or not sized_len(loader):
            raise ConfigError(
                f"candidates are compared on held-out examples, and {type(context.data).__name__} "
                "has no validation data in one loader of known length: set its held_out"
            )
        self.loader: DataLoader[Any] = loader

    @property
    def size(self) -> int:
        """How many examples there are."""
        return len(self._examples)

    @cached_property
    def _examples(self) -> Sequence[Any]:
        # A data set may be divided by samplers: its other examples are those of training.
        if isinstance(self.loader.dataset, IterableDataset):
            return range(len(self.loader.dataset))  # type: ignore[arg-type]
        return examples_of(self.loader, self.context.seed)

    def shuffled(self, batch_size: int, drop_last: bool = False) -> DataLoader[Any]:
        """The examples in batches of another size, in a new order in every pass."""
        return reloaded(
            self.loader,
            indices=self._examples,
            shuffle_seed=self.context.seed,
            batch_size=batch_size,
            drop_last=drop_last,
        )

    @property
    def has_classes(self) -> bool:
        """Whether examples can be counted as right or wrong: each has one class, and logits."""
        if self.loader.batch_size is None or isinstance(self.loader.dataset, IterableDataset):
            return False
        if len(needed_arguments(self.context.module)) > 1:
            return False
        batch = next(iter(self.loader))
        targets = batch[1] if isinstance(batch, Sequence) and len(batch) > 1 else None
        return isinstance(targets, Tensor) and are_classes(targets) and self._gives_logits

    @cached_property
    def _gives_logits(self) -> bool:
        outputs, _ = next(self._outputs(copy.deepcopy(self.context.module), None))
        return not are_probabilities(outputs)

    def hits(self, module: LightningModule, order: Tensor | None = None) -> Iterator[Tensor]:
        """Which examples a module, whose `forward` gives logits `(B, C)`, classifies correctly.

        For each batch, computed when it is wanted, booleans `(B,)`. The order has the examples'
        places among all; that of the data set if not given.
        """
        for logits, batch in self._outputs(module, order):
            yield are_right(logits, batch[1].flatten()).cpu()

    def score(self, module: LightningModule, metric: str | None = None) -> float:
        """The share of examples that a module classifies correctly, or a metric that it logs."""
        if metric is None and self.has_classes:
            return float(torch.cat(list(self.hits(module))).double().mean())
        return self.metric(module, metric)

    def own_score(self, state: StateDict, ingredient: str, metric: str | None = None) -> float:
        """How good a state dict is at the task that an ingredient was trained on."""
        del ingredient
        return self.score(self.context.build(state), metric)

    def features(self, module: LightningModule) -> Tensor:
        """The inputs of the module's last layer for every example in order: `(N, d)`, float32."""
        body = copy.deepcopy(module)
        batches = Transferred(self._in(None), body, self.context.data, self.context.device)
        take_off(body, last_layer(body, example_inputs(batches, self.context.device)))
        found = [output.float().flatten(1).cpu() for output, _ in self._outputs(body, None)]
        return torch.cat(found)

    def metric(self, module: LightningModule, name: str | None) -> float:
        """A metric that the module's own validation logs; its accuracy if no name is given."""
        data = self.context.data
        with not_torn_down(data):
            (found,) = self._trainer.validate(module, datamodule=data, verbose=False)
        for logged in [name] if name else _ACCURACY:
            if logged in found:
                return float(found[logged])
        raise ConfigError(
            f"{type(module).__name__}'s validation logs no {name or 'accuracy'}, only "
            f"{', '.join(found) or 'nothing'}: set the recipe's metric to one of them"
        )

    @cached_property
    def _trainer(self) -> Trainer:
        return self.context.trainer()

    def _outputs(
        self, module: LightningModule, order: Tensor | None
    ) -> Iterator[tuple[Tensor, Any]]:
        device = self.context.device
        precision = self._trainer.precision_plugin
        module = precision.convert_module(module.to(device)).eval()  # type: ignore[assignment]
        batches = Transferred(
            self._in(order), module, self.context.data, device, precision.convert_input
        )
        for batch in batches:
            with torch.inference_mode(), precision.forward_context():
                output = module(inputs_of(batch))
            yield output, batch

    def _in(self, order: Tensor | None) -> DataLoader[Any]:
        examples = self._examples
        indices = examples if order is None else [examples[place] for place in order.tolist()]
        return reloaded(self.loader, indices=indices, drop_last=False)


class Score(NamedTuple):
    """How good a module is on validation data: higher is better, whatever is compared.

    The name says what: `accuracy` or `-loss`.
    """

    value: float
    name: str
    examples: int


def validate(module: LightningModule, data: LightningDataModule, trainer: Trainer) -> Score:
    """The score of a module on the validation data, however many loaders they are in.

    Raises:
        ConfigError: If its `validation_step` logs neither accuracy nor loss.
    """
    metrics: dict[str, float] = {}
    with counting(trainer) as seen, not_torn_down(data):
        for found in trainer.validate(module, datamodule=data, verbose=False):
            metrics |= found
    for names, score, sign in ((_ACCURACY, "accuracy", 1.0), (_LOSS, "-loss", -1.0)):
        for name in names:
            if name in metrics:
                return Score(sign * float(metrics[name]), score, seen.count)
    raise ConfigError(
        f"{type(module).__name__}'s validation_step logs neither val_accuracy (val_acc) nor "
        "val_loss, which an alignment could be chosen by: log one, or give CCAMatching a gamma "
        "of its own"
    )


def check_validation(data: LightningDataModule, what: str) -> None:
    """Checks for validation data, by which `what` chooses; a `ConfigError` if there are none."""
    if not validation_loaders(data):
        raise ConfigError(
            f"{what} chooses on examples held out of train, and {type(data).__name__} has none: "
            "set its held_out, or give CCAMatching a gamma of its own"
        )
