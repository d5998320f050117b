"""The average of all ingredients: the uniform soup, and weighted ones."""

from collections.abc import Sequence

from lightning_merge.aggregate import average
from lightning_merge.checkpoint import StateDict
from lightning_merge.errors import ConfigError
from lightning_merge.recipe.aggregate import Aggregate, Merged, aggregates
from lightning_merge.recipe.context import Context


@aggregates.register(paper="Wortsman et al. 2022, Model soups")
class Average(Aggregate):
    """The mean of all ingredients (uniform soup), or a weighted one (NP Merge, Eq. 1).

    Args:
        weights: One number for each ingredient, divided by their sum; equal if not given.
    """

    def __init__(self, weights: list[float] | None = None) -> None:
        self.weights = weights

    def check_count(self, count: int) -> None:
        """Checks that there is a weight for each ingredient."""
        if self.weights is not None and len(self.weights) != count:
            raise ConfigError(
                f"Average: {len(self.weights)} weights for {count} ingredients: give one for each"
            )

    def weights_of_mean(self, count: int) -> list[float]:
        """The weights; equal ones if none were given."""
        return self.weights or [1.0] * count

    @property
    def fits_any_count(self) -> bool:
        """Whether no weights were given."""
        return self.weights is None

    def __call__(self, states: Sequence[StateDict], context: Context) -> Merged:
        """A module with the averaged weights."""
        return Merged(context.build(average(states, self.weights)))
