"""What a network costs at inference: its operations for one image, and its parameters."""

import torch
from torch import Tensor, nn

from lightning_merge.batches import to_device_of
from lightning_merge.modes import evaluation


@torch.no_grad()
def flops(module: nn.Module, example: Tensor) -> int:
    """The floating-point operations of one prediction.

    Counted are convolutions, matrix products and attention, each multiply-add as two
    operations (many papers count it as one: "Rethinking Weight-Averaged Model-merging",
    Table 9, does), while the network runs once in evaluation mode. What remains (norms,
    activations, poolings) is a few percent and left out, as is usual.

    Args:
        module: A network of one input; an ensemble counts with all its members.
        example: Images `(N, C, H, W)` or any other input, of which the first one is used.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    # Fused attention kernels are not counted on every device and by every release.
    with evaluation(module), sdpa_kernel(SDPBackend.MATH), counter:
        module(to_device_of(module, example[:1]))
    return int(counter.get_total_flops())


def parameters_at_inference(module: nn.Module) -> int:
    """How many numbers prediction needs; the alphas of a merge are not among them."""
    return sum(
        parameter.numel() for name, parameter in module.named_parameters() if name != "alpha_logits"
    )
