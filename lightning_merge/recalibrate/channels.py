"""The layers that REPAIR corrects, and the statistics of their channels."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from lightning_merge.batches import to_device_of
from lightning_merge.errors import NonFiniteError
from lightning_merge.linear_layers import uses_its_weight
from lightning_merge.recalibrate.looking import Place, looking
from lightning_merge.recalibrate.pooled import Pooled, channel_moments, pool_over_ranks
from lightning_merge.watched_layers import check_watchable, output_given, watch_output

Which = Literal["hidden", "output"]
"""The layers that make hidden units, or those that make the output."""

_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


@dataclass(frozen=True)
class Statistics:
    """Means and standard deviations of a layer's channels, `(C,)` each, float64."""

    mean: Tensor
    std: Tensor


def measure(
    model: nn.Module,
    layers: Sequence[str],
    inputs: Iterable[Tensor],
    shared: bool = False,
    added_up: bool = False,
) -> dict[str, Statistics]:
    """The statistics of the outputs of layers, over all examples and positions.

    The layers, convolutions and linear ones, run once; nothing runs after the last, and the network
    is in the mode in which it is. With `shared` all ranks take part, whose statistics are pooled.
    With `added_up` the network's output is made of theirs by a linear map, and the deviations are
    the output's.
    """
    pools: dict[str, Pooled] = {}
    axes: dict[str, int] = {}
    for name in (*layers, *([""] if added_up else [])):
        layer = model.get_submodule(name)
        axes[name] = channel_axis(layer)
        weight = layer.weight if name else model.get_submodule(layers[-1]).weight
        assert isinstance(weight, Tensor)
        pools[name] = Pooled.empty(weight.shape[0], weight.device)

    def look(place: Place, output: Tensor) -> None:
        pools[place[0]].add(*channel_moments(output, axes[place[0]]))

    for x in inputs:
        with looking(model, [(name, "out") for name in pools], look):
            model(to_device_of(model, x))
    if shared:
        pool_over_ranks(list(pools.values()))
    found = {name: _statistics(pool, name) for name, pool in pools.items()}
    if added_up:
        std = found.pop("").std
        found = {name: Statistics(one.mean, std) for name, one in found.items()}
    return found


@contextmanager
def _hooked(model: nn.Module, hooks: Mapping[str, Callable[..., Any]]) -> Iterator[None]:
    """Runs without gradients, and with a forward hook on each of these layers."""
    with ExitStack() as watches, torch.no_grad():
        for name, hook in hooks.items():
            watches.enter_context(model.get_submodule(name).register_forward_hook(hook))
        yield


def _statistics(pool: Pooled, name: str) -> Statistics:
    if not bool((pool.mean + pool.spread).isfinite().all()):
        raise NonFiniteError(
            f"REPAIR: layer '{name}' has an output of NaN or infinity; look for it in the images "
            "and in the networks' weights"
        )
    # The networks may be on different devices.
    mean, std = pool.mean.cpu(), (pool.spread / pool.weight).sqrt().cpu()
    # Rounding's share of a constant is none.
    return Statistics(mean, torch.where(std > 1e-6 * mean.abs(), std, 0.0))


class LayersToRepair(NamedTuple):
    """What REPAIR corrects.

    Attributes:
        names: The layers, in the order in which they run.
        added_up: Whether the network's output is none of theirs, but made of them by a linear map:
            heads that are averaged, or a classifier behind which positions are.
        left: The other ones that run and do not make the output.
    """

    names: list[str]
    added_up: bool
    left: list[str]


