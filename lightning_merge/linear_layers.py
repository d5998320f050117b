"""Linear layers and convolutions as matrices: which layers are, and the rows that they multiply."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Linear = nn.Linear | nn.Conv2d


def is_plain(layer: nn.Module, kinds: tuple[type[nn.Module], ...]) -> bool:
    """Whether a layer multiplies what it is given by its `weight`, adds its `bias`, and no more.

    A subclass of one of the kinds with a `forward` of its own may do something else.
    """
    forward = type(layer).forward
    as_kind = any(isinstance(layer, kind) and forward is kind.forward for kind in kinds)
    # timm's own differs from torch's in TorchScript alone.
    of_timm = isinstance(layer, nn.Linear) and forward.__module__ == "timm.layers.linear"
    return as_kind or (of_timm and nn.Linear in kinds)


def uses_its_weight(layer: nn.Module, kinds: tuple[type[nn.Module], ...]) -> bool:
    """Whether a layer is linear in its `weight`: a plain one, and timm's that pads by itself."""
    return is_plain(layer, kinds) or (
        isinstance(layer, kinds) and type(layer).forward.__module__ == "timm.layers.conv2d_same"
    )


def exactly(value: Tensor) -> Tensor:
    """A tensor in float64; on the CPU where its device has no such numbers, as Apple's GPUs."""
    return (value.cpu() if value.device.type == "mps" else value).to(torch.float64)


def input_rows(layer: Linear, x: Tensor, rows: Tensor | None = None) -> Tensor:
    """A plain layer's inputs as what its weight is multiplied by, `(groups, R, d)`, float64.

    It is one group for a linear layer of d inputs; for a convolution d = inputs per group x kernel
    height x kernel width, in its weight's order. `rows`, `(R,)`, says which of all examples and
    positions of the output to take, counted example by example, row by row.
    """
    if isinstance(layer, nn.Linear):
        flat = x.reshape(-1, x.shape[-1])
        return exactly(flat if rows is None else flat[rows])[None]
    windows = _windows(layer, x)
    height, width = _positions(layer, x)
    if rows is None:
        rows = torch.arange(output_rows(layer, x), device=x.device)
    example, place = rows // (height * width), rows % (height * width)
    patches = exactly(windows[example, :, place // width, place % width])
    # (R, C, kernel height, kernel width) -> (groups, R, d)
    return patches.unflatten(1, (layer.groups, -1)).flatten(2).transpose(0, 1)


def output_rows(layer: Linear, x: Tensor) -> int:
    """How many rows a layer has for an input: of all examples, at all positions of the output."""
    if isinstance(layer, nn.Linear):
        return x.numel() // x.shape[-1]
    height, width = _positions(layer, x)
    return len(x) * height * width


def _positions(layer: nn.Conv2d, x: Tensor) -> tuple[int, int]:
    """The height and the width of a convolution's output."""
    left, right, top, bottom = _padding(layer)
    found = [
        (size + padding - dilation * (kernel - 1) - 1) // stride + 1
        for size, padding, dilation, kernel, stride in zip(
            x.shape[-2:],
            (top + bottom, left + right),
            layer.dilation,
            layer.kernel_size,
            layer.stride,
            strict=True,
        )
    ]
    return found[0], found[1]


def _windows(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """What a convolution looks at, `(B, C, height, width, kernel height, kernel width)`."""
    padding = _padding(layer)
    if any(padding):
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        x = F.pad(x, padding, mode=mode)
    for axis in (0, 1):
        reach = (layer.kernel_size[axis] - 1) * layer.dilation[axis] + 1
        x = x.unfold(2 + axis, reach, layer.stride[axis])
    return x[..., :: layer.dilation[0], :: layer.dilation[1]]


def _padding(layer: nn.Conv2d) -> list[int]:
    """Left, right, top and bottom."""
    if layer.padding == "valid":
        return [0, 0, 0, 0]
    padding: list[int] = []
    for axis in (1, 0):
        if isinstance(layer.padding, str):
            total = layer.dilation[axis] * (layer.kernel_size[axis] - 1)
            padding += [total // 2, total - total // 2]
        else:
            padding += [layer.padding[axis]] * 2
    return padding
