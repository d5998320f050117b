"""Learned matching as a LightningModule: its maps are trained by a Trainer, on any data."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from lightning_merge.aggregate import interpolate
from lightning_merge.align import LearnedMaps, PermutationSpec, WeightMatching
from lightning_merge.align.matching.learned import classes_in, normalising_by_batch
from lightning_merge.align.matching.learned_maps import distillation
from lightning_merge.align.matching.learned_orders import Units
from lightning_merge.align.matching.symmetric_maps import mapped_onto
from lightning_merge.batches import inputs_of
from lightning_merge.checkpoint import StateDict
from lightning_merge.errors import CheckpointError, ConfigError
from lightning_merge.modes import clear_caches, evaluation, under_weights
from lightning_merge.modules.merging.learned_weights import SAVED
from lightning_merge.modules.merging.read_ingredients import read_ingredients
from lightning_merge.modules.merging.strategies import refuse_averaging
from lightning_merge.modules.module_state import put


class LearnedMatchingModule(LightningModule):
    """Learns the maps of B's units under which the merge of A and B does best.

    What `LearnedMatching` trains in a loop of its own, for a Trainer: loggers, callbacks, DDP
    and resuming work as for any module. The maps start from `WeightMatching` with all
    symmetries. `train_loss` and `val_loss` are the cross-entropy of the merged network against
    the mean of both networks' outputs, or with `labels` against the batches' classes.

    A checkpoint holds the merged weights under the module's own names, so that the module's own
    class loads it, and the maps beside them, so that training resumes.

    Args:
        module: Any LightningModule whose `forward` gives logits; its weights are replaced.
        checkpoints: A and B: paths, networks, or state dicts with the module's names.
        example_inputs: A batch as the module takes it; its `example_input_array` if not given.
        share: The share of A in the merge whose loss is taken; None draws another one from
            (0, 1) at each step.
        labels: Whether to learn from the batches' classes.
        optimizer: Called with the maps' parameters; Adam with a learning rate of 0.01 if not
            given.
        lr_scheduler: Called with the optimizer; stepped once an epoch.
        seed: Of the start.
        units: How the order of units is learned, as in `LearnedMatching`.

    Raises:
        ConfigError: If there are not two checkpoints, or no example inputs.
        AlignmentError: If the network cannot be traced, or allows permutations only.
        MergeError: If the checkpoints cannot be read, or differ in architecture.
    """

    def __init__(
        self,
        module: LightningModule,
        checkpoints: Sequence[str | Path | Mapping[str, Tensor] | nn.Module],
        example_inputs: Tensor | None = None,
        share: float | None = 0.5,
        labels: bool = False,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
        seed: int = 0,
        units: Units = "fixed",
    ) -> None:
        super().__init__()
        if len(checkpoints) != 2:
            raise ConfigError(f"learned matching aligns two networks, not {len(checkpoints)}")
        if share is not None and not 0 < share < 1:
            raise ConfigError(f"share is {share}: choose a number between 0 and 1, or None")
        read = read_ingredients(checkpoints, module, ())
        inputs = module.example_input_array if example_inputs is None else example_inputs
        if not isinstance(inputs, Tensor):
            raise ConfigError(
                f"{type(module).__name__} has no example_input_array: give example_inputs, a batch"
            )
        a, b = read.states
        self.states = (a, b)
        put(module, a)
        self.network = module.requires_grad_(False).eval()
        spec = PermutationSpec.from_model(module, inputs, symmetries="all")
        start = WeightMatching(seed, "all").match(spec, a, b)
        self.maps = LearnedMaps(spec, a, b, start, units)
        self.share, self.labels = share, labels
        self._digests, self._largest = read.digests, 0
        self._merged: StateDict = {}
        self._make_optimizer, self._make_scheduler = optimizer, lr_scheduler

    def setup(self, stage: str) -> None:
        """Refuses what would save other weights than it validates.

        Raises:
            ConfigError: If a callback averages weights.
        """
        if stage == "fit":
            refuse_averaging(self, self.trainer.callbacks)  # type: ignore[attr-defined]

    def forward(self, x: Tensor) -> Tensor:
        """The logits of the merged network, `(B, C)`."""
        merged = self.maps.merged(0.5 if self.share is None else self.share)
        return self._run(merged, x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The loss of the merged network; logs it as `train_loss`."""
        del batch_idx
        share = float(torch.rand(())) if self.share is None else self.share
        loss = self._loss(batch, share)
        size = len(inputs_of(batch))
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=size, sync_dist=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Logs the loss of the merged network as `val_loss`.

        A single example behind larger batches is left out: BatchNorm cannot normalise it by itself.
        """
        size = len(inputs_of(batch))
        self._largest = max(size, self._largest if batch_idx else 0)
        if size == 1 < self._largest:
            return
        loss = self._loss(batch, 0.5 if self.share is None else self.share)
        self.log("val_loss", loss, batch_size=size, sync_dist=True)

    def aligned(self) -> StateDict:
        """The state dict of B under the maps that were learned, in A's coordinates."""
        a, b = self.states
        return mapped_onto(self.maps.spec, a, b, self.maps.maps())

    def merged(self, share: float = 0.5) -> StateDict:
        """The state dict of the merge, `share` being A's."""
        return interpolate(self.states[0], self.aligned(), share)

    def configure_optimizers(self) -> Any:
        """The optimizer of the maps."""
        parameters = list(self.maps.parameters())
        optimizer = (
            torch.optim.Adam(parameters, lr=0.01)
            if self._make_optimizer is None
            else self._make_optimizer(parameters)
        )
        if self._make_scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": self._make_scheduler(optimizer)}

    def train(self, mode: bool = True) -> "LearnedMatchingModule":
        """Sets the mode; the network itself stays in eval mode but for its BatchNorms."""
        super().train(mode)
        normalising_by_batch(self.network)
        return self

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Stores the merged weights under the module's names, and the maps beside them."""
        checkpoint["state_dict"] = self.merged(0.5 if self.share is None else self.share)
        checkpoint[SAVED] = {
            "maps": [value.detach().clone() for value in self.maps.values],
            "ingredients": list(self._digests),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes the maps back.

        Raises:
            CheckpointError: If the checkpoint is of other ingredients, or holds no maps.
        """
        saved = checkpoint.get(SAVED, {})
        if "maps" not in saved or saved["ingredients"] != self._digests:
            raise CheckpointError(
                "the checkpoint holds no maps of these ingredients: resume with the checkpoints "
                "that the run was started with"
            )
        names = [f"maps.values.{at}" for at in range(len(self.maps.values))]
        checkpoint["state_dict"] = {
            **self.state_dict(),
            **dict(zip(names, saved["maps"], strict=True)),
        }

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Lightning's, with the merged weights in place."""
        lightnings = super().backward
        # A copy of the module must find no graph.
        merged, self._merged = self._merged, {}
        under_weights(self.network, merged, lambda: lightnings(loss, *args, **kwargs))

    def _loss(self, batch: Any, share: float) -> Tensor:
        x = inputs_of(batch)
        self._merged = self.maps.merged(share)
        logits = self._run(self._merged, x)
        if self.labels:
            return nn.functional.cross_entropy(logits, classes_in(batch))
        with torch.no_grad(), evaluation(self.network):
            teachers = [self._run(state, x) for state in self.states]
        return distillation(logits, torch.stack(teachers).mean(0))

    def _run(self, state: StateDict, x: Tensor) -> Tensor:
        clear_caches(self.network)
        return torch.func.functional_call(self.network, state, (x,))

    def _apply(self, fn: Any, recurse: bool = True) -> "LearnedMatchingModule":
        super()._apply(fn, recurse)
        a, b = ({name: fn(value) for name, value in state.items()} for state in self.states)
        self.states = (a, b)
        return self
