"""Looking at tensors while a network runs, and no longer than it takes."""

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial

import torch
from torch import Tensor, nn

from lightning_merge.watched_layers import watch_input, watch_output

Place = tuple[str, str]
"""A module's name, and `in` or `out`: where in a network a tensor is looked at."""


class _Stop(Exception):  # noqa: N818 - it is none
    """Ends a forward pass: what follows is not needed."""


@contextmanager
def looking(
    model: nn.Module, places: Collection[Place], look: Callable[[Place, Tensor], None]
) -> Iterator[None]:
    """Calls `look` with the tensor that comes first at each of these places in one forward pass.

    Nothing runs after the last of them.
    """
    left = set(places)

    def arrive(place: Place, value: Tensor) -> None:
        if place in left:
            left.remove(place)
            look(place, value)
            if not left:
                raise _Stop

    with ExitStack() as watches, torch.no_grad(), suppress(_Stop):
        for name, side in places:
            watch = watch_input if side == "in" else watch_output
            layer = model.get_submodule(name)
            watches.enter_context(watch(layer, partial(arrive, (name, side))))
        yield
