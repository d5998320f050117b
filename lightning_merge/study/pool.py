"""The ingredients of a merge, with what is needed to align, train and test them."""

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeGuard

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from torch import Tensor

from lightning_merge.align import CCAMatching, Matching, PermutationSpec
from lightning_merge.checkpoint import StateDict, check_ingredients, digest
from lightning_merge.errors import ConfigError
from lightning_merge.loaders import Transferred, example_inputs, statistics_batches_of
from lightning_merge.recalibrate import reset_batchnorm
from lightning_merge.study.choice import Choice
from lightning_merge.study.gamma import GammaChoice, check_held_out, choose_gamma


@dataclass
class Aligned:
    """One ingredient, aligned to the first one.

    Attributes:
        state: Its state dict.
        seconds: What aligning it took.
        choice: What was chosen on the way, on validation data.
    """

    state: StateDict
    seconds: float = 0.0
    choice: GammaChoice | None = None


@dataclass
class Pool:
    """Trained networks of one architecture, and the data to merge and to test them on.

    Attributes:
        module: A LightningModule of the ingredients' class; its weights do not matter.
        states: The ingredients' state dicts.
        names: What to call them.
        data: The data module; its training part is what data-driven merges learn from.
        trainer: Makes a Trainer; takes keyword arguments that override its settings.
        seed: Seeds whatever a merge draws.
        progress: Whether to show progress bars.
        statistics_examples: How many training examples, drawn at random by the seed, are used
            wherever statistics are read: activations, BatchNorm, REPAIR; None for all.
        learned_from: How many labelled examples the last merge has learned from.
        heads: The names of tensors that are the first ingredient's in every one, where they
            are of different tasks (`share_head`); aligning leaves them as they are.
        pretrained: What all ingredients were trained from, where that is known: a study's start.
        selected: What the last merge has chosen on validation data, beside its alignment.
        searches: What greedy searches of this pool have found.
        reused_seconds: What the last merge would have taken longer without an earlier search.

    Raises:
        MergeError: If the ingredients are fewer than two, differ in architecture or hold NaN,
            or if `statistics_examples` are none.
    """

    module: LightningModule
    states: Sequence[StateDict]
    names: Sequence[str]
    data: LightningDataModule
    trainer: Callable[..., Trainer]
    seed: int = 0
    progress: bool = True
    statistics_examples: int | None = None
    learned_from: int = 0
    heads: Sequence[str] = ()
    pretrained: StateDict | None = None
    selected: list[Choice] = field(default_factory=list)
    searches: dict[Any, Any] = field(default_factory=dict)
    reused_seconds: float = 0.0
    _aligned: dict[str, list[Aligned]] = field(default_factory=dict)
    _spec: PermutationSpec | None = None
    _whole: "Pool | None" = None

    def __post_init__(self) -> None:
        check_statistics_examples(self.statistics_examples)
        check_ingredients(self.states, self.names)
        self.data.prepare_data()
        self.data.setup("fit")
        self.data.setup("test")

    @cached_property
    def digests(self) -> list[str]:
        """The SHA-256 of each ingredient."""
        return [digest(state) for state in self.states]

    def first(self, count: int) -> "Pool":
        """The pool of the first `count` ingredients; both share what either aligns or searches."""
        if count == len(self.states):
            return self
        smaller = copy.copy(self)
        smaller.states, smaller.names = self.states[:count], self.names[:count]
        smaller.digests = self.digests[:count]
        smaller._whole = self._whole or self
        return smaller

    def build(self, state: Mapping[str, Tensor]) -> LightningModule:
        """A new module with the weights `state`."""
        module = copy.deepcopy(self.module)
        module.load_state_dict(state)
        return module

    def statistics(self) -> Transferred:
        """Training batches on the device, without augmentation if the data module offers it."""
        return statistics_batches_of(
            self.data, self.module, self.device, self.statistics_examples, self.seed
        )

    @cached_property
    def device(self) -> torch.device:
        """Where the Trainer computes."""
        return self.trainer().strategy.root_device

    def reset_batchnorm(self, module: LightningModule) -> int:
        """Resets a module's BatchNorm on the training images; says how many layers it has."""
        return reset_batchnorm(module.to(self.device), self.statistics(), self.progress)

    def align(self, matching: Matching | None) -> tuple[list[StateDict], float]:
        """The ingredients, each aligned to the first one.

        Args:
            matching: How; None leaves them as they are. Asked a second time for the same
                matching, it gives the first answer.

        Returns:
            The aligned state dicts, and the seconds that aligning them took.
        """
        found = self._alignment(matching)
        return [one.state for one in found], sum(one.seconds for one in found)

    def check(self, matching: Matching | None) -> None:
        """Checks that the data can give what a matching needs, before anything is computed.

        Raises:
            ConfigError: If CCA's gamma is to be chosen, and nothing is held out to do it by.
        """
        if _chooses(matching):
            check_held_out(self.data)

    def choices(self, matching: Matching | None) -> list[GammaChoice]:
        """What an alignment has chosen on validation data: CCA's gamma, where it was not given."""
        return [one.choice for one in self._alignment(matching) if one.choice is not None]

    def _alignment(self, matching: Matching | None) -> list[Aligned]:
        count = len(self.states)
        if matching is None:
            return [Aligned(state) for state in self.states]
        kind = type(matching)
        key = f"{kind.__module__}.{kind.__qualname__} {sorted(vars(matching).items())}"
        # Each is aligned to the first alone, so that more ingredients change none of the others.
        found = self._aligned.setdefault(key, [])
        if len(found) < count:
            start = time.perf_counter()
            for one in (self._whole or self)._align(matching, range(len(found), count)):
                one.seconds = time.perf_counter() - start
                found.append(one)
                start = time.perf_counter()
        return found[:count]

    def _align(self, matching: Matching, which: range) -> Iterator[Aligned]:
        self.check(matching)
        device = self.device
        first = self.build(self.states[0]).to(device).eval()
        batches = self.statistics()
        if self._spec is None:
            self._spec = PermutationSpec.from_model(first, example_inputs(batches, device))
        for index in which:
            if index == 0:
                yield Aligned(dict(self.states[0]))
                continue
            state, name, choice = self.states[index], self.names[index], None
            # A head of another task must not say which units correspond.
            headless = {**state, **{head: torch.zeros_like(state[head]) for head in self.heads}}
            pair = self._spec, first, self.build(headless).to(device).eval(), batches
            with torch.no_grad():
                if _chooses(matching):
                    observed = matching.observe(*pair, progress=self.progress)
                    found, choice = choose_gamma(
                        observed, matching.candidates, self.states[0], name, self
                    )
                else:
                    found = matching.align(*pair, progress=self.progress)
            aligned = {name: value.cpu() for name, value in found.items()}
            heads = {head: self.states[0][head] for head in self.heads}
            yield Aligned({**aligned, **heads}, choice=choice)


def _chooses(matching: Matching | None) -> TypeGuard[CCAMatching]:
    return isinstance(matching, CCAMatching) and matching.gamma is None


def check_statistics_examples(examples: int | None) -> None:
    """Checks that there is something to read statistics from.

    Raises:
        ConfigError: If not.
    """
    if examples is not None and examples < 2:
        raise ConfigError(f"statistics_examples is {examples}: choose 2 or more, or none for all")
