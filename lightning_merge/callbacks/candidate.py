"""Validating weights beside a run that is under way, by the module's own validation."""

import copy
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from lightning.pytorch.utilities.data import extract_batch_size
from lightning.pytorch.utilities.seed import isolate_rng
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
)
from torchmetrics import Metric

from lightning_merge.checkpoint import StateDict
from lightning_merge.distributed import gather_over_ranks, rank_batches, ranks
from lightning_merge.errors import ConfigError, one_line
from lightning_merge.loaders import Transferred, statistics_share
from lightning_merge.modules.module_state import put
from lightning_merge.randomness import kept_generators
from lightning_merge.recalibrate import reset_batchnorm
from lightning_merge.reloading import with_batches
from lightning_merge.tensor_table import check_free

_WHOLE = (SequentialSampler, RandomSampler, DistributedSampler)
_LOG = inspect.signature(LightningModule.log)


def check_soups(name: str, trainer: Trainer, module: LightningModule) -> None:
    """Refuses weights that follow from alphas, are divided among devices, or are not free."""
    if callable(getattr(module, "alphas", None)):
        raise ConfigError(
            f"{name}: the weights of {type(module).__name__} follow from its alphas and cannot be "
            "averaged; use it where the ingredients are trained"
        )
    if not isinstance(trainer.strategy, (SingleDeviceStrategy, DDPStrategy)):
        raise ConfigError(
            f"{name}: {type(trainer.strategy).__name__} divides or spreads the weights; choose one "
            "device, or strategy ddp"
        )
    # Now, and not when the run has ended.
    check_free(module.state_dict())


def copy_of(module: LightningModule) -> LightningModule:
    """A copy of a module in the midst of its training, neither compiled nor with a Trainer."""
    compiled = getattr(module, "_compiler_ctx", None)
    try:
        copied = copy.deepcopy(module, {} if compiled is None else {id(compiled): None})
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"{type(module).__name__} cannot be copied, as soups need it ({one_line(error)}): keep "
            "no tensors with gradients as its attributes, and run lazy layers once"
        ) from error
    if compiled is not None:
        # Compiled methods belong to the module that they were compiled for.
        for name in ("forward", "training_step", "validation_step", "test_step", "predict_step"):
            copied.__dict__.pop(name, None)
    return copied


class CandidateValidation:
    """Validates weights in copies of a module; module, Trainer and random numbers stay as is.

    The copy goes through its own `validation_step` and validation hooks, on the Trainer's
    validation data, device and precision. Callbacks and loggers notice nothing of it. Under
    DDP every example is counted once, and what is logged is reduced over all ranks, weighted
    by batch size, whether or not the module wants it (`sync_dist`). All ranks must call it.

    The module is between two validations: the copies begin in the state in which it is now.
    `monitor` is the name of the metric, as the module logs it.
    """

    def __init__(self, trainer: Trainer, module: LightningModule, monitor: str) -> None:
        self.trainer = trainer
        self.monitor = monitor
        self.template = copy_of(module)

    def build(self, state: Mapping[str, Tensor], reset: bool = False) -> LightningModule:
        """A copy with these weights, its BatchNorm statistics reset if wanted."""
        module = copy.deepcopy(self.template)
        put(module, state)
        module.trainer = self.trainer
        _log_to(module, _Monitored(self.monitor))
        if reset:
            with isolate_rng(), _silent(self.trainer):
                reset_batchnorm(module, statistics_share(self.trainer, module=module))
        return module

    def __call__(self, state: StateDict, reset: bool = False) -> float:
        """The monitored metric of these weights, after a reset if wanted, alike on every rank."""
        module = self.build(state, reset)
        logged = _Monitored(self.monitor)
        _log_to(module, logged)
        module.eval()
        precision = self.trainer.precision_plugin
        with isolate_rng(), torch.no_grad(), _silent(self.trainer), precision.val_step_context():
            _validate(self.trainer, module, logged)
        return self.trainer.strategy.broadcast(logged.score())


class _Monitored:
    """Stands in for `LightningModule.log`, and keeps what is logged under one name."""

    def __init__(self, monitor: str) -> None:
        self.monitor = monitor
        self.seen: set[str] = set()
        self.values: list[tuple[float, float]] = []
        self.metric: Metric | None = None
        self.reduce: Any = "mean"
        self.batch_size = 1
        self.suffix = ""

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        call = _LOG.bind(None, *args, **kwargs)
        call.apply_defaults()
        given = call.arguments
        name = given["name"] + (self.suffix if given["add_dataloader_idx"] else "")
        self.seen.add(name)
        if self.monitor not in (name, f"{name}_epoch") or given["on_epoch"] is False:
            return
        value = given["value"]
        if isinstance(value, Metric):
            self.metric = value
        else:
            self.values.append((float(value), float(given["batch_size"] or self.batch_size)))
            self.reduce = given["reduce_fx"]

    def score(self) -> float:
        if self.metric is not None:
            return float(self.metric.compute())
        logged = [pair for values in gather_over_ranks(self.values) for pair in values]
        if not logged:
            raise ConfigError(
                f"'{self.monitor}' is not logged in validation; monitor one of "
                f"{', '.join(sorted(self.seen)) or 'those that validation_step logs'}"
            )
        values, sizes = torch.tensor(logged, dtype=torch.float64).T
        kind = getattr(self.reduce, "__name__", self.reduce)
        if kind == "mean":
            return float((values * sizes).sum() / sizes.sum())
        reduce = getattr(torch, kind) if kind in ("sum", "min", "max") else self.reduce
        return float(reduce(values))


