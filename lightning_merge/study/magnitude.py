"""Accuracy when all weights of the ingredients are multiplied by a factor: soups and ensembles.

Rethinking Weight-Averaged Model-merging (Wang et al.), Sec. 5 and 6.3.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lightning_merge.aggregate import average
from lightning_merge.batches import inputs_of
from lightning_merge.checkpoint import StateDict
from lightning_merge.errors import ConfigError
from lightning_merge.loaders import Transferred
from lightning_merge.modules.last_layer import last_layer
from lightning_merge.progress import tracked
from lightning_merge.study.aggregates import (
    FeaturesEnsemble,
    GreedyFeaturesEnsemble,
    GreedyLogitsEnsemble,
    LogitsEnsemble,
)
from lightning_merge.study.aggregates.greedy import Greedy
from lightning_merge.study.pool import Pool
from lightning_merge.study.recipe import Recipe
from lightning_merge.study.report import AVERAGE

Weights = Callable[[str, int], StateDict]
"""The merged weights of a recipe's name and a number of ingredients."""

_OF_LOGITS = (LogitsEnsemble, GreedyLogitsEnsemble)
_OF_FEATURES = (FeaturesEnsemble, GreedyFeaturesEnsemble)


@dataclass
class Magnitude:
    """The test accuracy of one method at each factor.

    Attributes:
        name: The recipe's name, or `Ingredients' average`.
        kind: `ingredient`, `merge` or `ensemble`.
        aggregate: The name of the recipe's aggregate; empty for the ingredients.
        pool_size: Of how many ingredients.
        seed: The pool's seed.
        factor: What every weight is multiplied by.
        accuracy: The share of test examples that are classified rightly.
        finite: The share of test examples whose logits are finite numbers. A network of L
            layers multiplies its logits by up to the L-th power of the factor, and a
            floating-point number ends somewhere.
        by_batch: The accuracy of each batch of the test set, at each factor; kept of soups and
            ensembles of logits only.
    """

    name: str
    kind: str
    aggregate: str
    pool_size: int
    seed: int
    factor: list[float] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)
    finite: list[float] = field(default_factory=list)
    by_batch: list[list[float]] = field(default_factory=list)

    def plain(self) -> dict[str, Any]:
        """The method as JSON holds it."""
        return asdict(self)


def measure_magnitudes(
    pool: Pool,
    recipes: Sequence[Recipe],
    factors: Sequence[float],
    sizes: Sequence[int],
    weights: Weights,
) -> list[Magnitude]:
    """Tests soups and ensembles of ingredients whose weights are multiplied.

    All parameters are multiplied, statistics are not. Averaging is linear: the average of
    multiplied ingredients is the multiplied average, so that a merge is multiplied itself, as it
    was recalibrated. An ensemble's members are multiplied, its last layer too.

    For each factor every batch is read once, and every network asked once: ingredients are
    shared by all ensembles, of all numbers of ingredients. The networks are held in memory
    together.

    Args:
        pool: The ingredients and their data.
        recipes: Which soups and ensembles.
        factors: The factors, positive; 1 leaves the weights as they are.
        sizes: Of how many ingredients, the first ones of the pool.
        weights: Gives the weights of recipes that merge.

    Returns:
        For each number of ingredients their average, then the recipes.

    Raises:
        ConfigError: If the test examples do not have one class each.
    """
    tested = _Tested(pool, inputs_of(next(iter(_test_batches(pool))))[:2])
    for size in sizes:
        tested.add_ingredients(size)
        for recipe in recipes:
            tested.add(recipe, size, weights)
    for factor in tracked(factors, "Weight magnitudes", pool.progress):
        tested.measure(factor, _test_batches(pool))
    return [method.result for method in tested.methods]


def check_classes(pool: Pool) -> None:
    """Checks that right answers can be counted on the test set, before anything is computed.

    Raises:
        ConfigError: If the test examples do not have one class each.
    """
    _classes(next(iter(_test_batches(pool))))


