"""NP Merge: any LightningModule, trained through one alpha for each of its parameters.

Non-Uniform Parameter-Wise Model Merging (Orozco Camacho et al. 2024), Eq. 2.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MethodType
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from lightning_merge.align import Matching
from lightning_merge.checkpoint import StateDict, tensors_of
from lightning_merge.errors import ConfigError
from lightning_merge.modules.merging.aligned_ingredients import aligned_states
from lightning_merge.modules.merging.flat_ingredients import FlatIngredients
from lightning_merge.modules.merging.learned_weights import SAVED, LearnedWeights
from lightning_merge.modules.merging.read_ingredients import check_automatic, read_ingredients
from lightning_merge.modules.module_state import put

Granularity = Literal["model", "layer", "channel", "parameter"]


def _adam(logits: Any) -> torch.optim.Optimizer:
    # On a CPU the fused one passes over memory once, the other a dozen times. Where losses are
    # scaled, on GPUs, Lightning does not clip for a fused one.
    return torch.optim.Adam(logits, lr=0.01, fused=logits[0].is_cpu or None)


@dataclass
class _Alignment:
    """What is still to be aligned: how, by which class's network, and what has no alphas."""

    matching: Matching
    kind: type[LightningModule]
    rest: list[StateDict]


class MergeModule(LearnedWeights):
    """Learns W = alpha * A + (1 - alpha) * B in place of the weights of a LightningModule.

    The object takes over the module's class, steps, hooks, metrics and hyper-parameters;
    all of them run on merged weights. Its only trainable parameter is `alpha_logits`, from which
    the merge coefficients (alphas) follow; the ingredients are constants. Two of them have
    alpha = sigmoid(alpha_logits), K > 2 are merged jointly, with a softmax over K logits for
    each alpha, of shape `(K, n)` (`merge_in_pairs` merges them two at a time, as the paper does).
    When gradients are not being taken (validation, test, callbacks, checkpoints) the module's
    parameters hold the merged weights, frozen.

    A run that was stopped after any step and is resumed from its checkpoint gives the same
    alphas, on the CPU bit for bit, with any loader whose order is drawn when an epoch begins
    (all of torch's are): the batches already seen are fetched again and passed over, so that
    the others follow in their order. Loaders that keep their own place (`state_dict`) are
    trusted. Random augmentation by persistent workers is not drawn again as it was, nor does
    validation's drawing of random numbers show in training.

    Trains on one device, or on several with `strategy="ddp"`; every rank holds all of the
    ingredients. FSDP, DeepSpeed and ModelParallelStrategy, which split parameters, are
    refused, and so are strategies that spawn or fork, which would lose the alphas, and
    Lightning's `WeightAveraging`, whose averages have none.

    A checkpoint holds the merged weights under the module's own names, so that the
    module's own class loads it without this package, and under `lightning_merge` what a
    resumed run needs: the logits, and the other ingredients as they were aligned.

    Means that the module keeps of its weights (`torch.optim.swa_utils.AveragedModel`) are averaged
    at the start, as they are in the files, and have no alphas: the module goes on with them. Other
    parameters that its `on_train_batch_end` writes (a teacher) want `keep_a` or `keep_b`.

    Floating-point buffers (running statistics) are averaged once, at the start, and then
    live as the module's own; reset them after training (`BatchNormReset`). Integer
    buffers and extra state are those of A. What a module leaves out of its files (a frozen
    teacher, `strict_loading = False`) stays as the module has it. A network that
    `configure_model` builds is built.

    Args:
        module: Any LightningModule with automatic optimization; its weights are replaced.
        checkpoints: Two or more ingredients: paths, networks, or state dicts with the module's
            names.
        granularity: How many alphas there are: one for the `model` or one a `layer` (as a
            learned soup has), one a `channel` or one a `parameter` (NP Merge).
        matching: How the others are aligned to A, on the module's own training data, when
            training starts; under DDP each rank reads its share of the batches. None if the
            ingredients are aligned already.
        alpha: The initial share of A; the others share the rest. All are equal if not given.
        optimizer: Called with the list that holds `alpha_logits`; Adam with a learning rate
            of 0.01 if not given.
        lr_scheduler: Called with the optimizer; stepped once an epoch.
        keep_a: A regular expression for the whole names of parameters and buffers that are
            not merged but taken from the first ingredient, for example `head[.].*`. Their
            shapes may differ in the others. They are frozen, and have no alphas.
        keep_b: The same for the second ingredient.

    Raises:
        ConfigError: If the module is none of Lightning's, or optimizes manually, `alpha` is not
            between 0 and 1, or `keep_a` or `keep_b` matches nothing or everything.
        MergeError: If there are not two ingredients, or they cannot be read, differ in
            architecture, or hold NaN.
    """

    _passes_on: ClassVar[tuple[str, ...]] = ("training_step",)
    _alignment: _Alignment | None

    def __init__(
        self,
        module: LightningModule,
        checkpoints: Sequence[str | Path | Mapping[str, Tensor] | nn.Module],
        granularity: Granularity = "parameter",
        matching: Matching | None = None,
        alpha: float | None = None,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
        keep_a: str | None = None,
        keep_b: str | None = None,
    ) -> None:
        if alpha is not None and not 0 < alpha < 1:
            raise ConfigError(f"alpha is {alpha}: choose a number between 0 and 1")
        read = read_ingredients(checkpoints, module, (keep_a, keep_b))
        check_automatic(module)
        flat = FlatIngredients(read.merged, read.states, granularity)
        kind = type(module)
        super().__init__(module, read, flat, alpha, optimizer or _adam, lr_scheduler)
        self._alignment = None
        if matching is not None:
            # What is not merged moves with the units.
            rest = [
                {name: value for name, value in state.items() if name not in read.merged}
                for state in read.states
            ]
            self._alignment = _Alignment(matching, kind, rest)

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """The module's own step, on weights through which gradients reach the alphas."""
        self.trace()
        return super().training_step(*args, **kwargs)

    def on_train_start(self) -> None:
        """Aligns to A if a matching was given, the module's own hook, then what is resumed."""
        if self._alignment is not None:
            self._align(self._alignment)
            self._alignment = None
        super().on_train_start()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the alphas and the aligned ingredients beside the merged weights."""
        super().on_save_checkpoint(checkpoint)
        checkpoint[SAVED]["aligned"] = self._alignment is None

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes alphas and aligned ingredients back from a checkpoint of this class."""
        super().on_load_checkpoint(checkpoint)
        if checkpoint[SAVED]["aligned"]:
            self._alignment = None

    def _align(self, alignment: _Alignment) -> None:
        flat = self._learned.flat
        ingredient = partial(self._ingredient, alignment)
        states = aligned_states(self.trainer, alignment.matching, ingredient, len(flat.buffers))
        for buffer, state in zip(flat.buffers[1:], states[1:], strict=True):
            buffer.copy_(flat.layout.flatten(state, self.device))
        self._settle(states)
        self.refresh()

    def _ingredient(self, alignment: _Alignment, index: int) -> LightningModule:
        ours = ("_learned", "_alignment", "_trainer", "_parameters")
        state = {name: value for name, value in self.__dict__.items() if name not in ours}
        state["_trainer"] = None
        state["_parameters"] = {
            name: value for name, value in self._parameters.items() if name != "alpha_logits"
        }
        copied: LightningModule = object.__new__(alignment.kind)
        copied.__dict__.update(copy.deepcopy(state))
        put(copied, {**self._learned.flat.views()[index], **alignment.rest[index]})
        # A permutation moves all tensors, those too that the module leaves out of its files.
        copied.state_dict = MethodType(_every_tensor, copied)  # type: ignore[method-assign]
        return copied.eval()


def _every_tensor(module: LightningModule, *args: Any, **kwargs: Any) -> StateDict:
    return tensors_of(LightningModule.state_dict(module, *args, **kwargs))
