import torch
from lightning.pytorch.utilities.compile import _maybe_unwrap_optimized
from strangers import Stranger, randomise

from lightning_merge.callbacks.candidate import copy_of


def test_the_copy_of_a_compiled_module_is_not_compiled_and_uses_its_own_weights():
    compiled = torch.compile(randomise(Stranger(), 1), backend="eager")
    original = _maybe_unwrap_optimized(compiled)
    copied = copy_of(original)
    randomise(copied, 2)
    images = torch.randn(4, 3, 8, 8)
    assert torch.equal(copied.eval()(images), randomise(Stranger(), 2).eval()(images))
    assert not hasattr(copied.validation_step, "_torchdynamo_orig_callable")
    assert copied.validation_step.__self__ is copied
