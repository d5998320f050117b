"""Confusion matrices of all methods, from what they answered for each test example."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from lightning_merge.measure.measurement import Measurement
from lightning_merge.measure.recommendation import by_method

MOST_CLASSES = 50


def confusion_matrices(
    rows: Sequence[Measurement], class_names: Sequence[str] | None = None
) -> dict[str, Any] | None:
    """How often each class was taken for each other one, for every method and number of networks.

    Each of the `matrices` has its `method`, `kind`, `pool_size` and `counts`, a list for each true
    class with a number for each predicted one, summed over seeds. `classes` has numbers for names
    if none are given, or others in number. None without answers, or with more than 50 classes.
    """
    from sklearn.metrics import confusion_matrix

    groups = by_method([row for row in rows if row.answers and row.answers.targets is not None])
    answers = [row.answers for same in groups.values() for row in same if row.answers]
    if not answers:
        return None
    highest = max(int(max(one.targets.max(), one.predicted.max())) for one in answers)  # type: ignore[union-attr]
    names = [str(name) for name in class_names or ()]
    if len(names) <= highest:
        names = [str(number) for number in range(highest + 1)]
    if len(names) > MOST_CLASSES:
        return None
    labels = np.arange(len(names))
    matrices = [
        {
            "method": method,
            "kind": kind,
            "pool_size": size,
            "counts": np.sum(
                [
                    confusion_matrix(row.answers.targets, row.answers.predicted, labels=labels)  # type: ignore[union-attr]
                    for row in same
                ],
                axis=0,
            ).tolist(),
        }
        for (kind, method, size), same in groups.items()
    ]
    return {"classes": names, "matrices": matrices}
