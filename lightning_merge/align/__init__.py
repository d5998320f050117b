"""Alignment: bring the hidden units of one trained network into the order of another's."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_merge.align.activation import ActivationMatching
    from lightning_merge.align.cca import CCAMatching
    from lightning_merge.align.group import Group, Member
    from lightning_merge.align.many import (
        CycleConsistentMatching,
        MergeMany,
        agreement,
        all_to_one,
    )
    from lightning_merge.align.matching import Matching
    from lightning_merge.align.spec import PermutationSpec
    from lightning_merge.align.weight import WeightMatching

_HOMES = {
    "ActivationMatching": "activation",
    "CCAMatching": "cca",
    "CycleConsistentMatching": "many",
    "Group": "group",
    "Matching": "matching",
    "Member": "group",
    "MergeMany": "many",
    "PermutationSpec": "spec",
    "WeightMatching": "weight",
    "agreement": "many",
    "all_to_one": "many",
}

__all__ = [
    "ActivationMatching",
    "CCAMatching",
    "CycleConsistentMatching",
    "Group",
    "Matching",
    "Member",
    "MergeMany",
    "PermutationSpec",
    "WeightMatching",
    "agreement",
    "all_to_one",
]


def __getattr__(name: str) -> Any:
    """Import a name on first use, so that importing the package stays quick."""
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
