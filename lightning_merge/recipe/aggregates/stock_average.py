"""Model Stock as a recipe's aggregate."""

from collections.abc import Sequence

from lightning_merge.aggregate import model_stock
from lightning_merge.checkpoint import StateDict
from lightning_merge.recipe.aggregate import Aggregate, Merged, aggregates
from lightning_merge.recipe.context import Context
from lightning_merge.recipe.pretrained import check_pretrained, pretrained_state


@aggregates.register(paper="Jang et al. 2024, Model Stock", needs="the pre-trained network")
class ModelStock(Aggregate):
    """Between the pre-trained network and the average, nearer to it the more the angles agree.

    Args:
        pretrained: The checkpoint that the ingredients were fine-tuned from; where several
            tasks are merged, or the study has a `start`, it is known (None, or `start`).
    """

    from_pretrained = True

    def __init__(self, pretrained: str | None = None) -> None:
        self.pretrained = pretrained

    def check(self, context: Context) -> None:
        """Checks that the pre-trained network is known."""
        check_pretrained(self.pretrained, context, "ModelStock")

    def __call__(self, states: Sequence[StateDict], context: Context) -> Merged:
        """A module with the merged weights."""
        pretrained = pretrained_state(self.pretrained, context, "ModelStock")
        return Merged(context.build(model_stock(pretrained, states)))
