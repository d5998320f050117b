"""A head for a body: logistic regression on the body's features of a task's training images."""

import copy

import numpy as np
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from numpy.typing import NDArray
from torch import Tensor

from lightning_merge.batches import inputs_of, targets_of
from lightning_merge.checkpoint import StateDict
from lightning_merge.errors import ConfigError
from lightning_merge.loaders import Transferred, example_inputs, ordered_batches_of
from lightning_merge.modules.last_layer import last_layer, take_off


def linear_probe(
    module: LightningModule,
    data: LightningDataModule,
    device: torch.device,
    per_class: int | None = None,
) -> tuple[StateDict, int]:
    """The last layer that best classifies a task's images by a fixed body's features.

    Logistic regression with scikit-learn's default penalty on standardised features; the
    standardisation, which needs no labels and is that of all training images, is then folded
    into the weights, so that the layer takes plain features. For a layer without a bias features
    are scaled alone, and the regression has no intercept: the layer could not hold it.

    The body has a head of the task's shape whose weights do not matter. Of each class the labels of
    the first `per_class` examples are used, None for all. Given are the layer's weights by their
    names in the module, and on how many labelled examples they stand.
    """
    body = copy.deepcopy(module).to(device).eval()
    batches = ordered_batches_of(data, module, device)
    name = last_layer(body, example_inputs(batches, device))
    layer = take_off(body, name)
    assert isinstance(layer, torch.nn.Linear)
    features, targets = _features(body, batches)
    classes = layer.out_features
    if targets.is_floating_point() or targets.dim() != 1 or len(targets.unique()) != classes:
        raise ConfigError(
            f"a head of {classes} classes cannot be fitted: the training examples have "
            f"{len(targets.unique())}, and each class needs one; give the task a checkpoint"
        )
    labelled = torch.arange(len(targets))
    if per_class is not None:
        labelled = torch.cat([(targets == one).nonzero()[:per_class, 0] for one in range(classes)])
    weight, bias = _regress(
        features.double().numpy(),
        targets.numpy(),
        labelled.sort()[0].numpy(),
        biased=layer.bias is not None,
    )
    state: StateDict = {f"{name}.weight": torch.from_numpy(weight).to(layer.weight.dtype)}
    if layer.bias is not None:
        state[f"{name}.bias"] = torch.from_numpy(bias).to(layer.weight.dtype)
    return state, len(labelled)


@torch.no_grad()
def _features(body: LightningModule, batches: Transferred) -> tuple[Tensor, Tensor]:
    features, targets = [], []
    for batch in batches:
        found = targets_of(batch)
        if found is None:
            raise ConfigError(
                "a head cannot be fitted to batches without classes: give the task a checkpoint"
            )
        features.append(body(inputs_of(batch)).flatten(1).float().cpu())
        targets.append(found.cpu())
    return torch.cat(features), torch.cat(targets)


def _regress(
    features: NDArray[np.float64],
    targets: NDArray[np.int64],
    labelled: NDArray[np.int64],
    biased: bool,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    from sklearn.linear_model import LogisticRegression

    mean, deviation = features.mean(0) * biased, features.std(0)
    # A unit that never fires carries no information.
    deviation[deviation == 0] = 1
    standardised = (features[labelled] - mean) / deviation
    regression = LogisticRegression(max_iter=1000, fit_intercept=biased)
    fitted = regression.fit(standardised, targets[labelled])
    weight, bias = fitted.coef_ / deviation, fitted.intercept_
    bias = bias - weight @ mean
    if len(weight) == 1:
        # Of two classes scikit-learn gives the difference of the logits.
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    return weight, bias
