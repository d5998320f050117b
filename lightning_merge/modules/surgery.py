"""Representation surgery: a small module behind a merged body that brings features back.

Source: Yang et al. 2024, "Representation Surgery for Multi-Task Model Merging" (arXiv 2402.02705).
"""

import copy
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

from lightning_merge.batches import inputs_of
from lightning_merge.errors import ConfigError
from lightning_merge.modes import evaluation
from lightning_merge.modules.adopt import adopt
from lightning_merge.modules.last_layer import last_layer, take_off


class Surgery(nn.Module):
    """A last layer that is given `h - W_up relu(W_down h)` in place of its features `h`.

    `W_up` is zero at the start, so that nothing is changed.

    The head takes d features; `W_down` has `rank` rows.
    """

    features: Tensor | None

    def __init__(self, head: nn.Linear, rank: int) -> None:
        super().__init__()
        size, like = head.in_features, head.weight
        self.down = nn.Linear(size, rank, bias=False, device=like.device, dtype=like.dtype)
        self.up = nn.Linear(rank, size, bias=False, device=like.device, dtype=like.dtype)
        nn.init.zeros_(self.up.weight)
        self.head = head
        self.features = None

    def forward(self, h: Tensor) -> Tensor:
        """The logits, `(B, C)`, of features `(B, d)`."""
        corrected: Tensor = h - self.up(torch.relu(self.down(h)))
        self.features = corrected if self.training else None
        return self.head(corrected)


def check_rank(rank: int, what: str) -> None:
    """Checks the rank of a correction; a `ConfigError` if it is below 1."""
    if rank < 1:
        raise ConfigError(f"{what}: rank is {rank}; choose 1 or more")


class SurgeryModule(LightningModule):
    """Learns, without labels, what distinguishes a task's merged features from its own network's.

    It takes over the merged module's class, steps and metrics, so that `Trainer.test` measures it
    as it would that. Training minimises the L1 distance of the corrected features from those that
    the task's individual network gives for the same inputs; labels in a batch are not read.
    Everything but the surgery is frozen and in evaluation mode. One module serves one task: it
    costs `2 d rank` numbers beside the shared body.

    Args:
        merged: A merged body under the task's head, whose output is that of one linear layer. A
            copy is made.
        individual: The task's own network, of the same width.
        example: What `forward` takes, two examples are enough; with it the last layer is found.
        rank: Of the correction; the default is the paper's.
        optimizer: Called with the surgery's parameters; Adam with the paper's learning rate of
            0.001 if not given.

    Raises:
        ConfigError: If the rank is below 1, the output is not that of one last linear layer, or the
            two networks have features of different sizes.
    """

    def __init__(
        self,
        merged: LightningModule,
        individual: LightningModule,
        example: Tensor,
        rank: int = 16,
        optimizer: OptimizerCallable | None = None,
    ) -> None:
        check_rank(rank, "SurgeryModule")
        merged, teacher = copy.deepcopy(merged), copy.deepcopy(individual)
        name = last_layer(merged, example)
        head = merged.get_submodule(name)
        off = take_off(teacher, last_layer(teacher, example))
        assert isinstance(head, nn.Linear)
        assert isinstance(off, nn.Linear)
        if head.in_features != off.in_features:
            raise ConfigError(
                f"SurgeryModule: features of {head.in_features} and of {off.in_features} numbers "
                "cannot be compared; give the network of this task and the merge of its body"
            )
        merged.requires_grad_(False)
        merged.set_submodule(name, Surgery(head, rank))
        adopt(self, merged)
        self.surgery_name = name
        # In a list, so that its weights are in no checkpoint.
        self.teacher = [teacher.requires_grad_(False).eval()]
        self._make_optimizer = optimizer
        self.train()

    @property
    def _surgery(self) -> Surgery:
        found = self.get_submodule(self.surgery_name)
        assert isinstance(found, Surgery)
        return found

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The distance of features; logs it as `train_distance`."""
        del batch_idx
        x = inputs_of(batch)
        self(x)
        teacher = self.teacher[0].to(x.device)
        with torch.no_grad(), evaluation(teacher):
            wanted = teacher(x)
        features = self._surgery.features
        assert features is not None
        loss = nn.functional.l1_loss(features, wanted)
        self.log(
            "train_distance", loss, on_step=False, on_epoch=True, batch_size=len(x), sync_dist=True
        )
        return loss

    def configure_optimizers(self) -> Any:
        """The optimizer of the surgery."""
        parameters = [p for p in self._surgery.parameters() if p.requires_grad]
        if self._make_optimizer is None:
            return torch.optim.Adam(parameters, lr=0.001)
        return self._make_optimizer(parameters)

    def train(self, mode: bool = True) -> "SurgeryModule":
        """Sets the mode of the surgery; the rest stays in evaluation mode."""
        super().train(False)
        self.training = mode
        self._surgery.training = mode
        return self
