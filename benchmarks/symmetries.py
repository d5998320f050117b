"""What all symmetries cost: deriving and verifying them, matching by weights, a learned step.

* Deriving and matching are held against permutations alone, a learned step against a training
  step of one network with the same images.
* Two clocks: the wall's, and the processor's, to which other work on the machine adds little.
"""

import copy
import time
from collections.abc import Callable

import torch

from benchmarks.ratio import Ratio, measure
from lightning_merge import PermutationSpec, WeightMatching
from lightning_merge.align import LearnedMaps
from lightning_merge.align.matching.learned import normalising_by_batch
from lightning_merge.align.matching.learned_maps import distillation
from lightning_merge.symmetry import spec as specs

_VIT = "vit_base_patch16_224"
_SMALL = {"img_size": 32, "patch_size": 4, "embed_dim": 192, "depth": 6, "num_heads": 3}
# Network, options, pixels, examples of a batch.
_STEPS: tuple[tuple[str, dict[str, int], int, int], ...] = (
    ("vit_tiny_patch16_224", _SMALL, 32, 64),
    ("resnet20_cifar", {}, 32, 128),
    (_VIT, {}, 224, 16),
)


def run() -> list[Ratio]:
    """ViT-B/16 at 224 pixels; the learned step also of networks that train on a CPU."""
    return [*derivation(), *weights(), *steps()]


def derivation() -> list[Ratio]:
    """All symmetries, held against permutations alone."""
    import timm

    model = timm.create_model(_VIT, num_classes=10).eval()
    x = torch.randn(2, 3, 224, 224)

    def every() -> None:
        specs._VERIFIED.clear()
        specs._SYMMETRIC.clear()
        PermutationSpec.from_model(model, x, symmetries="all")

    def permutations() -> None:
        specs._VERIFIED.clear()
        PermutationSpec.from_model(model, x)

    title = f"derive and verify all symmetries, {_VIT}"
    return _once(title, every, permutations, 45)


def weights() -> list[Ratio]:
    """Two networks with random weights, held against matching by permutations."""
    import timm

    torch.manual_seed(0)
    a, b = (timm.create_model(_VIT, num_classes=10).eval() for _ in range(2))
    spec = PermutationSpec.from_model(a, torch.randn(2, 3, 224, 224), symmetries="all")
    states = a.state_dict(), b.state_dict()
    return _once(
        f"weight matching with all symmetries, {_VIT}",
        lambda: WeightMatching(symmetries="all").match(spec, *states),
        lambda: WeightMatching().match(spec, *states),
        60,
    )


def _once(
    name: str, ours: Callable[[], object], permutations: Callable[[], object], limit: int
) -> list[Ratio]:
    """One run of each, by both clocks."""
    clocks = {"s": time.perf_counter, "CPU s": time.process_time}
    taken = []
    for action in (permutations, ours):
        before = {unit: clock() for unit, clock in clocks.items()}
        action()
        taken.append({unit: clock() - before[unit] for unit, clock in clocks.items()})
    theirs, own = taken
    return [
        Ratio(
            name, own[unit], theirs[unit], own[unit] / theirs[unit], float("nan"),
            "permutations", f"< {limit} s", unit,
        )
        for unit in clocks
    ]  # fmt: skip


def steps() -> list[Ratio]:
    """A step of learned matching, held against a training step of one network."""
    import timm

    import lightning_merge.networks  # noqa: F401 - registers the CIFAR networks with timm

    found = []
    for name, options, pixels, examples in _STEPS:
        torch.manual_seed(0)
        a, b = (timm.create_model(name, num_classes=10, **options).eval() for _ in range(2))
        x = torch.randn(examples, 3, pixels, pixels)
        spec = PermutationSpec.from_model(a, x, symmetries="all")
        maps = LearnedMaps(spec, a.state_dict(), b.state_dict(), spec.identity())
        adam = torch.optim.Adam(maps.parameters())
        trained = copy.deepcopy(a).train()
        own = torch.optim.Adam(trained.parameters())
        classes = torch.randint(10, (examples,))
        merged = normalising_by_batch(copy.deepcopy(a))

        def learn(a=a, b=b, x=x, maps=maps, adam=adam, merged=merged) -> None:  # type: ignore[no-untyped-def]
            with torch.no_grad():
                teachers = (a(x) + b(x)) / 2
            adam.zero_grad()
            logits = torch.func.functional_call(merged, maps.merged(0.5), (x,))
            distillation(logits, teachers).backward()
            adam.step()

        def train(trained=trained, own=own, x=x, classes=classes) -> None:  # type: ignore[no-untyped-def]
            own.zero_grad()
            torch.nn.functional.cross_entropy(trained(x), classes).backward()
            own.step()

        width = f" of width {options['embed_dim']}, depth {options['depth']}" if options else ""
        row = f"a step of learned matching, {name}{width}, {examples} images of {pixels} pixels"
        pairs = 1 if name == _VIT else 5
        found.append(measure(row, learn, train, pairs, 1, "a training step", "ratio < 2.0"))
    return found
