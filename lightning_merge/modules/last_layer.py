"""Where a network's features end: the linear layer that gives its output.

The features of a network are what its last linear layer is given (Rethinking
Weight-Averaged Model-merging, Wang et al., Sec. 4 and supplementary Sec. 8).
"""

from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lightning_merge.batches import to_device_of
from lightning_merge.errors import ConfigError
from lightning_merge.modes import as_written, evaluation
from lightning_merge.watched_layers import watch_output


@torch.no_grad()
def last_layer(network: nn.Module, inputs: Tensor) -> str:
    """The name of the linear layer that gives the network's output, as `get_submodule` takes it.

    It is found by running the network on inputs, two are enough, so that any network will do;
    weights, modes and device stay as they are. What is found is checked: without that layer the
    network must give what the layer takes. A `ConfigError` if the output is not that of one linear
    layer: there is none, two are averaged, or something (a softmax) comes after it.

    Example:
        >>> last_layer(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.ones(1, 3))
        '2'
    """
    calls: list[tuple[str, Tensor]] = []

    def note(name: str, output: Any) -> None:
        calls.append((name, output))

    with evaluation(network), as_written():
        inputs = to_device_of(network, inputs)
        with ExitStack() as watches:
            for name, layer in network.named_modules():
                if isinstance(layer, nn.Linear):
                    watches.enter_context(watch_output(layer, partial(note, name)))
            output = network(inputs)
        name = calls[-1][0] if calls else ""
        if not calls or not _is(output, calls[-1][1]) or not _splits(network, name, inputs, output):
            raise ConfigError(
                f"{type(network).__name__} has no features to average: its output is not that of "
                "one last linear layer; take the ensemble of logits"
            )
    return name


def take_off(network: nn.Module, name: str) -> nn.Module:
    """Removes a network's last layer, so that it gives features `(B, d)`; returns the layer."""
    layer = network.get_submodule(name)
    network.set_submodule(name, nn.Identity())
    return layer


def _is(output: Any, logits: Tensor) -> bool:
    # The very tensor, not one of equal values: a head of zeros equals anything of zeros.
    return (
        isinstance(output, Tensor)
        and output.shape == logits.shape
        and output.data_ptr() == logits.data_ptr()
    )


def _splits(network: nn.Module, name: str, inputs: Tensor, output: Tensor) -> bool:
    layer = take_off(network, name)
    try:
        features = network(inputs)
    finally:
        network.set_submodule(name, layer)
    return bool(
        isinstance(features, Tensor)
        and features.shape[-1] == layer.in_features
        and torch.allclose(layer(features), output)
    )
