"""The learned soup of its authors: mixing coefficients and a logit scale, on held-out data."""

import copy
from collections.abc import Sequence
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

from lightning_merge.checkpoint import StateDict
from lightning_merge.errors import ConfigError
from lightning_merge.modules import MergeModule
from lightning_merge.modules.merging.read_ingredients import check_automatic
from lightning_merge.recipe.aggregate import Aggregate, Merged, aggregates
from lightning_merge.recipe.choice import Choice
from lightning_merge.recipe.context import Context
from lightning_merge.recipe.fitting import fit
from lightning_merge.recipe.held_out import HeldOut


@aggregates.register(paper="Wortsman et al. 2022, Model soups", needs="held-out labels")
class LearnedSoup(Aggregate):
    """The soup whose mixing coefficients are learned on held-out examples.

    Wortsman et al. 2022, "Model soups", appendix on learned soups. The shares of the ingredients
    are a softmax over logits that begin equal (of two: the sigmoid of one logit); these and a
    factor of the network's logits, which begins at 1, descend the module's own training loss on
    the validation data. Only the loss sees the factor: it is reported, and the result is the soup
    alone. The defaults are those of the authors' code. The test set is never looked at.

    Args:
        granularity: Shares for the whole `model`, or for each `layer`, as the authors call it:
            each tensor.
        max_epochs: How many epochs over the validation data.
        batch_size: How many examples a step takes.
        optimizer: Called with the logits and the factor.

    Raises:
        ConfigError: If the granularity is another one.
    """

    def __init__(
        self,
        granularity: Literal["model", "layer"] = "model",
        max_epochs: int = 5,
        batch_size: int = 32,
        optimizer: OptimizerCallable = lambda learned: torch.optim.AdamW(
            learned, lr=0.05, weight_decay=0.0
        ),
    ) -> None:
        if granularity not in ("model", "layer"):
            raise ConfigError(
                f"LearnedSoup: granularity '{granularity}' is too fine for held-out examples: "
                "choose model or layer, or learn from training data by NPMerge"
            )
        self.granularity = granularity
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.optimizer = optimizer

    def check(self, context: Context) -> None:
        """Checks that there are held-out examples, of one task."""
        if context.several_tasks:
            raise ConfigError(
                "LearnedSoup learns from one task's labels, and there are several tasks: use "
                "AdaMerging"
            )
        check_automatic(context.module)
        context.held_out()

    def __call__(self, states: Sequence[StateDict], context: Context) -> Merged:
        """A module with the soup's weights, and `alphas()`.

        Raises:
            ConfigError: If the module's training step does not go through its `forward`.
        """
        held_out = context.held_out()
        scale = nn.Parameter(torch.ones(()))
        module = MergeModule(
            context.build(states[0]),
            states,
            granularity=self.granularity,
            optimizer=lambda logits: self.optimizer([*logits, scale]),
        )
        scaled = 0

        def multiply(module: nn.Module, inputs: Any, logits: Any) -> Tensor:
            nonlocal scaled
            del module, inputs
            if not isinstance(logits, Tensor):
                raise _not_scaled(context)
            scaled += 1
            return logits * scale.to(logits.device)

        with module.register_forward_hook(multiply):
            data = _trained_on(held_out, self.batch_size)
            fit(module, data, context.trainer(max_epochs=self.max_epochs))
        if not scaled:
            raise _not_scaled(context)
        module.eval()
        shares = _shares(module, len(states), self.granularity)
        learned = dict(zip(context.names, shares, strict=True))
        choice = _choice(learned, scale.item(), held_out.size)
        return Merged(module, (choice,), held_out.size)


def _choice(shares: dict[str, list[float]], scale: float, examples: int) -> Choice:
    means = ", ".join(f"{sum(own) / len(own):.3g} {name}" for name, own in shares.items())
    return Choice(
        f"shares (means) {means}, logit scale {scale:.3g}, learned on {examples:,} validation "
        "examples",
        {"shares": shares, "logit_scale": scale, "examples": examples},
    )


def _trained_on(held_out: HeldOut, batch_size: int) -> LightningDataModule:
    """The data module with its validation data, in random order, in the training data's place."""
    # BatchNorm cannot train on a batch of one.
    single = held_out.size > batch_size and held_out.size % batch_size == 1
    loader = held_out.shuffled(batch_size, drop_last=single)
    data = copy.copy(held_out.context.data)
    setattr(data, "train_dataloader", lambda: loader)  # noqa: B010
    return data


def _shares(module: MergeModule, count: int, granularity: str) -> list[list[float]]:
    # (K, ...) by name; of two ingredients the first one's alone
    alphas = list(module.alphas().values())
    if granularity == "model":
        alphas = alphas[:1]
    if count == 2:
        alphas = [torch.stack([alpha, 1 - alpha]) for alpha in alphas]
    # A tensor's elements share one alpha.
    return torch.stack([alpha.reshape(len(alpha), -1)[:, 0] for alpha in alphas], dim=1).tolist()


def _not_scaled(context: Context) -> ConfigError:
    return ConfigError(
        f"LearnedSoup scales the logits that {type(context.module).__name__}'s forward gives, and "
        "its training_step has none from there: call self(inputs) in it, or use NPMerge"
    )
