"""What activation matching costs, against the two forward passes that it cannot do without."""

import torch

from benchmarks.ratio import Ratio, measure


def run() -> list[Ratio]:
    """ResNet18 and ResNet20, 4 batches."""
    import timm

    import lightning_merge.networks  # noqa: F401
    from lightning_merge import ActivationMatching, PermutationSpec

    found = []
    for name, size in (("resnet20_cifar", 32), ("resnet18", 64)):
        torch.manual_seed(0)
        a, b = (timm.create_model(name, num_classes=10).eval() for _ in range(2))
        batches = [torch.randn(64, 3, size, size) for _ in range(4)]
        spec = PermutationSpec.from_model(a, batches[0][:2])

        def forwards(a=a, b=b, batches=batches) -> None:  # type: ignore[no-untyped-def]
            with torch.no_grad():
                for batch in batches:
                    a(batch)
                    b(batch)

        def match(a=a, b=b, batches=batches, spec=spec) -> None:  # type: ignore[no-untyped-def]
            ActivationMatching().match(spec, a, b, batches)

        title = f"activation matching / two forward passes, {name}"
        found.append(measure(title, match, forwards, pairs=5, warm_up=1))
    return found
