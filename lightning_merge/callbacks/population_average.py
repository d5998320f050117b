"""PAPA: the runs of a population pull towards their mean while they are trained.

Jolicoeur-Martineau et al. 2023, "PopulAtion Parameter Averaging (PAPA)" (arXiv 2304.03094).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import Tensor

from lightning_merge.callbacks.in_turn import Population
from lightning_merge.checkpoint import write_checkpoint
from lightning_merge.distributed import ranks, sum_over_ranks
from lightning_merge.errors import ConfigError
from lightning_merge.tensor_table import check_free, pruning_mask


class PopulationAverage(Callback):
    """Every so many steps each member's weights become `(1 - rate) * own + rate * mean`.

    The members are either the ranks of a run with `strategy="ddp"`, or fits of one process that
    are trained in turn by a `Population`. Parameters and floating-point or complex buffers
    (running statistics) are pulled, counters and pruning masks are not, and infinities that all
    have (a mask's) stay; optimizers keep their states. With `rate` 0, and
    before the first meeting, each member trains as it would alone, bit for bit. What is left to do
    afterwards is a soup of the members, `average` or `GreedySoup`.

    Under DDP gradients are then not averaged over the ranks, nor buffers broadcast. All members
    start from rank 0's weights and differ by their data, of which Lightning gives each a part; with
    `use_distributed_sampler=False` and a shuffling loader each sees all of them. Every rank must
    take as many steps. `ModelCheckpoint` writes rank 0's member: `dirpath` writes all of them.

    Args:
        every: After how many optimizer steps the members meet: at the end of the batch that makes
            the last one of them.
        rate: How far they go to the mean, in [0, 1]; the paper's alpha is `1 - rate`.
        population: The members that are trained in turn; the ranks if not given.
        dirpath: A folder in which each rank writes its `member{rank}.ckpt` when training ends.

    Attributes:
        meetings: How many there have been.

    Raises:
        ConfigError: If a number is out of range, or the strategy is another one.
        CheckpointError: If a tensor is no free parameter (`average`), when training starts.
    """

    def __init__(
        self,
        every: int = 10,
        rate: float = 0.01,
        population: Population | None = None,
        dirpath: str | Path | None = None,
    ) -> None:
        if every < 1 or not 0 <= rate <= 1:
            raise ConfigError(
                f"PopulationAverage: every {every} or rate {rate} is out of range; choose 10 and "
                "0.01, for example"
            )
        self.every, self.rate = every, rate
        self.population, self.dirpath = population, dirpath
        self.meetings = 0
        self._last = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leaves each rank its own gradients."""
        if self.rate:
            check_free(pl_module.state_dict())
        strategy = trainer.strategy
        if not isinstance(strategy, DDPStrategy | SingleDeviceStrategy):
            raise ConfigError(
                f"PopulationAverage: members cannot train under {type(strategy).__name__}; use one "
                "device, or strategy='ddp'"
            )
        if isinstance(strategy, DDPStrategy):
            wrapped: Any = strategy.model
            # What `no_sync` sets for as long as it lasts.
            wrapped.require_backward_grad_sync = False
            wrapped.require_forward_param_sync = False
        self._last = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Meets, where a step is one of those."""
        del outputs, batch, batch_idx
        step = trainer.global_step
        # With several optimizers a batch makes several steps, which may lead past a meeting.
        last, self._last = self._last, step
        if step // self.every == last // self.every:
            return
        own = _weights(pl_module)
        if self.population is not None:
            self.population.meet(own, self._pull)
        elif self.rate and ranks()[1] > 1:
            sums = sum_over_ranks(own)
            for value, total in zip(own, sums, strict=True):
                _towards(value, total / ranks()[1], self.rate)
        self.meetings += 1

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes this rank's member."""
        del trainer
        if self.dirpath is not None:
            path = Path(self.dirpath) / f"member{ranks()[0]}.ckpt"
            write_checkpoint(path, {"state_dict": pl_module.state_dict()})

    def _pull(self, members: Sequence[Sequence[Tensor]]) -> None:
        if not self.rate:
            return
        for values in zip(*members, strict=True):
            mean = torch.stack([value.double() for value in values]).mean(dim=0)
            for value in values:
                _towards(value, mean, self.rate)

    def state_dict(self) -> dict[str, Any]:
        """How many meetings there have been."""
        return {"meetings": self.meetings}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes it back."""
        self.meetings = state_dict["meetings"]


def _weights(module: LightningModule) -> list[Tensor]:
    buffers = dict(module.named_buffers())
    names = {**module.state_dict(), **buffers}
    found = [
        *module.parameters(),
        *(buffer for name, buffer in buffers.items() if not pruning_mask(name, names)),
    ]
    return [
        torch.view_as_real(value.detach()) if value.is_complex() else value.detach()
        for value in found
        if value.is_floating_point() or value.is_complex()
    ]


@torch.no_grad()
def _towards(value: Tensor, mean: Tensor, rate: float) -> None:
    own, mean = value.double(), mean.to(value.device)
    # The way between two equal infinities is no number.
    value.copy_(torch.where(own == mean, own, own.lerp(mean, rate)))