def layers_to_repair(model: nn.Module, x: Tensor, which: Which | None = "hidden") -> LayersToRepair:
    """The layers that REPAIR corrects.

    Those that make hidden units, those that make the output, or both (None); `x` are inputs, to see
    which layers run.
    """
    check_watchable(model, "weight")
    uses = Counter(
        id(parameter) for layer in model.modules() for parameter in layer.parameters(recurse=False)
    )
    last: list[str] = []
    called: list[str] = []
    makers: dict[int, str] = {}
    kept: list[Tensor] = []
    hooks = {}
    for name, layer in model.named_modules():
        if not isinstance(layer, _LAYERS):
            continue
        own, bias = (layer._parameters.get(key) for key in (scale_of(layer) or "", "bias"))
        most = max(uses[id(own)], uses[id(bias)])

        def hook(
            _module: nn.Module,
            _inputs: Any,
            output: Tensor,
            name: str = name,
            plain: bool = own is not None and most == 1 and getattr(layer, "bias", None) is bias,
            axes: int = 0 if own is None else own.ndim,
        ) -> None:
            kept.append(output)
            makers[output.data_ptr()] = name
            last.append(name)
            # One that is given a single vector or image, not a batch, has its channels elsewhere.
            if plain and output.numel() and output.ndim >= axes:
                called.append(name)

        hooks[name] = hook
    x = to_device_of(model, x)
    with _hooked(model, hooks):
        result = model(x)
    found = {makers.get(tensor.data_ptr()) for tensor in _tensors(result)}
    once = [name for name, count in Counter(called).items() if count == 1]
    if which is None:
        return LayersToRepair(once, False, [])
    classifiers = found - {None}
    added_up = False
    if not classifiers and isinstance(result, Tensor) and result.ndim == 2:
        heads = [n for n in once if len(model.get_parameter(f"{n}.weight")) == result.shape[1]]
        for some in (heads, last[-1:]):
            if set(some) <= set(once) and _adds_up(model, x, some, result):
                classifiers, added_up = set(some), True
                break
    makes_output = which == "output"
    if not classifiers and not (makes_output and _reads_more(model, x, last[-1:], result)):
        # Where the output is computed from the classifier's (a softmax), the last layer is it.
        classifiers = set(last[-1:])
    names = [n for n in once if (n in classifiers) == makes_output]
    left = [n for n in dict.fromkeys(last) if n not in once and n not in classifiers]
    return LayersToRepair(names, added_up and makes_output, left)


def channel_axis(layer: nn.Module) -> int:
    """Along which axis a layer's output has its units."""
    return -1 if isinstance(layer, nn.Linear) else 1


def scale_of(layer: nn.Module) -> str | None:
    """The name of the parameter by whose rows a layer's channels are multiplied, before its bias.

    timm's weight-standardised convolutions multiply what they computed by a gain. None where no
    parameter does it.
    """
    if uses_its_weight(layer, _LAYERS):
        return "weight"
    forward = type(layer).forward
    scaled = forward.__module__ == "timm.layers.std_conv" and "gain" in layer._parameters
    return "gain" if scaled else None


def _adds_up(model: nn.Module, x: Tensor, heads: Sequence[str], result: Tensor) -> bool:
    """Whether the outputs of these layers times -2 give the network's times -2."""
    if not heads:
        return False
    # Twice as much would be twice as much behind a maximum or a ReLU, too.
    with _hooked(model, dict.fromkeys(heads, lambda _module, _inputs, output: -2 * output)):
        turned = model(x)
    return torch.allclose(turned, -2 * result, rtol=1e-3, atol=1e-6 * float(result.abs().max()))


def _reads_more(model: nn.Module, x: Tensor, last: Sequence[str], result: Any) -> bool:
    """Whether the network's output depends on more than what its last layer gives."""
    if not last:
        return True
    layer = model.get_submodule(last[0])
    kept: list[Tensor] = []
    # It may be changed in place later.
    with watch_output(layer, lambda output: kept.append(output.clone())), torch.no_grad():
        model(x)
    with torch.no_grad():
        return not same_outputs(output_given(model, layer, kept[0], x), result)


def same_outputs(one: Any, other: Any) -> bool:
    """Whether all tensors in what a network returned are alike but for rounding."""
    pairs = zip(_tensors(one), _tensors(other), strict=True)
    return all(torch.allclose(*pair, rtol=1e-3, atol=1e-6, equal_nan=True) for pair in pairs)


def _tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in what a network returned."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
