"""One trunk for two networks: up to a layer they are one, behind it each goes on by itself.

Source: Stoica et al. 2024, "ZipIt! Merging Models from Different Tasks without Training",
Sec. 4.3 (partial zips).
"""

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any

from torch import Tensor, nn

from lightning_merge.align.zipping.cut import Cut, Reached
from lightning_merge.watched_layers import watch_output


class TwoHeads(nn.Module):
    """The outputs of two networks that share everything up to a layer.

    The shared part runs once. Behind it run the layers of a and of b, each on its own version of
    the shared units.

    Args:
        trunk: A network with the shared weights.
        model_a: Where the layers behind come from.
        model_b: Likewise.
        cut: Where the shared part ends.
        unmerge: `U_a` and `U_b`, `(n, n)`: each network's units from the shared ones.
    """

    def __init__(
        self,
        trunk: nn.Module,
        model_a: nn.Module,
        model_b: nn.Module,
        cut: Cut,
        unmerge: tuple[Tensor, Tensor],
    ) -> None:
        super().__init__()
        self.trunk = Trunk(trunk, cut)
        self.heads = nn.ModuleList(
            head_of(model, cut, matrix, self.trunk.values)
            for model, matrix in zip((model_a, model_b), unmerge, strict=True)
        )

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """What both networks give."""
        with self.trunk.running(*args, **kwargs):
            one, other = (head(*args, **kwargs) for head in self.heads)
        return one, other


class Values(dict[str, list[Any]]):
    """What modules gave when they ran last, by name, in the order of their calls."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "Values":
        # Tensors of a forward pass are no state; what shares the original shares the copy.
        return memo.setdefault(id(self), Values())

    def __reduce__(self) -> tuple[type["Values"], tuple[()]]:
        return Values, ()


class Trunk(nn.Module):
    """A network up to a cut; what its modules give is kept for those who go on from there.

    The network's modules behind the cut are taken off.
    """

    def __init__(self, network: nn.Module, cut: Cut) -> None:
        super().__init__()
        self.values = Values()
        for name in cut.behind:
            network.set_submodule(name, nn.Identity())
        self.network, self.cut = network, cut

    @contextmanager
    def running(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """Runs the network; its values are there inside the context."""
        names = (*self.cut.before, self.cut.name)
        self.values.clear()
        self.values.update({name: [] for name in names})
        with ExitStack() as watches, suppress(Reached):
            for name in names:
                layer = self.network.get_submodule(name)
                watches.enter_context(watch_output(layer, partial(self._keep, name)))
            self.network(*args, **kwargs)
        try:
            yield
        finally:
            self.values.clear()

    def _keep(self, name: str, output: Any) -> None:
        self.values[name].append(output)
        if name == self.cut.name:
            raise Reached


class Recorded(nn.Module):
    """In place of a module of the trunk: what that gave, which is kept in `values`.

    Its units, along `axis`, are multiplied by `unmerge`, `(n, n)`, if it is given.
    """

    matrix: Tensor | None

    def __init__(
        self, name: str, values: Values, unmerge: Tensor | None = None, axis: int = 1
    ) -> None:
        super().__init__()
        self.name, self.values, self.axis = name, values, axis
        self.register_buffer("matrix", unmerge)

    def forward(self, *_args: Any, **_kwargs: Any) -> Any:
        """The next of the values."""
        kept = self.values[self.name]
        if self.matrix is None:
            # Both heads read the same ones in turn.
            kept.append(kept.pop(0))
            return kept[-1]
        return (kept[0].movedim(self.axis, -1) @ self.matrix.to(kept[0]).mT).movedim(-1, self.axis)


def head_of(model: nn.Module, cut: Cut, unmerge: Tensor, values: Values) -> nn.Module:
    """A copy of a network that goes on from a trunk."""
    memo = {id(model.get_submodule(name)): nn.Identity() for name in (*cut.before, cut.name)}
    head = copy.deepcopy(model, memo)
    for name in cut.before:
        head.set_submodule(name, Recorded(name, values))
    like = next((p for p in model.parameters()), unmerge)
    head.set_submodule(cut.name, Recorded(cut.name, values, unmerge.to(like), cut.axis))
    return head
