"""Alignment: bring the hidden units of one trained network into the order of another's.

Two rooms, one on top of the other: `matching` finds which units of two networks correspond,
`zipping` makes one network of units that do. Below them, `lightning_merge.trace` follows an
exported network and learns which units lie where, and `lightning_merge.symmetry` makes verified
groups of them.
"""

from lightning_merge.align.matching.activation import ActivationMatching
from lightning_merge.align.matching.agreement import agreement
from lightning_merge.align.matching.all_to_one import all_to_one
from lightning_merge.align.matching.cca import CCAMatching
from lightning_merge.align.matching.cycle_consistent import CycleConsistentMatching
from lightning_merge.align.matching.learned import LearnedMatching
from lightning_merge.align.matching.learned_maps import LearnedMaps
from lightning_merge.align.matching.matching import Aligned, Matching, matchings
from lightning_merge.align.matching.merge_many import MergeMany
from lightning_merge.align.matching.transport_matching import TransportMatching
from lightning_merge.align.matching.weight import WeightMatching
from lightning_merge.align.zipping.greedy_zip import zip_units
from lightning_merge.align.zipping.two_heads import TwoHeads
from lightning_merge.align.zipping.zip_networks import zip_it
from lightning_merge.symmetry.spec import PermutationSpec
from lightning_merge.symmetry.unit_group import Group, Member
from lightning_merge.symmetry.widening import widened

__all__ = [
    "ActivationMatching",
    "Aligned",
    "CCAMatching",
    "CycleConsistentMatching",
    "Group",
    "LearnedMaps",
    "LearnedMatching",
    "Matching",
    "Member",
    "MergeMany",
    "PermutationSpec",
    "TransportMatching",
    "TwoHeads",
    "WeightMatching",
    "agreement",
    "all_to_one",
    "matchings",
    "widened",
    "zip_it",
    "zip_units",
]
