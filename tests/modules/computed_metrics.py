"""Metrics as a classifier computes them, from batches of logits."""

from lightning_merge.modules.metrics import classification_metrics


def computed(task, classes, names, logits, targets, sizes):
    metrics = classification_metrics(task, classes, names)
    for batch, truth in zip(logits.split(sizes), targets.split(sizes), strict=True):
        metrics.update(batch, truth)
    return {name: float(value) for name, value in metrics.compute().items()}
