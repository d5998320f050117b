"""What all symmetries cost: deriving and verifying them, matching by weights, a learned step."""

import copy

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
    (_VIT, {}, 224, 8),
)


def run() -> list[Ratio]:
    """ViT-B/16 at 224 pixels; the learned step also of networks that train on a CPU."""
    return [derivation(), weights(), *steps()]


def derivation() -> Ratio:
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
    return measure(title, every, permutations, 1, 0, "permutations", "< 45 s")


def weights() -> Ratio:
    """Two networks with random weights, held against matching by permutations."""
    import timm

    torch.manual_seed(0)
    a, b = (timm.create_model(_VIT, num_classes=10).eval() for _ in range(2))
    spec = PermutationSpec.from_model(a, torch.randn(2, 3, 224, 224), symmetries="all")
    states = a.state_dict(), b.state_dict()
    return measure(
        f"weight matching with all symmetries, {_VIT}",
        lambda: WeightMatching(symmetries="all").match(spec, *states),
        lambda: WeightMatching().match(spec, *states),
        1,
        0,
        "permutations",
        "< 60 s",
    )


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
        found.append(measure(row, learn, train, 5, 1, "a training step", "ratio < 2.0"))
    return found
