"""What activation matching costs, against the two forward passes that it cannot do without."""

import torch

from benchmarks.ratio import Ratio, measure

# Network, pixels, examples of a batch, batches.
_CASES = (
    ("resnet20_cifar", 32, 64, 4),
    ("resnet18", 64, 64, 4),
    ("resnet18", 224, 16, 2),
    ("resnet50", 64, 64, 2),
    ("vit_tiny_patch16_224", 224, 32, 1),
    ("vit_tiny_patch16_224", 224, 32, 4),
)


def run() -> list[Ratio]:
    """ResNets and a ViT; both sides see the same batches."""
    import timm

    import lightning_merge.networks  # noqa: F401
    from lightning_merge import ActivationMatching, PermutationSpec

    found = []
    for name, pixels, examples, count in _CASES:
        torch.manual_seed(0)
        a, b = (timm.create_model(name, num_classes=10).eval() for _ in range(2))
        batches = [torch.randn(examples, 3, pixels, pixels) for _ in range(count)]
        spec = PermutationSpec.from_model(a, batches[0][:2])

        def forwards(a=a, b=b, batches=batches) -> None:  # type: ignore[no-untyped-def]
            with torch.no_grad():
                for batch in batches:
                    a(batch)
                    b(batch)

        def match(a=a, b=b, batches=batches, spec=spec) -> None:  # type: ignore[no-untyped-def]
            ActivationMatching().match(spec, a, b, batches)

        title = f"activation matching, {name}, {count} x {examples} images of {pixels} pixels"
        against = "two forward passes"
        found.append(measure(title, match, forwards, 5, 1, against, "ratio < 1.5"))
    return found
