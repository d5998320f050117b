"""Which symmetries beyond permutations a network of the coverage walk has, checked on itself."""

import copy
import time
import warnings
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.random_networks import outputs_of, randomised
from lightning_merge.align import PermutationSpec
from lightning_merge.symmetry import spec

KINDS = ("scaled", "orthogonal", "invertible")


def symmetries(model: nn.Module, x: Tensor) -> dict[str, Any]:
    """What the report says of a network whose permutations were verified in this process.

    For each kind the number of groups and of units; how many groups the verification left
    with permutations (`refused`); seconds without those of permutations; and `error` and `half`
    as for permutations, of the canonical form under random maps of all groups.
    """
    before, lines = spec.verify_symmetries, []

    def kept(*arguments: Any) -> Any:
        result = before(*arguments)
        lines.extend(result[2])
        return result

    start = time.perf_counter()
    spec.verify_symmetries = kept
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = PermutationSpec.from_model(model, x, symmetries="all")
    finally:
        spec.verify_symmetries = before
    row: dict[str, Any] = {"seconds": time.perf_counter() - start, "refused": lines}
    groups = Counter(group.symmetry for group in found.groups)
    units: Counter[str] = Counter()
    for group in found.groups:
        units[group.symmetry] += group.size
    row["kinds"] = {kind: [groups[kind], units[kind]] for kind in KINDS if groups[kind]}
    return row | (_check(model, x, found) if row["kinds"] else {})


def _check(model: nn.Module, x: Tensor, found: PermutationSpec) -> dict[str, float]:
    """Map the network itself, in float64 with everything random, and compare its outputs."""
    generator = torch.Generator().manual_seed(1)
    model = randomised(copy.deepcopy(model).double().eval(), generator)
    x = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    maps = found.random_maps(generator)
    mapped = found.transform(found.canonical(state), maps)
    moved = [name for name in state if not torch.equal(state[name], mapped[name])]
    half = {name: mapped[name] if name in moved[::2] else state[name] for name in state}
    own, new, broken = outputs_of(model, x, (state, mapped, half))
    return {
        "error": float((new - own).norm() / own.norm()),
        "half": float((broken - own).norm() / own.norm()),
    }
