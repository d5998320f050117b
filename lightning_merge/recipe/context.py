"""The frozen context of a recipe: trained networks of one architecture, and the data."""

import copy
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self, TypeVar

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from torch import Tensor

from lightning_merge.aggregate.heads import join_heads
from lightning_merge.align import Matching
from lightning_merge.batches import needed_arguments
from lightning_merge.checkpoint import StateDict, check_ingredients, digest
from lightning_merge.errors import ConfigError
from lightning_merge.loaders import Transferred, statistics_batches_of
from lightning_merge.modules.module_state import load
from lightning_merge.recalibrate import reset_batchnorm
from lightning_merge.recipe.cache import Cache, Cached
from lightning_merge.recipe.held_out import HeldOut, check_validation
from lightning_merge.recipe.kept import Keep

if TYPE_CHECKING:
    from lightning_merge.recipe.recalibration import Recalibration

T = TypeVar("T")


@dataclass(frozen=True)
class Context:
    """The ingredients of a merge, and all that making and testing it depends on.

    Nothing in it changes: steps return their findings, and what is worth keeping goes into the
    cache, whose content changes no result.

    Attributes:
        module: A LightningModule of the ingredients' class; its weights do not matter.
        states: The ingredients' state dicts, as they were given.
        names: What to call them.
        data: The data module; its training part is what data-driven merges learn from.
        trainer: Makes a Trainer; takes keyword arguments that override its settings.
        seed: Seeds whatever a merge draws.
        progress: Whether to show progress bars.
        statistics_examples: How many training examples, drawn at random by the seed, are used
            wherever statistics are read: activations, BatchNorm, REPAIR; None for all.
        heads: The names of tensors that are the first ingredient's in every one, where they
            are of different tasks (`share_head`); aligning leaves them as they are.
        joins_heads: Whether `heads` are rather parts of one head of all classes, of which each
            ingredient has its own rows (`pad_heads`): aligned along, then put side by side.
        pretrained: What all ingredients were trained from, where that is known.
        recalibration: How the result is going to be recalibrated: a search tries its candidates
            in that state. A recipe sets it.
        recipe: The name of the recipe that is run, for messages.
        given_digests: The SHA-256 of each ingredient's file content, where that is another than
            that of its state dict (a shared head); None for those of the state dicts.
        cache: What recipes on the same ingredients share.
        keep: Keeps alignments beyond this process; None where that is not wanted.

    Raises:
        MergeError: If the ingredients are fewer than two, differ in architecture or contain NaN,
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
    heads: Sequence[str] = ()
    joins_heads: bool = False
    pretrained: StateDict | None = None
    recalibration: "Recalibration | None" = None
    recipe: str = ""
    given_digests: Sequence[str] | None = None
    cache: Cache = field(default_factory=Cache)
    keep: Keep | None = None

    def __post_init__(self) -> None:
        check_statistics_examples(self.statistics_examples)
        check_ingredients(self.states, self.names)
        self.data.prepare_data()
        self.data.setup("fit")
        self.data.setup("test")

    @cached_property
    def digests(self) -> list[str]:
        """The SHA-256 of each ingredient."""
        return list(self.given_digests or map(digest, self.states))

    @cached_property
    def device(self) -> torch.device:
        """Where the Trainer computes."""
        return self.trainer().strategy.root_device

    @property
    def several_tasks(self) -> bool:
        """Whether the ingredients are of several tasks, each with a head of its own."""
        return False

    def of(self, indices: Sequence[int]) -> Self:
        """The context of some of the ingredients."""
        states, names, digests = (
            [values[index] for index in indices]
            for values in (self.states, self.names, self.digests)
        )
        return self._changed(states=states, names=names, digests=digests, given_digests=digests)

    def first(self, count: int) -> Self:
        """The context of the first `count` ingredients."""
        return self if count == len(self.states) else self.of(range(count))

    def recalibrated_by(self, recalibration: "Recalibration | None", recipe: str) -> Self:
        """The context of a recipe, by name, that ends with a recalibration."""
        return self._changed(recalibration=recalibration, recipe=recipe)

    def under_all_heads(self, states: Sequence[StateDict]) -> Sequence[StateDict]:
        """Ingredients, aligned, each with the heads of all where those are to be joined."""
        return join_heads(states, self.heads) if self.joins_heads else states

    def build(self, state: Mapping[str, Tensor]) -> LightningModule:
        """A new module with the weights `state`."""
        module = copy.deepcopy(self.module)
        load(module, state)
        return module

    def recall(self, key: tuple[Hashable, ...], compute: Callable[[], T]) -> Cached[T]:
        """What is cached under a key for these data, this seed and as many statistics."""
        return self.cache.get((self.data, self.seed, self.statistics_examples, *key), compute)

    def statistics(self, *, augmented: bool = False) -> Transferred:
        """Training batches on the device, without augmentation if the data module offers it.

        Args:
            augmented: Whether to read them as they are augmented for training all the same.

        Raises:
            ConfigError: If the module's `forward` takes more than a batch's first item.
        """
        check_one_input(self.module, self.recipe)
        return statistics_batches_of(
            self.data,
            self.module,
            self.device,
            self.statistics_examples,
            self.seed,
            augmented=augmented,
        )

    def own(self, name: str, state: StateDict) -> tuple[LightningModule, Transferred]:
        """An ingredient's network with the data that it was trained for: (module, batches)."""
        del name
        return self.build(state), self.statistics()

    def held_out(self) -> HeldOut:
        """The validation data.

        Raises:
            ConfigError: If there are none in one loader.
        """
        return HeldOut(self)

    def reset_batchnorm(self, module: LightningModule, *, augmented: bool = False) -> int:
        """Resets a module's BatchNorm on the training images; returns how many layers it has."""
        batches = self.statistics(augmented=augmented)
        return reset_batchnorm(module.to(self.device), batches, self.progress, seed=self.seed)

    def check_matching(self, matching: Matching | None) -> None:
        """Checks that the data can give what a matching needs, before anything is computed.

        Raises:
            ConfigError: If it chooses by held-out examples, and there are none.
        """
        if matching is not None and matching.chooses:
            check_validation(self.data, type(matching).__name__)

    def _changed(self, **changes: Any) -> Self:
        # Not `replace`: what was checked and set up once needs no second time.
        made = copy.copy(self)
        made.__dict__.update(changes)
        return made


def check_one_input(module: LightningModule, recipe: str) -> None:
    """Checks that a network can be run, by a recipe, on a batch's first item alone."""
    needed = needed_arguments(module)
    if len(needed) > 1:
        raise ConfigError(
            f"recipe '{recipe}': {type(module).__name__}.forward takes {', '.join(needed)}, and "
            "aligning, recalibrating and whatever else reads the data by itself give it a batch's "
            "first item alone: leave those out (Average, NPMerge, FineTune and LogitsEnsemble go "
            "without), or let it take all in one item"
        )


def check_statistics_examples(examples: int | None) -> None:
    """Checks that there is something to read statistics from; a `ConfigError` if not."""
    if examples is not None and examples < 2:
        raise ConfigError(f"statistics_examples is {examples}: choose 2 or more, or none for all")
