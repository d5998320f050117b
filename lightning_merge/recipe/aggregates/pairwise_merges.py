"""NP Merge of many, two at a time, as its paper does it (Sec. III-C)."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lightning_merge.checkpoint import StateDict
from lightning_merge.modules import MergeModule, merge_in_pairs, successive_pairs
from lightning_merge.recipe.aggregate import Merged, aggregates
from lightning_merge.recipe.aggregates.gradient_merges import NPMerge, fit_quietly
from lightning_merge.recipe.context import Context


@dataclass(frozen=True)
class PairsChoice:
    """Which pairs were merged.

    Attributes:
        pairs: Two names each, in the order in which they were merged; a result is named by
            its pair in parentheses, `(a + b)`.
        seed: What they were drawn by.
    """

    pairs: list[list[str]]
    seed: int

    def plain(self) -> dict[str, Any]:
        """The choice as JSON holds it."""
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"pairs {', '.join(' + '.join(pair) for pair in self.pairs)}, drawn by seed {self.seed}"
        )


@aggregates.register(
    paper="Orozco Camacho et al. 2024, NP Merge, Sec. III-C", needs="labelled training data"
)
class NPMergePairs(NPMerge):
    """NP Merge of random pairs, then of the results, until one network is left.

    The context's seed draws the pairs; one that is left over waits for the next round. Each
    pair's alphas are trained for `max_epochs`, so N ingredients cost N - 1 times that. The
    ingredients come in the order of the first one's units, as the recipe's `align` has put them,
    and so do all results: pairs are not aligned anew, as the paper does (`merge_in_pairs` with a
    `matching`, from Python, does so).

    Args:
        granularity: As for `NPMerge`.
        max_epochs: How many epochs over the training data for each pair.
        alpha: The initial share of each pair's first network; 0.5 if not given.
        optimizer: Called with each pair's logits.
    """

    label = "NPMergePairs"

    def __call__(self, states: Sequence[StateDict], context: Context) -> Merged:
        """A module with the merged weights."""
        examples = 0

        def fit(module: MergeModule) -> None:
            nonlocal examples
            examples = fit_quietly(module, self.max_epochs, context)

        merged = merge_in_pairs(
            lambda: context.build(states[0]),
            states,
            fit,
            seed=context.seed,
            granularity=self.granularity,
            alpha=self.alpha,
            optimizer=self.optimizer,
        )
        choice = PairsChoice(drawn_pairs(context.names, context.seed), context.seed)
        return Merged(context.build(merged), (choice,), examples)


def drawn_pairs(names: Sequence[str], seed: int) -> list[list[str]]:
    """The pairs that `successive_pairs` merges, by name.

    Args:
        names: What the ingredients are called.
        seed: Of the pairs.
    """
    pairs: list[list[str]] = []

    def note(first: str, second: str) -> str:
        pairs.append([first, second])
        return f"({first} + {second})"

    successive_pairs(names, note, seed)
    return pairs
