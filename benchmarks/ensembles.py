"""Ten networks: the ensemble, as it is asked by default and in one computation; greedy search."""

from collections.abc import Iterable

import torch

from benchmarks.ratio import Ratio, measure

_CASES = (
    # network, images in a batch, their size and channels, classes, pairs
    ("resnet20_cifar", 8, 32, 3, 10, 3),
    ("vgg11_cifar", 2, 32, 3, 10, 3),
    ("linear_classifier", 256, 32, 3, 100, 9),
    ("linear_classifier", 256, 32, 3, 10, 9),
    ("linear_classifier", 256, 8, 1, 10, 9),
)


def run() -> list[Ratio]:
    """Evaluation of one batch by ten networks; the greedy soup of ten by held-out accuracy."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found = []
    for case in _CASES:
        found += _evaluation(*case, device)
    found += [_greedy("all alike", [1.0] * 10), _greedy("near and far", range(1, 11))]
    return found


def _evaluation(name, batch, size, channels, classes, pairs, device) -> list[Ratio]:  # type: ignore[no-untyped-def]
    from lightning_merge import EnsembleModule, ImageClassifier

    def build():  # type: ignore[no-untyped-def]
        linear = {"img_size": size} if name == "linear_classifier" else {}
        return [
            ImageClassifier(name, num_classes=classes, in_chans=channels, model_kwargs=linear)
            for _ in range(10)
        ]

    images = torch.randn(batch, channels, size, size, device=device)
    separate = [module.to(device).eval() for module in build()]

    def ask_each() -> None:
        with torch.inference_mode():
            for module in separate:
                module(images)
        _wait(device)

    ratios = []
    for how, batched in (("by default", None), ("batched", True)):
        ensemble = EnsembleModule(build(), batched).to(device).eval()

        def ask_all(ensemble=ensemble) -> None:  # type: ignore[no-untyped-def]
            with torch.inference_mode():
                ensemble(images)
            _wait(device)

        network = f"{name} {channels}x{size}x{size}, {classes} classes"
        title = f"10-model ensemble {how}, {network}"
        against = "the ten, one after the other"
        ratios.append(measure(title, ask_all, ask_each, pairs, 1, against))
    return ratios


def _greedy(what: str, distances: Iterable[float]) -> Ratio:
    from lightning_merge import ImageClassifier
    from lightning_merge.aggregate import greedy_soup, greedy_soup_by_counts
    from lightning_merge.aggregate.greedy_search import hardest_first
    from lightning_merge.modules.last_layer import last_layer
    from lightning_merge.recalibrate import reset_batchnorm

    torch.manual_seed(0)
    network = ImageClassifier("resnet20_cifar", in_chans=1).eval()
    images = torch.randn(512, 1, 8, 8)
    reset_batchnorm(network, [images])
    layer = network.get_submodule(last_layer(network, images))
    with torch.no_grad():
        # All classes occur, which an untrained network does not see to.
        layer.bias -= network(images).mean(dim=0)
        labels = network(images).argmax(dim=1)
    # Ten networks about one that is always right: of those that are alike most join the soup, of
    # those that are ever further off few do, and only they can be dropped early.
    states = [
        {
            name: value + 0.02 * far * value.std() * torch.randn_like(value)
            if name.endswith("weight") and value.dim() > 1
            else value
            for name, value in network.state_dict().items()
        }
        for far in distances
    ]

    def hits(state, order):  # type: ignore[no-untyped-def]
        network.load_state_dict(state)
        for part in order.split(32):
            with torch.inference_mode():
                yield network(images[part]).argmax(dim=1) == labels[part]

    everything = torch.arange(len(images))
    known = torch.stack([torch.cat(list(hits(state, everything))) for state in states])
    correct = known.sum(dim=1).tolist()

    def plain() -> None:
        greedy_soup(
            states,
            lambda state: float(torch.cat(list(hits(state, everything))).sum()),
            metrics=correct,
        )

    def pruned() -> None:
        order = hardest_first(known)

        def count(state):  # type: ignore[no-untyped-def]
            return ((int(batch.sum()), len(batch)) for batch in hits(state, order))

        greedy_soup_by_counts(states, count, len(images), correct)

    share = sum(correct) / known.numel()
    name = f"greedy search of 10 {what}, pruned, ResNet20 (mean accuracy {share:.2f})"
    return measure(name, pruned, plain, 3, 1, "plain search")


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
