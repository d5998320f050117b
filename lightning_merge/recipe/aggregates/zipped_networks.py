"""ZipIt! as a recipe's aggregate: two networks as one, or with one trunk."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from lightning_merge.aggregate.inputs import is_numeric
from lightning_merge.align.zipping.two_heads import TwoHeads
from lightning_merge.align.zipping.zip_networks import check_shares, zip_it
from lightning_merge.checkpoint import StateDict, tensors_of
from lightning_merge.errors import ConfigError
from lightning_merge.modules.zipped import ZippedModule
from lightning_merge.recipe.aggregate import Aggregate, Merged, aggregates
from lightning_merge.recipe.aligning import spec_of
from lightning_merge.recipe.context import Context

_PAPER = "Stoica et al. 2024, ZipIt! Merging Models from Different Tasks without Training"


class _Zip(Aggregate):
    fits_any_count = False
    """Two alone."""

    until: str | None = None

    def __init__(self, alpha: float = 0.3, beta: float = 0.125) -> None:
        check_shares(alpha, beta)
        self.alpha, self.beta = alpha, beta

    def check(self, context: Context) -> None:
        """Checks that the networks are not bodies of several tasks."""
        if context.several_tasks:
            raise ConfigError(
                f"{type(self).__name__}: bodies of several tasks keep the order that their heads "
                "read; zip whole networks, in `merge`, `compare` or `study`"
            )

    def check_count(self, count: int) -> None:
        """Checks that there are two ingredients."""
        if count != 2:
            raise ConfigError(f"{type(self).__name__}: zips two networks, not {count}")

    def _zipped(self, states: Sequence[StateDict], context: Context) -> nn.Module:
        self.check_count(len(states))
        batches = context.statistics()
        one, other = (context.build(state).to(context.device).eval() for state in states)
        with torch.no_grad():
            return zip_it(
                spec_of(context, one, batches),
                one,
                other,
                batches,
                self.until,
                alpha=self.alpha,
                beta=self.beta,
                progress=context.progress,
            )


@aggregates.register(paper=_PAPER, needs="training images, unlabelled")
class ZipIt(_Zip):
    """Units of two networks that respond alike, merged across and within the networks.

    It aligns by itself: leave `align` out. Add `recalibrate: batchnorm`.

    Args:
        alpha: By what the correlation of units that were merged already is multiplied; 0 makes
            pairs alone.
        beta: The share of a network's merges that may be within it, from 0 to 1.
    """

    label = "ZipIt!"

    def __call__(self, states: Sequence[StateDict], context: Context) -> Merged:
        """A module with the zipped weights."""
        if context.joins_heads:
            # Heads that are to be joined are still apart in the ingredients as they were given.
            own = context.states
        else:
            # A head of the first one reads the first one's units, not those of the second.
            nothing = {name: torch.zeros_like(states[1][name]) for name in context.heads}
            own = [states[0], {**states[1], **nothing}]
        merged = tensors_of(self._zipped(own, context).state_dict())
        # Of a mean of rows of which all but one are 0.
        heads: dict[str, Any] = {
            name: merged[name] * 2 for name in context.heads if is_numeric(merged[name])
        }
        state = {name: value.cpu() for name, value in {**merged, **heads}.items()}
        return Merged(context.build(state))


@aggregates.register(paper=_PAPER, needs="training images, unlabelled")
class PartialZipIt(_Zip):
    """Two networks zipped up to a layer; behind it both go on, and their logits are averaged.

    It costs as much as one network up to that layer and as two behind it.

    Args:
        until: The layer or block, by its name in the network, or by the end of that.
        alpha: As for `ZipIt`.
        beta: As for `ZipIt`.
    """

    label = "PartialZipIt!"
    is_ensemble = True

    def __init__(self, until: str, alpha: float = 0.3, beta: float = 0.125) -> None:
        super().__init__(alpha, beta)
        self.until = until

    def check(self, context: Context) -> None:
        """Checks that each network has a head for its own units."""
        super().check(context)
        if context.heads and not context.joins_heads:
            raise ConfigError(
                "PartialZipIt: behind the trunk each network goes on in its own order, which the "
                "first one's head cannot read: use ZipIt, or `--heads join`"
            )

    def __call__(self, states: Sequence[StateDict], context: Context) -> Merged:
        """A module with one trunk and both heads."""
        own = context.states if context.joins_heads else states
        zipped = self._zipped(own, context)
        assert isinstance(zipped, TwoHeads)
        return Merged(ZippedModule(zipped))
