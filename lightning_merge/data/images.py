"""Labelled images, in memory or on disk, and the splits that they come in."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


class Images(Protocol):
    """Images that are fetched by their positions: a tensor is one, `ImageFiles` another.

    `images[positions]` takes long `(M,)` and gives uint8 `(M, C, H, W)`.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, positions: Tensor, /) -> Tensor: ...


@dataclass(frozen=True)
class LabelledImages:
    """One official split of a data set.

    Attributes:
        images: N images of uint8: a tensor `(N, C, H, W)`, or what reads them one by one.
        targets: Classes `(N,)`, long; or `(N, L)`, float zeros and ones (multi-label).
    """

    images: Images
    targets: Tensor


@dataclass(frozen=True)
class OfficialSplits:
    """A data set as its authors divided it; `val` is None where they made none."""

    train: LabelledImages
    test: LabelledImages
    val: LabelledImages | None = None
