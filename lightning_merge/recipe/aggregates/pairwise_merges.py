"""NP Merge of many, two at a time, as its paper does it (Sec. III-C)."""

from collections.abc import Sequence

from lightning_merge.checkpoint import StateDict
from lightning_merge.modules import MergeModule, merge_in_pairs, successive_pairs
from lightning_merge.recipe.aggregate import Merged, aggregates
from lightning_merge.recipe.aggregates.gradient_merges import NPMerge, fit_quietly
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
            examples = fit_quietly(module, self.max_epochs, context).labelled_examples

        merged = merge_in_pairs(
            lambda: context.build(states[0]),
            states,
            fit,
            seed=context.seed,
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
