"""Networks whose parameters and statistics are all random, and what they give."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


def outputs_of(model: nn.Module, x: Tensor, states: Iterable[dict[str, Tensor]]) -> list[Tensor]:
    """What a network gives with each of several state dicts, as vectors."""
    outputs = []
    for state in states:
        model.load_state_dict(state)
        model.train().eval()  # some networks keep tables computed from weights until then
        with torch.no_grad():
            outputs.append(_flat(model(x)))
    return outputs


def randomised(model: nn.Module, generator: torch.Generator) -> nn.Module:
    """Random parameters of moderate size, random statistics: nothing keeps its default."""

    def noise(tensor: Tensor) -> Tensor:
        return torch.randn(tensor.shape, generator=generator).to(tensor)

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                fan_in = parameter.numel() / parameter.shape[0]
                parameter.copy_(noise(parameter) / fan_in**0.5)
            else:
                parameter.copy_(0.2 * noise(parameter) + float(name.endswith("weight")))
        for name, buffer in model.named_buffers():
            if name.endswith("running_var"):
                buffer.copy_(0.6 + 0.4 * noise(buffer).abs())
            elif name.endswith("running_mean"):
                buffer.copy_(0.1 * noise(buffer))
    return model


def _flat(output: Any) -> Tensor:
    if isinstance(output, Tensor):
        return output.ravel()
    return torch.cat([_flat(one) for one in output])
