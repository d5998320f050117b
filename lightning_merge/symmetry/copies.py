"""Copies of a network beside itself that its forward does not run: running means, teachers.

`AveragedModel` in a LightningModule, or a teacher that follows its student, has the order of units
of the network that it was copied from. Nothing in the graph says so: its structure does.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping

from torch import Tensor, nn

State = dict[str, Tensor]
Signature = tuple[tuple[tuple[str, type], ...], tuple[tuple[str, tuple[int, ...]], ...]]


def copies_of(model: nn.Module, run: Collection[str]) -> list[dict[str, str]]:
    """The copies in a model.

    Args:
        model: The model.
        run: Names of the parameters and buffers that its forward uses.

    Returns:
        For each copy the names of its tensors, with those of the tensors that they are copies of. A
        part that has the structure of several others is a copy of none.
    """
    names = [*model.state_dict()]
    if set(names) <= set(run):
        return []
    own = defaultdict(list)
    for part, module in model.named_modules():
        inside = [name for name in names if name.startswith(f"{part}.")]
        if part and inside:
            own[_signature(module)].append((part, not set(inside).isdisjoint(run), inside))
    found: list[dict[str, str]] = []
    known: set[str] = set()
    # In the order of the modules, so that a copy comes before its parts.
    order = {part: at for at, (part, _) in enumerate(model.named_modules())}
    alike = [(one, parts) for parts in own.values() for one in parts if not one[1]]
    for (part, _, inside), parts in sorted(alike, key=lambda pair: order[pair[0][0]]):
        sources = [name for name, is_run, _ in parts if is_run]
        if len(sources) == 1 and known.isdisjoint(inside):
            found.append({name: sources[0] + name.removeprefix(part) for name in inside})
            known |= {*inside}
    return found


def with_copies(
    state: Mapping[str, Tensor],
    copies: list[dict[str, str]],
    change: Callable[[Mapping[str, Tensor]], State],
) -> State:
    """What a change makes of a state dict, and of each copy in the place of its source."""
    result = change(state)
    for copy in copies:
        changed = change({**state, **{source: state[name] for name, source in copy.items()}})
        result |= {name: changed[source] for name, source in copy.items()}
    return result


def _signature(module: nn.Module) -> Signature:
    return (
        tuple((name, type(one)) for name, one in module.named_modules()),
        tuple((name, tuple(tensor.shape)) for name, tensor in module.state_dict().items()),
    )
