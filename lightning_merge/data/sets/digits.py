"""Scikit-learn's handwritten digits: 1797 real images of 8x8, inside the dependency."""

from typing import Any

import numpy as np
import torch

from lightning_merge.data.images import LabelledImages, OfficialSplits
from lightning_merge.data.module import ClassificationDataModule
from lightning_merge.data.splits import Indices, hold_out


class DigitsDataModule(ClassificationDataModule):
    """Ten digits in 16 shades of grey; nothing is downloaded.

    There is no official test split: a fifth of each digit is the test split here, the
    same one whatever `split_seed`. Digits are shifted by at most one pixel, never mirrored.

    Args:
        **kwargs: Arguments of `ClassificationDataModule`.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_classes = 10
        self.in_chans = 1
        self.image_size = 8
        self.class_names = [str(digit) for digit in range(10)]

    def load_splits(self) -> OfficialSplits:
        """Read the digits from scikit-learn and take the fixed test split off."""
        from sklearn.datasets import load_digits

        digits = load_digits()
        # Shades go from 0 to 16: 15 is the largest whole factor that fits into a byte.
        images = torch.from_numpy((digits.images * 15).astype(np.uint8)).unsqueeze(1)
        labels = digits.target.astype(np.int64)
        train, test = hold_out(labels, np.arange(len(labels)), 0.2, seed=0)

        def take(indices: Indices) -> LabelledImages:
            return LabelledImages(images[indices], torch.from_numpy(labels[indices]))

        return OfficialSplits(train=take(train), test=take(test))
