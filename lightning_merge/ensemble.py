"""What ensembles are made of: where a network's features end, and N networks asked at once.

The features of a network are what its last linear layer is given (Rethinking
Weight-Averaged Model-merging, Wang et al., Sec. 4 and supplementary Sec. 8).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.conv import _ConvNd

from lightning_merge.batches import to_device_of
from lightning_merge.errors import ConfigError

# Below so many weights a network is asked faster than the batched call is prepared.
_WORTH_BATCHING = 20_000


@torch.no_grad()
def last_layer(network: nn.Module, inputs: Tensor) -> str:
    """The name of the linear layer that gives the network's output.

    It is found by running the network, so that any network can be asked. What is found is
    checked: without that layer the network must give what the layer takes.

    Args:
        network: The network; its weights, modes and device stay as they are.
        inputs: What the network takes, two examples are enough.

    Returns:
        The layer's name, as `get_submodule` takes it.

    Raises:
        ConfigError: If the output is not that of one linear layer: there is none, two are
            averaged, or something (a softmax) comes after it.

    Example:
        >>> last_layer(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.ones(1, 3))
        '2'
    """
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        inputs = to_device_of(network, inputs)
        calls: list[tuple[str, Tensor]] = []
        hooks = [
            layer.register_forward_hook(
                lambda _layer, _inputs, output, name=name: calls.append((name, output))
            )
            for name, layer in network.named_modules()
            if isinstance(layer, nn.Linear)
        ]
        try:
            output = network(inputs)
        finally:
            for hook in hooks:
                hook.remove()
        name = calls[-1][0] if calls else ""
        if not calls or not _is(output, calls[-1][1]) or not _splits(network, name, inputs, output):
            raise ConfigError(
                f"{type(network).__name__} has no features to average: its output is not that of "
                "one last linear layer; take the ensemble of logits"
            )
    finally:
        for module, mode in modes.items():
            module.training = mode
    return name


def take_off(network: nn.Module, name: str) -> nn.Module:
    """Removes a network's last layer, so that it gives features `(B, d)`; returns the layer."""
    layer = network.get_submodule(name)
    network.set_submodule(name, nn.Identity())
    return layer


def faster_batched(network: nn.Module) -> bool:
    """Whether several such networks should be asked as one batched computation.

    Convolutions with a batch of weights become one grouped convolution: on a CPU ten VGG11 then
    took 1.9 times as long as one after the other, ten ResNet20 1.1 times. Linear layers become
    one matrix product: ten linear classifiers of 3x32x32 images took 0.5 (10 classes) and 0.6
    times as long (100 classes), but of 1x8x8 images 1.6 times, for there is less to compute than
    to prepare (`python -m benchmarks ensembles`). So a network without convolutions is batched
    if it has weights enough, any other is not.
    """
    weights = sum(parameter.numel() for parameter in network.parameters())
    convolves = any(isinstance(layer, _ConvNd) for layer in network.modules())
    return not convolves and weights >= _WORTH_BATCHING


class BatchedNetworks:
    """N networks of one architecture, asked as one computation (`torch.func`'s `vmap`).

    The networks' parameters and buffers become views of stacked tensors `(N, ...)`: nothing
    is held twice, and what is changed in place in a network is seen here. Moving a network
    (`to`, `half`) ends that: make a new one then.

    Args:
        networks: The networks. They may hold more than the last one, whose code is run.
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        self.network = networks[-1]
        self.state: dict[str, Tensor] = {}
        # A Trainer asks in inference mode; parameters must stay ordinary tensors.
        with torch.inference_mode(False), torch.no_grad():
            for name, _ in self.network.named_parameters():
                self._stack(name, [network.get_parameter(name) for network in networks])
            for name, _ in self.network.named_buffers():
                self._stack(name, [network.get_buffer(name) for network in networks])

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """The outputs of all networks for the same input, `(N, ...)`.

        In evaluation mode only: neither dropout nor BatchNorm's statistics can be batched.
        """

        def ask(state: dict[str, Tensor]) -> Any:
            return functional_call(self.network, state, args, kwargs)

        outputs: Tensor = torch.vmap(ask)(self.state)
        return outputs

    def _stack(self, name: str, tensors: Sequence[Tensor]) -> None:
        stacked = torch.stack([tensor.detach() for tensor in tensors])
        for tensor, view in zip(tensors, stacked, strict=True):
            tensor.data = view
        self.state[name] = stacked


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
