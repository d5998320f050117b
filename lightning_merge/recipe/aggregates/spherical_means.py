"""Means on spheres as aggregates: SLERP of two networks, the Karcher mean of any number."""

from collections.abc import Sequence

from lightning_merge.aggregate import karcher_mean, slerp
from lightning_merge.checkpoint import StateDict
from lightning_merge.errors import ConfigError
from lightning_merge.recipe.aggregate import Aggregate, Merged, aggregates
from lightning_merge.recipe.context import Context


@aggregates.register(paper="Shoemake 1985, Animating Rotation with Quaternion Curves")
class Slerp(Aggregate):
    """Two networks, interpolated along great circles: their mean, but as long as they are.

    Args:
        t: The share of the second, in [0, 1].
    """

    label = "SLERP"
    fits_any_count = False
    """Two alone."""

    def __init__(self, t: float = 0.5) -> None:
        if not 0 <= t <= 1:
            raise ConfigError(f"Slerp: t {t} is no share; choose one in [0, 1]")
        self.t = t

    def check_count(self, count: int) -> None:
        """Checks that there are two ingredients."""
        if count != 2:
            raise ConfigError(
                f"Slerp: interpolates two networks, not {count}; use KarcherMean for more"
            )

    def __call__(self, states: Sequence[StateDict], context: Context) -> Merged:
        """A module with the interpolated weights."""
        self.check_count(len(states))
        return Merged(context.build(slerp(states[0], states[1], self.t)))


@aggregates.register(paper="Karcher 1977, Riemannian center of mass")
class KarcherMean(Aggregate):
    """The mean of all directions on the sphere, tensor by tensor: SLERP for any number.

    Args:
        weights: One number from 0 on for each ingredient; equal if not given.
    """

    label = "Karcher"

    def __init__(self, weights: list[float] | None = None) -> None:
        self.weights = weights

    def check_count(self, count: int) -> None:
        """Checks that there is a weight for each ingredient."""
        if self.weights is not None and len(self.weights) != count:
            raise ConfigError(
                f"KarcherMean: {len(self.weights)} weights for {count} networks; give one for each"
            )

    @property
    def fits_any_count(self) -> bool:
        """Whether no weights were given."""
        return self.weights is None

    def __call__(self, states: Sequence[StateDict], context: Context) -> Merged:
        """A module with the mean weights."""
        return Merged(context.build(karcher_mean(states, self.weights)))
