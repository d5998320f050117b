"""BatchNorm reset: the statistics of a merged network, estimated anew.

Source: Jordan et al. 2023, "REPAIR: REnormalizing Permuted Activations for Interpolation
Repair"; NP Merge, Sec. IV-A.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.parameter import is_lazy

from lightning_merge.batches import inputs_in, to_device_of
from lightning_merge.distributed import Share, ranks, sum_over_ranks
from lightning_merge.errors import ConfigError, DataError, MergeError, NonFiniteError
from lightning_merge.modes import as_written, evaluation
from lightning_merge.orders import in_random_order
from lightning_merge.progress import tracked
from lightning_merge.randomness import isolated_randomness
from lightning_merge.recalibrate.observed import Norm, Observed, ObservedInstances, observing
from lightning_merge.recalibrate.other_norms import OtherNorm, own_statistics
from lightning_merge.recalibrate.pooled import pool_over_ranks
from lightning_merge.watched_layers import check_watchable

Weighting = Literal["examples", "batches"]
Call = Callable[[Any, Any], Any]

# What a network raises that wants something else than a batch's input.
_MISFITS = (NotImplementedError, TypeError, ValueError, LookupError, AttributeError)


@torch.no_grad()
def reset_batchnorm(
    model: nn.Module,
    batches: Iterable[Any],
    progress: bool = False,
    *,
    weighting: Weighting = "examples",
    seed: int = 0,
    call: Call | None = None,
) -> int:
    """Sets the running statistics of every norm that keeps some to those of `batches`.

    Merged networks carry statistics that neither ingredient had; estimating them anew
    undoes the variance collapse. In one pass every norm normalises by its batch's own
    statistics, as in training. Its running mean and variance become those of all values that
    it was given, pooled exactly in float64: each batch counts with the number of its values,
    and how the examples are divided into batches changes nothing at the first norm and
    little behind it. The variance is the unbiased one, over n - 1 of all n values.

    The rest of the network is in eval mode (dropout stays off); modes, momenta, gradients and
    the states of all random generators are as before afterwards. `num_batches_tracked` is
    the number of batches that a norm was given; one that is used twice counts, and pools, both
    uses. Norms that the network did not run keep what they have. Subclasses are reset like
    plain ones; SyncBatchNorm's, too, do not mix the batches of ranks. An InstanceNorm that tracks
    statistics gets the mean over all instances of their means and of their unbiased variances.
    Another layer with `running_mean`, `running_var` (or `moving_`) that takes a share of each
    batch's (timm's EvoNorm, one written by hand) gets the mean of what its own code finds in the
    batches, each counting with its examples; one that updates them otherwise stays, with a warning.

    Args:
        model: A network that takes one input; changed in place.
        batches: What a data loader gives: tensors, tuples or lists whose first item is the
            input, or dicts with `image`, `x` or `input`. Moved to the model's device. A
            `DataLoader` over an indexed data set is read in random order, whatever its own is:
            batches of one class each would have that class normalised away; see
            `in_random_order`. A `Share` holds those of this rank: statistics are pooled over all
            ranks, as a single process would (relative 1e-5 in float32).
        progress: Whether to show a progress bar.
        weighting: `examples`, or `batches` for torch's way (`update_bn`, and training with
            `momentum=None`): the means and unbiased variances of the batches are
            averaged, each with equal weight.
        seed: Determines the order.
        call: How the network is run where it takes something else than the input:
            `call(model, batch)`, with the batch as the loader gives it.

    Returns:
        How many layers were reset; 0 (and `batches` is left unread) if none keeps statistics.

    Raises:
        DataError: If there are no batches, or a norm is given single values only, which have
            no variance.
        NonFiniteError: If a norm is given NaN or infinity; it is named. Then, and after any
            other error, the statistics are what they were.
        ConfigError: If the network does not take a batch's input, or is TorchScript.
    """
    if weighting not in ("examples", "batches"):
        raise ConfigError(f"weighting is {weighting!r}: choose 'examples' or 'batches'")
    check_watchable(model, "running_mean")
    layers = {name: layer for name, layer in model.named_modules() if tracks(layer)}
    if not layers:
        return 0
    pooled = weighting == "examples"
    observed = [_observer(layer)(layer, pooled) for layer in layers.values()]
    batches = in_random_order(batches, seed)
    copies = batches.copies if isinstance(batches, Share) else 1
    inputs = batches if call else _Inputs(batches, join=pooled)
    seen = 0
    with ExitStack() as stack:
        stack.enter_context(isolated_randomness())
        stack.enter_context(evaluation(model))
        for one in observed:
            stack.enter_context(observing(one))
        for given in tracked(inputs, "BatchNorm reset", progress):
            with as_written():
                _run(model, given, call, first=not seen)
            seen += 1
        if isinstance(batches, Share):
            seen = _over_ranks(observed, seen)
        if not seen:
            raise DataError("BatchNorm reset: there are no batches; give a loader that has some")
        found = [one for one in observed if one.calls and not one.unclear]
        new = [(one, *one.statistics(copies)) for one in found]
        for name, one in zip(layers, observed, strict=True):
            if not one.is_finite():
                raise NonFiniteError(
                    f"BatchNorm reset: norm '{name}' was given NaN or infinity; look for it in the "
                    "images and in the network's weights"
                )
            if isinstance(one, OtherNorm) and one.unclear:
                warnings.warn(
                    f"BatchNorm reset: {', '.join(one.names)} of '{name}' "
                    f"({type(one.layer).__name__}) stay as they are, for it does not update them "
                    "by a share of each batch: estimate them yourself",
                    stacklevel=2,
                )
    for one, mean, variance, count in new:
        one.write(mean, variance, count)
    return len(new)


def tracks(layer: nn.Module) -> bool:
    """Whether a layer is a norm with running statistics."""
    return _is_torchs(layer) or bool(own_statistics(layer))


def _observer(layer: nn.Module) -> Callable[[Any, bool], Observed]:
    if not isinstance(layer, Norm):
        return OtherNorm
    return ObservedInstances if isinstance(layer, _InstanceNorm) else Observed


def _is_torchs(layer: nn.Module) -> bool:
    return (
        isinstance(layer, Norm)
        and layer.track_running_stats
        and isinstance(layer.running_mean, Tensor)
        and not is_lazy(layer.running_mean)
    )


def _run(model: nn.Module, given: Any, call: Call | None, first: bool) -> None:
    try:
        if call is None:
            model(to_device_of(model, given))
        else:
            call(model, given)
    except MergeError:
        raise
    except _MISFITS as error:
        if call is not None or not first:
            raise
        text = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"{type(model).__name__} does not run on a batch's input ({text}): say how it does, "
            "reset_batchnorm(..., call=lambda model, batch: ...)"
        ) from error


def _over_ranks(observed: list[Observed], seen: int) -> int:
    if ranks()[1] == 1:
        return seen
    pool_over_ranks([one.pool for one in observed])
    own = [(one.calls, one.unclear) for one in observed]
    counts = torch.tensor([(seen, 0), *own], device=observed[0].device)
    (total, _), *sums = sum_over_ranks([counts])[0].tolist()
    for one, (calls, unclear) in zip(observed, sums, strict=True):
        one.calls, one.unclear = int(calls), bool(unclear)
    return int(total)


class _Inputs:
    """The inputs of batches; a single example is joined to the next ones, or the last ones.

    A norm at positions of one pixel could not normalise it alone.
    """

    def __init__(self, batches: Iterable[Any], join: bool) -> None:
        self.batches, self.join = batches, join

    def __len__(self) -> int:
        return len(self.batches)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Tensor]:
        if not self.join:
            yield from self._read()
            return
        ready: Tensor | None = None
        single: Tensor | None = None
        for inputs in self._read():
            if single is not None:
                if _fit(single, inputs):
                    inputs = torch.cat([single, inputs])
                else:
                    yield single
                single = None
            if len(inputs) == 1:
                single = inputs
                continue
            if ready is not None:
                yield ready
            ready = inputs
        if ready is not None and single is not None and _fit(ready, single):
            ready, single = torch.cat([ready, single]), None
        yield from (one for one in (ready, single) if one is not None)

    def _read(self) -> Iterator[Tensor]:
        for batch in self.batches:
            # Errors of the loader itself are its own.
            try:
                yield from inputs_in([batch])
            except DataError as error:
                raise DataError(f"{error}; or give reset_batchnorm a call") from error


def _fit(one: Tensor, other: Tensor) -> bool:
    return one.shape[1:] == other.shape[1:] and one.dtype == other.dtype
