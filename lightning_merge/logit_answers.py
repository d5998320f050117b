"""What a classifier's logits stand for: one question of C answers, or C questions of no and yes."""

import torch
from torch import Tensor, nn


def are_independent(module: nn.Module) -> bool:
    """Whether each of a module's logits stands for a yes of its own: its task is multi-label."""
    return getattr(module, "task", None) == "multilabel"


def log_probabilities(logits: Tensor, independent: bool = False) -> Tensor:
    """The logarithms of the probabilities of all answers to logits `(..., C)`.

    They are `(..., 1, C)` for classes that exclude each other. For `independent` ones, each a
    question of its own, as a single one is in any case, they are `(..., C, 2)`: no and yes.
    """
    if independent or logits.shape[-1] == 1:
        pairs = torch.stack([torch.zeros_like(logits), logits], dim=-1)
    else:
        pairs = logits.unsqueeze(-2)
    return pairs.log_softmax(dim=-1)