def _log_to(module: LightningModule, log: _Monitored) -> None:
    for part in module.modules():
        if isinstance(part, LightningModule):
            part.__dict__["log"] = log


def _validate(trainer: Trainer, module: LightningModule, logged: _Monitored) -> None:
    loaders = _loaders(trainer)
    data = getattr(trainer, "datamodule", None)
    convert = trainer.precision_plugin.convert_input
    step: Any = module.validation_step
    numbered = is_param_in_hook_signature(step, "batch_idx", min_args=2)
    module.on_validation_start()
    module.on_validation_epoch_start()
    for index, loader in enumerate(loaders):
        logged.suffix = f"/dataloader_idx_{index}" if len(loaders) > 1 else ""
        batches = Transferred(loader, module, data, trainer.strategy.root_device, convert)
        for number, batch in enumerate(batches):
            logged.batch_size = extract_batch_size(batch)
            args = [batch, *([number] if numbered else []), *([index] if len(loaders) > 1 else [])]
            module.on_validation_batch_start(batch, number, index)
            outputs = step(*args)
            module.on_validation_batch_end(outputs, batch, number, index)
    logged.suffix, logged.batch_size = "", 1
    module.on_validation_epoch_end()


def _loaders(trainer: Trainer) -> list[Any]:
    """The validation batches that this rank is to see."""
    validates = trainer.state.fn == "validate"
    loop = trainer.validate_loop if validates else trainer.fit_loop.epoch_loop.val_loop
    given = loop._combined_loader
    if given is None:
        raise ConfigError(
            "soups are validated, and no validation has taken place: lower check_val_every_n_epoch"
        )
    limits = trainer.num_val_batches
    if loop._is_sequential:
        return [_divided(one, limit) for one, limit in zip(given.flattened, limits, strict=True)]
    if ranks()[1] > 1:
        raise _undivided()
    return [_combined(given, limits)]


def _divided(loader: Any, limit: float) -> Any:
    count = ranks()[1]
    if (
        isinstance(loader, DataLoader)
        and not isinstance(loader.dataset, IterableDataset)
        and type(loader.batch_sampler) is BatchSampler
        and type(loader.sampler) in _WHOLE
    ):
        everything: int = len(loader.dataset)  # type: ignore[arg-type]
        size: int = loader.batch_sampler.batch_size
        examples = everything
        if type(loader.sampler) is RandomSampler:
            examples = min(everything, len(loader.sampler))
        examples = int(min(examples, limit * size * count))
        batches = rank_batches(examples, size)
        if examples < everything and type(loader.sampler) is RandomSampler:
            # A part drawn at random, the same for all: the first ones may be of one class.
            drawn = torch.randperm(everything, generator=torch.Generator().manual_seed(0)).tolist()
            batches = [[drawn[place] for place in batch] for batch in batches]
        return with_batches(loader, batches)
    if count > 1:
        raise _undivided()
    return _untouched(loader, limit)


def _undivided() -> ConfigError:
    return ConfigError(
        "the validation data cannot be divided among the ranks so that each example counts "
        "once: give a DataLoader over an indexed data set, without a sampler of its own"
    )


def _combined(given: CombinedLoader, limits: list[int | float]) -> Iterator[Any]:
    """Batches that are made of a batch of each of several loaders."""
    limit = (min if given._mode == "min_size" else max)(limits)
    with kept_generators(*given.flattened):
        own = CombinedLoader(given.iterables, given._mode)
        for batch, _, _ in islice(own, None if limit == float("inf") else int(limit)):
            yield batch


def _untouched(loader: Any, limit: float) -> Iterator[Any]:
    """Batches of a loader whose own random generators do not notice it."""
    with kept_generators(loader):
        yield from islice(loader, None if limit == float("inf") else int(limit))


@contextmanager
def _silent(trainer: Trainer) -> Iterator[None]:
    """Without the loggers that a module may write to by itself."""
    loggers = trainer.loggers
    trainer.loggers = [DummyLogger() for _ in loggers]
    try:
        yield
    finally:
        trainer.loggers = loggers
