"""Networks whose units cannot be moved because of how they are written."""

import warnings
from collections.abc import Sequence

from torch import nn
from torch.nn.utils import parametrize

from lightning_merge.errors import AlignmentError
from lightning_merge.symmetry.unit_group import Group

_NO_RULE = "has no rule for this use"
_FAILED = ": frozen"


def refuse_if_lost(model: nn.Module, groups: Sequence[Group], frozen: Sequence[str]) -> None:
    """Check that what a network computes its weights from has not cost it all its groups.

    A network may have no groups because it has no units that could be exchanged, as a linear
    classifier, or because constants of its own tell its units apart: nothing is wrong then. It is
    if the reason is an operator that has no rule, a parametrization, or a verification that failed.
    """
    computed = _computed_weights(model)
    name = type(model).__name__
    if groups:
        moved = {member.tensor for group in groups for member in group.members}
        left = {path: how for path, how in computed.items() if not _has(moved, path)}
        if left:
            path, (kind, remove) = next(iter(left.items()))
            warnings.warn(
                f"{name}: {len(left)} layers with computed weights cannot be aligned ({path!r}: "
                f"{kind}): call {remove} first",
                stacklevel=3,
            )
        return
    lost = [line for line in frozen if line.endswith((_NO_RULE, _FAILED))]
    if not lost:
        return
    if computed:
        path, (kind, remove) = next(iter(computed.items()))
        raise AlignmentError(
            f"{name} has no units that can be permuted, because its weights are computed "
            f"({path!r} by {kind}): call {remove} on its layers first"
        )
    reasons = dict.fromkeys(map(_reason, lost))
    raise AlignmentError(
        f"{name} has no units that can be permuted ({'; '.join([*reasons][:3])}): list its groups "
        "with PermutationSpec.from_groups"
    )


def _reason(line: str) -> str:
    where = line.split(": ", 1)[1]
    return where.removesuffix(_FAILED) if line.endswith(_FAILED) else where.split(": ", 1)[-1]


def _computed_weights(model: nn.Module) -> dict[str, tuple[str, str]]:
    """By path, the layers whose weights are computed: by what, and what undoes it."""
    found = {}
    for path, module in model.named_modules():
        if parametrize.is_parametrized(module):
            name, kinds = next(iter(module.parametrizations.items()))
            kind = type(kinds[0]).__name__.strip("_")
            remove = "torch.nn.utils.parametrize.remove_parametrizations"
            found[f"{path}.{name}".lstrip(".")] = f"the parametrization {kind}", remove
        for hook in module._forward_pre_hooks.values():
            if type(hook).__name__ == "WeightNorm":
                found[path] = "weight_norm", "torch.nn.utils.remove_weight_norm"
    return found


def _has(moved: set[str], path: str) -> bool:
    layer = path.rpartition(".")[0] if "." in path else ""
    prefix = f"{layer}." if layer else ""
    return any(tensor.startswith(f"{prefix}parametrizations.") for tensor in moved)
