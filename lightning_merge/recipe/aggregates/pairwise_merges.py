"""NP Merge of many, two at a time, as its paper does it (Sec. III-C)."""

from collections.abc import Sequence

import torch
from lightning.pytorch.cli import OptimizerCallable

from lightning_merge.align import Matching
from lightning_merge.checkpoint import StateDict
from lightning_merge.errors import ConfigError
from lightning_merge.modules import Granularity, MergeModule, merge_in_pairs, successive_pairs
from lightning_merge.recipe.aggregate import Merged, aggregates
from lightning_merge.recipe.aggregates.gradient_merges import NPMerge
from lightning_merge.recipe.aggregates.tuned_training import fit_quietly
from lightning_merge.recipe.choice import Choice
from lightning_merge.recipe.context import Context


@aggregates.register(
    paper="Orozco Camacho et al. 2024, NP Merge, Sec. III-C", needs="labelled training data"
)
class NPMergePairs(NPMerge):
    """NP Merge of random pairs, then of the results, until one network is left.

    The context's seed draws the pairs; one that is left over waits for the next round. Each
    pair's alphas are trained for `max_epochs`, so N ingredients cost N - 1 times that. The
    ingredients come in the order of the first one's units, as the recipe's `align` has put them,
    and so do all results. With a `matching` the second network of each pair is aligned to the
    first, results included, as the paper does; the recipe's `align` is left out then.

    Args:
        granularity: As for `NPMerge`.
        max_epochs: How many epochs over the training data for each pair.
        alpha: The initial share of each pair's first network; 0.5 if not given.
        optimizer: Called with each pair's logits.
        matching: How the networks of each pair are aligned; they stay as they are if not given.
    """

    label = "NPMergePairs"

    def __init__(
        self,
        granularity: Granularity = "parameter",
        max_epochs: int = 10,
        alpha: float | None = None,
        optimizer: OptimizerCallable = lambda logits: torch.optim.Adam(logits, lr=0.01),
        matching: Matching | None = None,
    ) -> None:
        super().__init__(granularity, max_epochs, alpha, optimizer)
        self.matching = matching

    def check(self, context: Context) -> None:
        """Checks that aligning a pair leaves its heads as they are."""
        super().check(context)
        if self.matching is not None and context.heads:
            raise ConfigError(
                f"NPMergePairs: '{context.heads[0]}' is the same in all networks, and `matching` "
                "would move it with the units of one: leave it out (the recipe may have an `align`)"
            )

    def __call__(self, states: Sequence[StateDict], context: Context) -> Merged:
        """A module with the merged weights."""
        examples = 0

        def fit(module: MergeModule) -> None:
            nonlocal examples
            examples = fit_quietly(module, self.max_epochs, context).labelled_examples

        merged = merge_in_pairs(
            lambda: context.build(states[0]),
            states,
            fit,
            seed=context.seed,
            matching=self.matching,
            granularity=self.granularity,
            alpha=self.alpha,
            optimizer=self.optimizer,
        )
        pairs = drawn_pairs(context.names, context.seed)
        listed = ", ".join(" + ".join(pair) for pair in pairs)
        choice = Choice(
            f"pairs {listed}, drawn by seed {context.seed}",
            {"pairs": pairs, "seed": context.seed},
        )
        return Merged(context.build(merged), (choice,), examples)


def drawn_pairs(names: Sequence[str], seed: int) -> list[list[str]]:
    """The pairs that `successive_pairs` merges, by name."""
    pairs: list[list[str]] = []

    def note(first: str, second: str) -> str:
        pairs.append([first, second])
        return f"({first} + {second})"

    successive_pairs(names, note, seed)
    return pairs
