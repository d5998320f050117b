"""The ingredients of a merge, with what is needed to align, train and test them."""

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from torch import Tensor

from lightning_merge.align import Matching, PermutationSpec
from lightning_merge.checkpoint import StateDict, check_ingredients, digest
from lightning_merge.loaders import Transferred, example_inputs, statistics_batches_of
from lightning_merge.recalibrate import reset_batchnorm


@dataclass
class Pool:
    """Trained networks of one architecture, and the data to merge and to test them on.

    Attributes:
        module: A LightningModule of the ingredients' class; its weights do not matter.
        states: The ingredients' state dicts.
        names: What to call them.
        data: The data module; its training part is what data-driven merges learn from.
        trainer: Makes a Trainer; takes keyword arguments that override its settings.
        seed: Seeds whatever a merge draws.
        progress: Whether to show progress bars.
        learned_from: How many labelled examples the last merge has learned from.

    Raises:
        MergeError: If the ingredients are fewer than two, differ in architecture or hold NaN.
    """

    module: LightningModule
    states: Sequence[StateDict]
    names: Sequence[str]
    data: LightningDataModule
    trainer: Callable[..., Trainer]
    seed: int = 0
    progress: bool = True
    learned_from: int = 0
    _aligned: dict[str, tuple[list[StateDict], float]] = field(default_factory=dict)
    _spec: PermutationSpec | None = None

    def __post_init__(self) -> None:
        check_ingredients(self.states, self.names)
        self.data.prepare_data()
        self.data.setup("fit")
        self.data.setup("test")

    @cached_property
    def digests(self) -> list[str]:
        """The SHA-256 of each ingredient."""
        return [digest(state) for state in self.states]

    def build(self, state: Mapping[str, Tensor]) -> LightningModule:
        """A new module with the weights `state`."""
        module = copy.deepcopy(self.module)
        module.load_state_dict(state)
        return module

    def statistics(self) -> Transferred:
        """Training batches on the device, without augmentation if the data module offers it."""
        return statistics_batches_of(self.data, self.module, self.device)

    @cached_property
    def device(self) -> torch.device:
        """Where the Trainer computes."""
        return self.trainer().strategy.root_device

    def reset_batchnorm(self, module: LightningModule) -> int:
        """Resets a module's BatchNorm on the training images; says how many layers it has."""
        return reset_batchnorm(module.to(self.device), self.statistics(), self.progress)

    def align(self, matching: Matching | None) -> tuple[list[StateDict], float]:
        """The ingredients, each aligned to the first one.

        Args:
            matching: How; None leaves them as they are. Asked a second time for the same
                matching, it gives the first answer.

        Returns:
            The aligned state dicts, and the seconds that aligning them took.
        """
        if matching is None:
            return list(self.states), 0.0
        key = f"{type(matching).__name__} {sorted(vars(matching).items())}"
        if key not in self._aligned:
            start = time.perf_counter()
            self._aligned[key] = (self._align(matching), time.perf_counter() - start)
        return self._aligned[key]

    def _align(self, matching: Matching) -> list[StateDict]:
        device = self.device
        first = self.build(self.states[0]).to(device).eval()
        batches = self.statistics()
        if self._spec is None:
            self._spec = PermutationSpec.from_model(first, example_inputs(batches, device))
        aligned = [dict(self.states[0])]
        for state in self.states[1:]:
            other = self.build(state).to(device).eval()
            with torch.no_grad():
                found = matching.align(self._spec, first, other, batches, progress=self.progress)
            aligned.append({name: value.cpu() for name, value in found.items()})
        return aligned