class _Tested:
    """The networks that have to be asked, each once, and what is made of their answers."""

    def __init__(self, pool: Pool, example: Tensor) -> None:
        self.pool = pool
        self.example = example
        self.precision = pool.trainer().precision_plugin
        self.networks: list[_Network] = []
        self.methods: list[_Method] = []
        self._head: str | None = None
        self._known: dict[int, int] = {}

    def add_ingredients(self, size: int) -> None:
        members = [self._index(state) for state in self.pool.states[:size]]
        result = Magnitude(AVERAGE, "ingredient", "", size, self.pool.seed)
        self.methods.append(_Method(result, members))

    def add(self, recipe: Recipe, size: int, weights: Weights) -> None:
        pool, aggregate = self.pool.first(size), recipe.aggregate
        kind = "merge" if aggregate.merges else "ensemble"
        name = type(aggregate).__name__
        method = _Method(Magnitude(recipe.name, kind, name, size, pool.seed), [])
        if aggregate.merges:
            method.members = [self._index(weights(recipe.name, size))]
        elif isinstance(aggregate, _OF_LOGITS + _OF_FEATURES) and _is_plain(recipe):
            states, _ = pool.align(recipe.align)
            kept = (
                aggregate.search(states, pool).members if isinstance(aggregate, Greedy) else states
            )
            method.members = [self._index(state) for state in kept]
            if isinstance(aggregate, _OF_FEATURES):
                method.head = self._last_layer(kept, aggregate.head)
        else:
            # An ensemble of a kind of its own is one network that is asked as it is.
            module, _ = recipe(pool)
            self.networks.append(self._network(module))
            method.members = [len(self.networks) - 1]
        self.methods.append(method)

    @torch.inference_mode()
    def measure(self, factor: float, batches: Iterable[Any]) -> None:
        for network in self.networks:
            network.multiply(factor)
        for method in self.methods:
            method.begin(factor)
        for batch in batches:
            targets = _classes(batch)
            with self.precision.forward_context():
                answers = [network(inputs_of(batch)) for network in self.networks]
                for method in self.methods:
                    method.count(answers, targets)
        for method in self.methods:
            method.end()

    def _index(self, state: StateDict) -> int:
        if id(state) not in self._known:
            self._known[id(state)] = len(self.networks)
            self.networks.append(self._network(self.pool.build(state)))
            # Held, so that no other state comes to have its identity.
            self.networks[-1].source = state
        return self._known[id(state)]

    def _network(self, module: nn.Module) -> "_Network":
        module = self.precision.convert_module(module.to(self.pool.device))
        return _Network(module.eval(), self._head)

    def _last_layer(self, states: Sequence[StateDict], head: str) -> "_Network":
        if self._head is None:
            self._head = last_layer(self.pool.build(states[0]), self.example.float())
            for network in self.networks:
                network.watch(self._head)
        layers = [self.pool.build(state).get_submodule(self._head) for state in states]
        if head == "merged":
            layers[0].load_state_dict(average([layer.state_dict() for layer in layers]))
        return self._network(layers[0])


class _Network:
    """One network, whose weights can be multiplied, and what its last layer was given."""

    source: StateDict | None = None

    def __init__(self, module: nn.Module, head: str | None = None) -> None:
        self.module = module
        self.weights = [parameter.detach().clone() for parameter in module.parameters()]
        self.features: Tensor | None = None
        if head is not None:
            self.watch(head)

    def watch(self, head: str) -> None:
        layers = dict(self.module.named_modules())
        if head in layers:
            layers[head].register_forward_pre_hook(self._keep)

    def multiply(self, factor: float) -> None:
        for parameter, weight in zip(self.module.parameters(), self.weights, strict=True):
            parameter.copy_(weight * factor)

    def __call__(self, inputs: Tensor) -> tuple[Tensor, Tensor | None]:
        logits: Tensor = self.module(inputs)
        return logits, self.features

    def _keep(self, _layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.features = inputs[0]


@dataclass
class _Method:
    """How one method answers, given what its members answered; and how often it is right."""

    result: Magnitude
    members: list[int]
    head: _Network | None = None
    right: list[float] = field(default_factory=list)
    finite: float = 0.0
    examples: list[int] = field(default_factory=list)

    def begin(self, factor: float) -> None:
        self.right, self.finite, self.examples = [], 0.0, []
        self.result.factor.append(factor)
        if self.head is not None:
            self.head.multiply(factor)

    def count(self, answers: Sequence[tuple[Tensor, Tensor | None]], targets: Tensor) -> None:
        chosen = [answers[index] for index in self.members]
        if self.result.kind == "ingredient":
            found = [logits for logits, _ in chosen]
        elif self.head is not None:
            features = [features for _, features in chosen if features is not None]
            found = [self.head(torch.stack(features).mean(0))[0]]
        else:
            found = [torch.stack([logits for logits, _ in chosen]).mean(0)]
        right = [float((_predicted(logits, targets) == targets).sum()) for logits in found]
        finite = [float(logits.isfinite().flatten(1).all(1).sum()) for logits in found]
        self.right.append(sum(right) / len(found))
        self.finite += sum(finite) / len(found)
        self.examples.append(len(targets))

    def end(self) -> None:
        result, total = self.result, sum(self.examples)
        result.accuracy.append(sum(self.right) / total)
        result.finite.append(self.finite / total)
        if result.aggregate in ("Average", "LogitsEnsemble"):
            batches = zip(self.right, self.examples, strict=True)
            result.by_batch.append([right / count for right, count in batches])


def _is_plain(recipe: Recipe) -> bool:
    """Whether an ensemble's members are ingredients as they are, all that its search keeps."""
    return recipe.recalibrate is None and recipe.select is None


def _predicted(logits: Tensor, targets: Tensor) -> Tensor:
    """The class of the largest logit; where there is one logit, whether it is positive."""
    one = logits.numel() == len(targets)
    return (logits.flatten() > 0).long() if one else logits.argmax(dim=1)


def _classes(batch: Any) -> Tensor:
    targets = batch[1] if isinstance(batch, Sequence) and len(batch) > 1 else None
    if (
        not isinstance(targets, Tensor)
        or targets.is_floating_point()
        or targets.numel() != len(targets)
    ):
        raise ConfigError(
            "magnitudes count right answers, so every test example needs one class: leave "
            "--magnitudes out"
        )
    return targets.flatten()


def _test_batches(pool: Pool) -> Iterable[Any]:
    """The test batches on the device, as many as the Trainer's limit allows."""
    trainer = pool.trainer()
    loader = pool.data.test_dataloader()
    limit = trainer.limit_test_batches
    count = limit if isinstance(limit, int) else int(limit * len(loader))
    precision = trainer.precision_plugin
    module: LightningModule = pool.module
    batches = Transferred(loader, module, pool.data, pool.device, precision.convert_input)
    return islice(batches, count)
