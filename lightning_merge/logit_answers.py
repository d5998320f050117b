"""What a classifier's logits stand for: one question of C answers, or C questions of no and yes."""

import torch
from torch import Tensor, nn


def are_independent(module: nn.Module) -> bool:
    """Whether each of a module's logits stands for a yes of its own: its task is multi-label."""
    return getattr(module, "task", None) == "multilabel"


def log_probabilities(logits: Tensor, independent: bool = False) -> Tensor:
    """The logarithms of the probabilities of all answers.

    Args:
        logits: `(..., C)`.
        independent: Whether each of them is a question of its own; a single one is in any case.

    Returns:
        `(..., 1, C)` for classes that exclude each other, else `(..., C, 2)`: no and yes.
    """
    if independent or logits.shape[-1] == 1:
        pairs = torch.stack([torch.zeros_like(logits), logits], dim=-1)
    else:
        pairs = logits.unsqueeze(-2)
    return pairs.log_softmax(dim=-1)
