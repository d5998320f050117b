"""N networks of one architecture, evaluated as one computation."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.conv import _ConvNd

# Below so many weights a network is evaluated faster than the batched call is prepared.
_WORTH_BATCHING = 20_000


def faster_batched(network: nn.Module) -> bool:
    """Whether several such networks should be evaluated as one batched computation.

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
    """N networks of one architecture, evaluated as one computation (`torch.func`'s `vmap`).

    The networks' parameters and buffers become views of stacked tensors `(N, ...)`: nothing
    is kept twice, and what is changed in place in a network is seen here. Moving a network
    (`to`, `half`) ends that: make a new one then.

    They may hold more than the last one, whose code is run.
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        self.network = networks[-1]
        self.state: dict[str, Tensor] = {}
        # A Trainer evaluates in inference mode; parameters must stay ordinary tensors.
        with torch.inference_mode(False), torch.no_grad():
            for name, _ in self.network.named_parameters():
                self._stack(name, [network.get_parameter(name) for network in networks])
            for name, _ in self.network.named_buffers():
                self._stack(name, [network.get_buffer(name) for network in networks])

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """The outputs of all networks for the same input, `(N, ...)`.

        In evaluation mode only: neither dropout nor BatchNorm's statistics can be batched.
        """

        def one(state: dict[str, Tensor]) -> Any:
            return functional_call(self.network, state, args, kwargs)

        return torch.vmap(one)(self.state)

    def _stack(self, name: str, tensors: Sequence[Tensor]) -> None:
        stacked = torch.stack([tensor.detach() for tensor in tensors])
        for tensor, view in zip(tensors, stacked, strict=True):
            tensor.data = view
        self.state[name] = stacked
