"""Ingredients of one family but of different widths, brought to the shapes of the widest."""

from collections.abc import Sequence

from lightning.pytorch import LightningModule
from torch import Tensor

from lightning_merge.align import widened
from lightning_merge.checkpoint import StateDict, fit_names
from lightning_merge.errors import AlignmentError


def of_widest(
    modules: Sequence[LightningModule],
    states: Sequence[StateDict],
    names: Sequence[str],
    example: Tensor,
) -> tuple[LightningModule, list[StateDict]]:
    """The widest network, and every ingredient as a state dict of its shapes.

    Of several the first; the narrower ones are `widened`, so that they compute what they did.
    """
    sizes = [sum(value.numel() for value in state.values()) for state in states]
    widest = sizes.index(max(sizes))
    own = [
        fit_names(state, module.state_dict(), name)
        for module, state, name in zip(modules, states, names, strict=True)
    ]
    for module, state in zip(modules, own, strict=True):
        module.load_state_dict(state)
    shapes = _shapes(own[widest])
    found = []
    for module, state, name in zip(modules, own, names, strict=True):
        if _shapes(state) == shapes:
            found.append(state)
            continue
        try:
            found.append(widened(module, modules[widest], example))
        except AlignmentError as error:
            raise AlignmentError(f"{name} beside {names[widest]}: {error}") from error
    return modules[widest], found


def _shapes(state: StateDict) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in state.items()}
