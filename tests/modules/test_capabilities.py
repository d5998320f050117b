"""What modules declare of themselves, ours and others."""

import pytest
import torch
from torch import nn

from lightning_merge.modules import CLIPClassifier, EnsembleModule, ImageClassifier, MergeModule
from lightning_merge.modules.capabilities import contiguous_images

SMALL = {"model": "resnet20_cifar", "num_classes": 3, "model_kwargs": {"depth": 1, "width": 4}}


def seen_by(module):
    """Whether the network gets channels-last images."""
    found = []

    def look(_, inputs):
        found.append(inputs[0].is_contiguous())

    handle = module.network.register_forward_pre_hook(look)
    module.eval()(torch.randn(2, 3, 8, 8))
    handle.remove()
    return "contiguous" if found[0] else "channels last"


def made(kind):
    one = ImageClassifier(**SMALL)
    if kind is MergeModule:
        return MergeModule(one, [ImageClassifier(**SMALL).state_dict() for _ in range(2)])
    return EnsembleModule([one]) if kind is EnsembleModule else one


@pytest.mark.parametrize("kind", [ImageClassifier, MergeModule, EnsembleModule])
def test_images_are_contiguous_for_a_while(kind):
    module = made(kind)
    assert seen_by(module) == "channels last"
    with contiguous_images(module):
        assert seen_by(module) == "contiguous"
    assert seen_by(module) == "channels last"
    with contiguous_images(nn.Linear(2, 2)) as nothing:
        assert nothing is None


def test_what_a_class_declares_is_known_without_an_object():
    class Own(CLIPClassifier):
        pass

    assert (ImageClassifier.reads_text, CLIPClassifier.reads_text, Own.reads_text) == (
        False,
        True,
        True,
    )
    module = ImageClassifier(**SMALL)
    assert (module.image_size, module.image_mean, module.image_std) == (None, None, None)
