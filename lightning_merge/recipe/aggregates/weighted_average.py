"""The average of all ingredients: the uniform soup, and weighted ones."""

from collections.abc import Sequence

from lightning_merge.aggregate import average
from lightning_merge.aggregate.name_weights import NameWeights
from lightning_merge.checkpoint import StateDict
from lightning_merge.recipe.aggregate import Aggregate, Merged, aggregates
from lightning_merge.recipe.context import Context


@aggregates.register(paper="Wortsman et al. 2022, Model soups")
class Average(Aggregate):
    """The mean of all ingredients (uniform soup), or a weighted one (NP Merge, Eq. 1).

    Args:
        weights: One number for each ingredient, divided by their sum; equal if not given. Or,
            by regular expression, such numbers for the tensors in whose names it is found, the
            first that is (`{"^layer4": [0.9, 0.1]}`); the other tensors' are equal.
    """

    def __init__(self, weights: list[float] | dict[str, list[float]] | None = None) -> None:
        self.weights = weights

    def check(self, context: Context) -> None:
        """Checks that weights by regular expression are for tensors that there are."""
        if isinstance(self.weights, dict):
            count = len(context.states)
            NameWeights(self.weights, count, "Average").check_used(context.module.state_dict())

    def check_count(self, count: int) -> None:
        """Checks that there is a weight for each ingredient."""
        NameWeights(self.weights, count, "Average").check_means()

    def weights_of_mean(self, count: int) -> list[float] | None:
        """The weights; equal ones if none were given, None if tensors have their own."""
        return None if isinstance(self.weights, dict) else self.weights or [1.0] * count

    @property
    def fits_any_count(self) -> bool:
        """Whether no weights were given."""
        return self.weights is None

    def __call__(self, states: Sequence[StateDict], context: Context) -> Merged:
        """A module with the averaged weights."""
        return Merged(context.build(average(states, self.weights)))
