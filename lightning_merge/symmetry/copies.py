"""Copies of a network beside itself that its forward does not run: running means, teachers.

`AveragedModel` in a LightningModule, or a teacher that follows its student, has the order of units
of the network that it was copied from. Nothing in the graph says so: its structure does.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence

from torch import Tensor, nn

from lightning_merge.checkpoint import tensors_of
from lightning_merge.symmetry.unit_group import Group

State = dict[str, Tensor]
Signature = tuple[tuple[tuple[str, type], ...], tuple[tuple[str, tuple[int, ...]], ...]]


def copies_of(
    model: nn.Module, run: Collection[str], groups: Sequence[Group]
) -> list[dict[str, str]]:
    """For each copy in a model the names of its tensors, with those of what they are copies of.

    `run` names the parameters and buffers that the model's forward uses. A part that has the
    structure of several others is a copy of none, and neither is one whose units meet others beside
    it: what reads the copy's is not known.
    """
    together: list[list[dict[str, str]]] = []
    for copy in _alike(model, run):
        # A body's copy and a head's are one network; two copies of a body are two.
        fits = (one for one in together if not any({*c.values()} & {*copy.values()} for c in one))
        other = next(fits, None)
        if other is None:
            together.append([copy])
        else:
            other.append(copy)
    tensors = [{member.tensor for member in group.members} for group in groups]
    return [copy for one in together for copy in _closed(one, tensors)]


def _closed(copies: list[dict[str, str]], groups: Sequence[set[str]]) -> list[dict[str, str]]:
    """Those of one network's copies whose units meet no tensors but theirs."""
    inside = {name for copy in copies for pair in copy.items() for name in pair}
    beside = {name for tensors in groups if not tensors <= inside for name in tensors}
    kept = [copy for copy in copies if beside.isdisjoint(copy.values())]
    return kept if len(kept) == len(copies) else _closed(kept, groups)


def _alike(model: nn.Module, run: Collection[str]) -> list[dict[str, str]]:
    """Parts that are not run, each with the one part that is run and is built as it is."""
    names = [*tensors_of(model)]
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
    change: Callable[..., State],
    *others: Mapping[str, Tensor],
) -> State:
    """What a change makes of a state dict, and of each copy in the place of its source.

    The change is given the `others` as well, with their own copies in these places. Extra state
    that is no tensor comes last, as it is.
    """
    extra = {name: value for name, value in state.items() if not isinstance(value, Tensor)}
    state = {name: value for name, value in state.items() if name not in extra}
    given = (state, *others)
    result = change(*given)
    # A checkpoint may have been saved without its teacher.
    for copy in (copy for copy in copies if all(copy.keys() <= one.keys() for one in given)):
        changed = change(*({**one, **{s: one[n] for n, s in copy.items()}} for one in given))
        result |= {name: changed[source] for name, source in copy.items()}
    return result | extra


def _signature(module: nn.Module) -> Signature:
    return (
        tuple((name, type(one)) for name, one in module.named_modules()),
        tuple((name, tuple(one.shape)) for name, one in tensors_of(module).items()),
    )
