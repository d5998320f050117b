"""What aligning costs: deriving and verifying a spec, matching, and memory.

* Deriving and verifying is held against `torch.export` of the same network, without which
  there is no graph; both at 224 pixels.
* Weight matching of two networks with random weights is held against one sweep over all
  groups that takes every product in float64 and solves every assignment once; and, where
  it is there, against the `rebasin` package on the same weights, once, in its own process.
* All symmetries are held against permutations alone, a step of learned matching against a
  training step of one network.
* Activation matching is held against the two forward passes on the same batches.
* Memory is the peak of the resident memory of a process of its own, as the kernel counts it,
  from before the networks are made, less the covariances; against the two networks.
"""

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks import matching, memory, symmetries
from benchmarks.ratio import Ratio, measure, seconds
from lightning_merge import PermutationSpec, WeightMatching
from lightning_merge.align.matching.assignment import assign_blocks
from lightning_merge.align.matching.weight_similarity import moved_parameters, rows
from lightning_merge.symmetry import spec as specs
from lightning_merge.trace.exported import export

_PEER_LIMIT = 300


def run(peer_python: str | None = None) -> list[Ratio]:
    """All of it, for the networks that the goals name."""
    found = [*derivation(), *weight_matching(peer_python), *matching.run()]
    return [*found, *symmetries.run(), *memory.run()]


def derivation() -> list[Ratio]:
    """ResNet50 and ViT-B/16."""
    import timm

    found = []
    for name, limit in (("resnet50", 10), ("vit_base_patch16_224", 20)):
        model = timm.create_model(name, num_classes=10).eval()
        x = torch.randn(2, 3, 224, 224)

        def derive(model=model, x=x) -> None:  # type: ignore[no-untyped-def]
            specs._VERIFIED.clear()
            PermutationSpec.from_model(model, x)

        def floor(model=model, x=x) -> None:  # type: ignore[no-untyped-def]
            export(model, [x])

        title = f"derive and verify, {name}"
        found.append(measure(title, derive, floor, 3, 1, "torch.export", f"< {limit} s"))
    return found


def weight_matching(peer_python: str | None) -> list[Ratio]:
    """ResNet18 and ResNet50."""
    import timm

    found = []
    for name, limit in (("resnet18", 5), ("resnet50", 30)):
        torch.manual_seed(0)
        a, b = (timm.create_model(name, num_classes=10).eval() for _ in range(2))
        spec = PermutationSpec.from_model(a, torch.randn(2, 3, 64, 64))
        states = a.state_dict(), b.state_dict()

        def match(spec=spec, states=states) -> None:  # type: ignore[no-untyped-def]
            WeightMatching().match(spec, *states)

        title, goal = f"weight matching, {name}", f"< {limit} s"
        floor = _one_sweep(spec, *states)
        found.append(measure(title, match, floor, 3, 1, "one plain sweep", goal))
        found += _peer(title, goal, match, name, peer_python)
    return found


def _one_sweep(
    spec: PermutationSpec, a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]
) -> Callable[[], None]:
    """Every group's scores and assignment once, the networks being float64 already."""
    names = moved_parameters(spec)
    one, other = ({name: state[name].double() for name in names} for state in (a, b))

    def sweep() -> None:
        for group in spec.groups:
            scores = torch.zeros(group.size, group.size, dtype=torch.float64)
            for member in group.members:
                if member.tensor in one:
                    left, right = (
                        rows(s[member.tensor], member, member.index) for s in (one, other)
                    )
                    scores += left @ right.T
            assign_blocks(scores, group.blocks)

    return sweep


def _peer(
    title: str, goal: str, match: Callable[[], None], name: str, python: str | None
) -> list[Ratio]:
    """The peer's seconds on the same weights; nothing if it is not there."""
    if python is None and importlib.util.find_spec("rebasin") is None:
        print(f"{title}: rebasin is left out; name a Python that has it by --peer-python")
        return []
    command = [python or sys.executable, str(Path(__file__).with_name("peer.py")), name]
    against = "rebasin"
    try:
        done = subprocess.run(
            [*command, str(torch.get_num_threads())],
            capture_output=True,
            text=True,
            timeout=_PEER_LIMIT,
        )
    except subprocess.TimeoutExpired:
        theirs, against = float(_PEER_LIMIT), "rebasin, stopped"
    else:
        if done.returncode:
            print(f"{title}: rebasin failed: {done.stderr.strip().splitlines()[-1]}")
            return []
        theirs = float(done.stdout.split()[-1])
    ours = seconds(match)
    return [Ratio(title, ours, theirs, ours / theirs, float("nan"), against, goal)]
