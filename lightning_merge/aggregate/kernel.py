"""Quality and diversity of a pool of models, as the kernel of a determinantal point process.

"Quality and Diversity Both Matters When Merging Models", section Kernel Construction:
L = diag(q) S diag(q).
"""

from collections.abc import Sequence

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from lightning_merge.errors import ConfigError

# What the rounding of cosines in float32 can do to symmetry and to an eigenvalue of zero.
_TOLERANCE = 1e-5


Numbers = Tensor | ArrayLike
"""Numbers as a tensor, a NumPy array or (nested) lists."""


def as_numbers(values: Numbers) -> Tensor:
    """Numbers as a tensor in float64 on the CPU, without gradients."""
    if isinstance(values, list | tuple):
        # Of tensors too, which may have gradients or be on a GPU.
        parts = [as_numbers(value) for value in values]
        return torch.stack(parts) if parts else torch.empty(0, dtype=torch.float64)
    return torch.as_tensor(values).detach().to("cpu", torch.float64)


def relative_gain_quality(accuracies: Numbers, pretrained: Numbers) -> Tensor:
    """`(accuracy_i - pretrained_i) / pretrained_i`: what fine-tuning brought, relatively.

    Args:
        accuracies: N fine-tuned models' accuracies on validation data.
        pretrained: The pre-trained model's accuracy there: one number, or N where each model
            was validated on data of its own.

    Returns:
        `(N,)` in float64, negative where fine-tuning made it worse; `dpp_kernel` normalises.

    Raises:
        ConfigError: If the numbers do not fit, or the pre-trained accuracy is not above 0.
    """
    tuned, base = as_numbers(accuracies), as_numbers(pretrained)
    if base.dim() and base.shape != tuned.shape:
        raise ConfigError(
            f"quality: {len(base)} pre-trained accuracies for {len(tuned)} models; give one "
            "number, or one for each"
        )
    if not bool((base > 0).all()):
        raise ConfigError(
            "quality: a gain relative to a pre-trained accuracy of 0 is not defined; give the "
            "qualities themselves"
        )
    return (tuned - base) / base


def cosine_similarity_matrix(representations: Sequence[Numbers]) -> Tensor:
    """The cosine similarity of every two models' representations, averaged over samples.

    As an average of Gram matrices of unit vectors it is positive semi-definite. A sample that
    a model maps to zero has similarity 0 to all, itself included.

    Args:
        representations: N tensors `(samples, features)`: each model's for the same samples in
            the same order.

    Returns:
        `(N, N)` in float64, symmetric, with ones on the diagonal.

    Raises:
        ConfigError: If there are none, or their shapes differ.
    """
    tensors = [torch.as_tensor(value) for value in representations]
    shapes = {tuple(value.shape) for value in tensors}
    if len(shapes) != 1 or len(next(iter(shapes))) != 2 or 0 in next(iter(shapes)):
        found = ", ".join(sorted(map(str, shapes))) or "none"
        raise ConfigError(
            f"similarity: representations must all be of one shape (samples, features), not {found}"
        )
    samples = len(tensors[0])
    total = torch.zeros(len(tensors), len(tensors), dtype=torch.float64)
    # A part of the samples at a time: all models' unit vectors need not be in memory.
    for start in range(0, samples, 1024):
        units = torch.stack(
            [
                torch.nn.functional.normalize(
                    value[start : start + 1024].detach().to("cpu", torch.float64), dim=1
                ).flatten()
                for value in tensors
            ]
        )
        total += units @ units.T
    return total / samples


def dpp_kernel(quality: Numbers, similarity: Numbers) -> Tensor:
    """`L = diag(q) S diag(q)`, with the qualities scaled to a norm of one.

    A quality below zero is taken as zero, since L holds its square and would reward it: such
    a model is never selected, whatever it adds to the diversity.

    Args:
        quality: N numbers, larger for the better.
        similarity: S, `(N, N)`, symmetric and positive semi-definite.

    Returns:
        L, `(N, N)` in float64, exactly symmetric.

    Raises:
        ConfigError: If the shapes do not fit, a value is not finite, no quality is above
            zero, or S is not symmetric or not positive semi-definite.
    """
    q, S = as_numbers(quality), as_numbers(similarity)
    if q.dim() != 1 or S.shape != (len(q), len(q)) or len(q) == 0:
        raise ConfigError(
            f"DPP: qualities of shape {tuple(q.shape)} and similarities of shape "
            f"{tuple(S.shape)}; give N and (N, N)"
        )
    if not bool(torch.isfinite(q).all() and torch.isfinite(S).all()):
        raise ConfigError("DPP: a quality or similarity is NaN or infinite; leave that model out")
    scale = max(float(S.abs().max()), 1e-300)
    if float((S - S.T).abs().max()) > _TOLERANCE * scale:
        raise ConfigError("DPP: the similarity matrix is not symmetric")
    S = (S + S.T) / 2
    lowest = float(torch.linalg.eigvalsh(S)[0])
    if lowest < -_TOLERANCE * scale * len(q):
        raise ConfigError(
            f"DPP: the similarity matrix has the eigenvalue {lowest:.2g}, so it is not positive "
            "semi-definite; use averaged cosines, or another Gram matrix"
        )
    q = q.clamp(min=0)
    if not bool((q > 0).any()):
        raise ConfigError(
            "DPP: no model is better than the pre-trained one (all qualities are 0 or less), so "
            "there is nothing to select"
        )
    q = q / q.norm()
    return q[:, None] * S * q[None, :]
