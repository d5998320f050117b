"""What a module's own way of training may do to alphas, which it was not written for."""

from collections.abc import Iterator
from contextlib import contextmanager

from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.rank_zero import rank_zero_warn


@contextmanager
def rates_in_view(module: LightningModule) -> Iterator[None]:
    """Warns where a module's own `optimizer_step` sets the rate at which the alphas learn."""
    before = _rates(module)
    yield
    if before != _rates(module):
        rank_zero_warn(
            f"{type(module).__name__}: the module's own optimizer_step sets the learning rate at "
            "which the alphas learn, whatever their optimizer was given; leave that out of it"
        )


def _rates(module: LightningModule) -> list[float]:
    groups = [group for one in module.trainer.optimizers for group in one.param_groups]
    # One that is a tensor may be on a GPU, which would have to be waited for.
    return [group["lr"] for group in groups if isinstance(group.get("lr"), float)]
