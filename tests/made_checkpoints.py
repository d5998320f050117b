"""Checkpoints of ImageClassifier with random weights, as Lightning writes them."""

from pathlib import Path

from strangers import randomise

NETWORK = {"model": "resnet20_cifar", "num_classes": 10, "in_chans": 1}


def write_ingredient(path: Path, seed: int, **changes) -> Path:
    """Writes one; `changes` are arguments of ImageClassifier."""
    import torch
    from lightning.pytorch import __version__

    from lightning_merge import ImageClassifier

    module = randomise(ImageClassifier(**{**NETWORK, **changes}), seed)
    content = {
        "state_dict": module.state_dict(),
        "hyper_parameters": dict(module.hparams),
        "pytorch-lightning_version": __version__,
    }
    torch.save(content, path)
    return path


def write_ingredients(folder: Path, count: int = 2, **changes) -> str:
    """Writes some, and gives their paths as the command line wants them."""
    paths = [write_ingredient(folder / f"{i}.ckpt", i, **changes) for i in range(count)]
    return "[" + ", ".join(str(path) for path in paths) + "]"
