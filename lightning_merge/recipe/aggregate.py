"""The contract of every way of aggregating: aligned ingredients and a context, one module."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

from lightning.pytorch import LightningModule

from lightning_merge.checkpoint import StateDict
from lightning_merge.recipe.choice import Choice
from lightning_merge.registry import Registry

if TYPE_CHECKING:
    from lightning_merge.recipe.context import Context
    from lightning_merge.recipe.recalibration import Recalibration


@dataclass(frozen=True)
class Merged:
    """The result of an aggregate, or of a whole recipe.

    Attributes:
        module: A module that `Trainer.test` takes.
        choices: What was chosen on held-out data.
        labelled_examples: How many labelled examples it was made with; 0 for none.
        seconds: Of a recipe, what making the module took. Of an aggregate, only what it would
            have taken longer without the cache: its own time is measured from outside.
        for_tasks: Of several tasks, the networks of those that have more than the merged body
            under their heads.
    """

    module: LightningModule
    choices: tuple[Choice, ...] = ()
    labelled_examples: int = 0
    seconds: float = 0.0
    for_tasks: Mapping[str, LightningModule] = field(default_factory=dict)

    def labelled_with(self, held_out: int) -> int:
        """How many labelled examples it was made with, those held out included.

        Args:
            held_out: How many of them a step in front of it has looked at, too.
        """
        counted = any(choice.looked for choice in self.choices)
        return max(self.labelled_examples, held_out + (0 if counted else self.labelled_examples))


class Aggregate(ABC):
    """Makes a module from aligned ingredients; changes neither them nor the context.

    Attributes:
        label: What figures and stored results call this kind; a subclass has that of its base.
        learns: Whether it takes gradients on labelled training data.
        from_pretrained: Whether it goes from the network that the ingredients were fine-tuned
            from: they are then in its order, and not to be aligned.
        is_ensemble: Whether the result is several networks at inference, whose weights cannot be
            stored as one.
        corrects_tasks: Whether tasks have networks of their own beside the merged body.
        combines: What an ensemble of whole networks averages, `logits` or `features` (before
            the last layer); None for anything else. Such an aggregate has `members`.
        start: How the mean that it goes from is recalibrated first; None if it is not.
    """

    label: ClassVar[str] = ""
    learns: ClassVar[bool] = False
    from_pretrained: ClassVar[bool] = False
    is_ensemble: ClassVar[bool] = False
    corrects_tasks: ClassVar[bool] = False
    combines: ClassVar[Literal["logits", "features"] | None] = None
    start: "Recalibration | None" = None

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if not cls.label:
            cls.label = cls.__name__

    def check(self, context: "Context") -> None:
        """Checks that the context has what is needed, before anything is computed.

        Raises:
            ConfigError: If it has not.
        """
        del context

    def check_count(self, count: int) -> None:
        """Checks that so many ingredients can be combined, before anything is computed.

        Raises:
            ConfigError: If they cannot.
        """
        del count

    def weights_of_mean(self, count: int) -> Sequence[float] | None:
        """The ingredients' shares where the result is their weighted mean; None where it is not."""
        del count
        return None

    @property
    def fits_any_count(self) -> bool:
        """Whether it can be used on a subset of the ingredients that it was configured for."""
        return True

    @abstractmethod
    def __call__(self, states: Sequence[StateDict], context: "Context") -> Merged:
        """Makes the module.

        Args:
            states: The aligned ingredients, state dicts with the names of `context.module`.
            context: Architecture, data, Trainer, seed, recalibration, and the ingredients as
                they were given.

        Raises:
            MergeError: If the ingredients or the data do not suit.
        """


aggregates: Registry[type[Aggregate]] = Registry("aggregates", "lightning_merge.recipe.aggregates")
