"""What a network answers for each test example, recorded while a Trainer tests it."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from numpy.typing import NDArray
from torch import Tensor

from lightning_merge.batches import targets_of
from lightning_merge.recipe.held_out import are_classes, predicted_classes

_RETURNED = ("logits", "preds", "predictions", "y_hat")

# A module's own accuracy is a float32 mean of batches.
_ROUNDING = 1e-4


@dataclass(frozen=True)
class Answers:
    """The answers to all test examples, in their order.

    Attributes:
        right: `(N,)`: 1 where an example is classified correctly and 0 where not; of several
            labels the share of them that is right.
        examples: SHA-256 of the targets in order: equal where answers can be compared in pairs.
        targets: `(N,)` classes; None for several labels.
        predicted: `(N,)` classes; None for several labels.
    """

    right: NDArray[np.float64]
    examples: str
    targets: NDArray[np.int64] | None = None
    predicted: NDArray[np.int64] | None = None

    def plain(self) -> dict[str, Any]:
        """The answers as in JSON."""
        if self.targets is None or self.predicted is None:
            return {"right": self.right.tolist(), "examples": self.examples}
        return {"targets": self.targets.tolist(), "predicted": self.predicted.tolist()}

    @classmethod
    def of_plain(cls, plain: Mapping[str, Any]) -> "Answers":
        """The answers that `plain` wrote."""
        if "targets" not in plain:
            return cls(np.asarray(plain["right"], np.float64), plain["examples"])
        return cls.of_classes(*(np.asarray(plain[name]) for name in ("targets", "predicted")))

    @classmethod
    def of_classes(cls, targets: NDArray[Any], predicted: NDArray[Any]) -> "Answers":
        """The answers where each example has one class: targets and predictions, `(N,)`."""
        targets, predicted = targets.astype(np.int64), predicted.astype(np.int64)
        right = (targets == predicted).astype(np.float64)
        return cls(right, _digest(targets), targets, predicted)

    @classmethod
    def joined(cls, answers: Sequence["Answers"]) -> "Answers":
        """The answers to the examples of several tasks, one task after the other."""
        examples = hashlib.sha256("".join(one.examples for one in answers).encode()).hexdigest()
        return cls(np.concatenate([one.right for one in answers]), examples)


def mean_right(answers: Sequence[Answers | None]) -> NDArray[np.float64] | None:
    """For each example how often it is right, `(N,)`; None unless all answer the same examples."""
    known = [one for one in answers if one is not None]
    if not known or len(known) < len(answers) or len({one.examples for one in known}) > 1:
        return None
    return np.mean([one.right for one in known], axis=0)


class AnswerRecorder(Callback):
    """Records a test's targets and what the module gives for them.

    An output counts if its shape is that of logits (or scores) of the batch's targets: what the
    module's `forward` gave last, else what `test_step` returned (a tensor, or `logits`, `preds`,
    `predictions` or `y_hat` of a dict), else what one of its direct parts gave last.
    """

    def __init__(self) -> None:
        self._outputs: dict[str, Tensor] = {}
        self._targets: Tensor | None = None
        self._answered: list[tuple[Tensor, Tensor]] = []
        self._whole = True

    def note(self, name: str, module: Any, inputs: Any, output: Any) -> None:
        """A forward hook: keeps an output that may be the answer to the batch."""
        del module, inputs
        if self._targets is not None and _suits(output, self._targets):
            self._outputs.pop(name, None)
            self._outputs[name] = output.detach()

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, *args: Any, **kwargs: Any
    ) -> None:
        """Forgets the last batch."""
        del trainer, pl_module, args, kwargs
        self._outputs, self._targets = {}, targets_of(batch)
        if self._targets is not None and self._targets.dim() == 0:
            # A loader that makes no batches gives the class of one example.
            self._targets = self._targets.reshape(1)
        elif self._targets is not None and are_classes(self._targets):
            self._targets = self._targets.flatten()

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """Keeps the batch's answers."""
        del trainer, pl_module, batch, args, kwargs
        targets, found = self._targets, self._outputs.get("")
        if targets is not None and found is None:
            found = next((one for one in _returned(outputs) if _suits(one, targets)), None)
        if found is None and self._outputs:
            found = list(self._outputs.values())[-1]
        self._outputs, self._targets = {}, None
        if targets is None or found is None:
            self._whole = False
            return
        if are_classes(targets):
            found = predicted_classes(found) if found.is_floating_point() else found.flatten()
        else:
            # Smoothed labels stand for the nearer of 0 and 1, as for the metrics.
            targets = targets > 0.5
            # A logit that is no number is wrong about its label.
            found = torch.where(found.isnan(), ~targets, found > 0)
        self._answered.append((targets.cpu().long(), found.cpu().long()))

    @property
    def targets(self) -> NDArray[np.int64] | None:
        """All targets, `(N,)` or `(N, L)`; None unless every batch had answers."""
        if not self._whole or not self._answered:
            return None
        return torch.cat([targets for targets, _ in self._answered]).numpy()

    def answers(self, count: int, accuracy: float | None) -> Answers | None:
        """The answers, if they are as many as examples and have the accuracy of the module's test.

        Another share of right answers shows that the module judges by something else than was
        recorded.
        """
        targets = self.targets
        if targets is None or accuracy is None or len(targets) != count:
            return None
        predicted = torch.cat([predicted for _, predicted in self._answered]).numpy()
        if targets.ndim == 1:
            found = Answers.of_classes(targets, predicted)
        else:
            found = Answers((targets == predicted).mean(axis=1), _digest(targets))
        return found if abs(found.right.mean() - accuracy) <= _ROUNDING else None


@contextmanager
def recording(trainer: Trainer, module: LightningModule) -> Iterator[AnswerRecorder]:
    """Records the answers of the tests that a Trainer makes of a module meanwhile."""
    recorder = AnswerRecorder()
    parts = {"": module, **dict(module.named_children())}
    with ExitStack() as watches:
        for name, part in parts.items():
            watches.enter_context(part.register_forward_hook(partial(recorder.note, name)))
        trainer.callbacks.append(recorder)  # type: ignore[attr-defined]
        watches.callback(trainer.callbacks.remove, recorder)  # type: ignore[attr-defined]
        yield recorder


def _suits(output: Any, targets: Tensor) -> bool:
    if not isinstance(output, Tensor) or output.dim() == 0 or len(output) != len(targets):
        return False
    if targets.dim() > 1:
        return output.is_floating_point() and output.shape == targets.shape
    if not are_classes(targets):
        return False
    if output.numel() == len(targets):
        return True
    return output.is_floating_point() and output.dim() == 2 and output.shape[1] > 1


def _returned(outputs: Any) -> list[Any]:
    if isinstance(outputs, Mapping):
        return [outputs[name] for name in _RETURNED if name in outputs]
    return [outputs]


def _digest(targets: NDArray[np.int64]) -> str:
    return hashlib.sha256(np.ascontiguousarray(targets).tobytes()).hexdigest()
