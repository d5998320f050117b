"""Weight scaling: accuracy when all weights of the ingredients are multiplied by a factor.

Rethinking Weight-Averaged Model-merging (Wang et al.), Sec. 5 and 6.3.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any, ClassVar

import torch
from lightning.fabric.utilities.data import sized_len
from torch import Tensor, nn

from lightning_merge.aggregate import average
from lightning_merge.batches import inputs_of, targets_of
from lightning_merge.checkpoint import StateDict
from lightning_merge.errors import ConfigError
from lightning_merge.loaders import Transferred
from lightning_merge.measure.measurement import AVERAGE
from lightning_merge.measure.path_recipes import Given
from lightning_merge.measure.sweep import MergedWeights, Plain, Sweep, sweeps
from lightning_merge.modes import as_written, clear_caches
from lightning_merge.modules.last_layer import last_layer
from lightning_merge.progress import tracked
from lightning_merge.recipe.build import build_recipe
from lightning_merge.recipe.context import Context
from lightning_merge.recipe.held_out import are_classes, are_probabilities, are_right
from lightning_merge.recipe.recipe import Recipe
from lightning_merge.watched_layers import watch_input


@dataclass
class ScalingCurve:
    """The test accuracy of one method at each factor.

    Attributes:
        name: The recipe's name, or `Ingredients' average`.
        kind: `ingredient`, `merge` or `ensemble`.
        aggregate: The label of the recipe's aggregate; empty for the ingredients.
        pool_size: Of how many ingredients.
        seed: The context's seed.
        factor: What every weight is multiplied by.
        accuracy: The share of test examples that are classified correctly.
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


def measure_scaling(
    context: Context,
    recipes: Sequence[Recipe],
    factors: Sequence[float],
    sizes: Sequence[int],
    weights: MergedWeights,
) -> list[ScalingCurve]:
    """Tests soups and ensembles of ingredients whose weights are multiplied.

    All parameters are multiplied, statistics are not. Averaging is linear: the average of
    multiplied ingredients is the multiplied average, so a merge is multiplied itself, as it was
    recalibrated. An ensemble's members are multiplied, its last layer too.

    For each factor every batch is read once, and every network evaluated once: ingredients are
    shared by all ensembles, of all numbers of ingredients. All networks are in memory together.

    Factors are positive, and 1 leaves the weights as they are; sizes are numbers of ingredients,
    the first ones; `weights` gives the weights of recipes that merge. For each number of
    ingredients there is their average, then the recipes.
    """
    tested = _Tested(context, recipes)
    for size in sizes:
        tested.add_ingredients(size)
        for recipe in recipes:
            tested.add(recipe, size, weights)
    for factor in tracked(factors, "Weight scaling", context.progress):
        tested.measure(factor, _test_batches(context))
    return [method.result for method in tested.methods]


@sweeps.register("magnitudes", paper="Wang et al., Rethinking Weight-Averaged Model-merging")
class WeightScaling(Sweep):
    """Accuracy of soups and ensembles whose weights are multiplied by factors."""

    option = "magnitudes"
    type = list[float]
    default: ClassVar[list[float]] = []
    help = (
        "test soups and ensembles of ingredients whose weights are multiplied by each of "
        "these, for example '[0.5, 1, 2]'"
    )
    key = "magnitudes"
    title = "Weight scaling"
    reads_merges = True

    def check(self, value: Sequence[float], ingredients: int) -> None:
        """Checks that the factors are positive, and none is given twice."""
        del ingredients
        if any(not 0 < factor < math.inf for factor in value) or len(set(value)) != len(value):
            raise ConfigError(
                f"magnitudes are {list(value)}: give positive numbers that differ, for example "
                "'[0.5, 1, 2]'"
            )

    def check_context(self, context: Context) -> None:
        """Checks that the test examples have one class each, and that there are logits."""
        batch = next(iter(_test_batches(context)))
        _classes(batch)
        module = context.build(context.states[0]).to(context.device).eval()
        precision = context.trainer().precision_plugin
        with torch.inference_mode(), precision.forward_context():
            outputs = precision.convert_module(module)(inputs_of(batch))
        if are_probabilities(outputs):
            raise ConfigError(
                f"magnitudes count outputs above 0, and {type(module).__name__} gives "
                "probabilities: let its forward give logits, or leave --magnitudes out"
            )

    def settings(
        self, value: Sequence[float], recipes: Sequence[Given], sizes: Sequence[int]
    ) -> Plain:
        """The factors, and what to test."""
        return {"factors": list(value), "recipes": list(recipes), "pool_sizes": list(sizes)}

    def measure(self, context: Context, settings: Plain, weights: MergedWeights) -> list[Plain]:
        """The curves (`ScalingCurve`)."""
        recipes = [build_recipe(recipe) for recipe in settings["recipes"]]
        factors, sizes = settings["factors"], settings["pool_sizes"]
        found = measure_scaling(context, recipes, factors, sizes, weights)
        return [asdict(curve) for curve in found]


class _Tested:
    """The networks to evaluate, each once, and the methods that combine their outputs."""

    def __init__(self, context: Context, recipes: Sequence[Recipe]) -> None:
        self.context = context
        self.precision = context.trainer().precision_plugin
        self.networks: list[_Network] = []
        self.methods: list[_Method] = []
        self._head: str | None = None
        if any(_is_plain(one) and one.aggregate.combines == "features" for one in recipes):
            example = inputs_of(next(iter(_test_batches(context))))[:2].float()
            self._head = last_layer(context.build(context.states[0]), example)
        self._known: dict[int, int] = {}

    def add_ingredients(self, size: int) -> None:
        members = [self._index(state) for state in self.context.states[:size]]
        result = ScalingCurve(AVERAGE, "ingredient", "", size, self.context.seed)
        self.methods.append(_Method(result, members))

    def add(self, recipe: Recipe, size: int, weights: MergedWeights) -> None:
        aggregate = recipe.aggregate
        context = self.context.first(size).recalibrated_by(recipe.recalibration, recipe.name)
        kind = "ensemble" if aggregate.is_ensemble else "merge"
        result = ScalingCurve(recipe.name, kind, aggregate.label, size, context.seed)
        by_batch = aggregate.combines == "logits" or aggregate.weights_of_mean(size) is not None
        method = _Method(result, [], by_batch=by_batch)
        if not aggregate.is_ensemble:
            method.members = [self._index(weights(recipe.name, size))]
        elif aggregate.combines is not None and _is_plain(recipe):
            kept = aggregate.members(recipe.aligned(context).states, context)  # type: ignore[attr-defined]
            method.members = [self._index(state) for state in kept]
            if aggregate.combines == "features":
                method.head = self._last_layer(kept, aggregate.head)  # type: ignore[attr-defined]
        else:
            # An ensemble of a kind of its own is one network that is evaluated as it is.
            self.networks.append(self._network(recipe(context).module))
            method.members = [len(self.networks) - 1]
        self.methods.append(method)

    @torch.inference_mode()
    def measure(self, factor: float, batches: Iterable[Any]) -> None:
        for network in (*self.networks, *(one.head for one in self.methods if one.head)):
            network.multiply(factor)
        counts: list[list[tuple[float, float]]] = [[] for _ in self.methods]
        sizes = []
        for batch in batches:
            targets = _classes(batch)
            # A filter may leave a batch empty, which has no share of right answers.
            if not len(targets):
                continue
            with self.precision.forward_context():
                outputs = [network(inputs_of(batch)) for network in self.networks]
                for method, counted in zip(self.methods, counts, strict=True):
                    counted.append(method.count(outputs, targets))
            sizes.append(len(targets))
        for method, counted in zip(self.methods, counts, strict=True):
            method.add(factor, counted, sizes)

    def _index(self, state: StateDict) -> int:
        if id(state) not in self._known:
            self._known[id(state)] = len(self.networks)
            self.networks.append(self._network(self.context.build(state)))
            # Kept, so that no other state comes to have its identity.
            self.networks[-1].source = state
        return self._known[id(state)]

    def _network(self, module: nn.Module) -> "_Network":
        module = self.precision.convert_module(module.to(self.context.device))
        return _Network(module.eval(), self._head)

    def _last_layer(self, states: Sequence[StateDict], head: str) -> "_Network":
        assert self._head is not None
        layers = [self.context.build(state).get_submodule(self._head) for state in states]
        if head == "merged":
            layers[0].load_state_dict(average([layer.state_dict() for layer in layers]))
        return self._network(layers[0])


class _Network:
    """One network, whose weights can be multiplied, and the last inputs of its last layer."""

    source: StateDict | None = None

    def __init__(self, module: nn.Module, head: str | None = None) -> None:
        self.module = module
        self.weights = [parameter.detach().clone() for parameter in module.parameters()]
        self.features: Tensor | None = None
        layers = dict(module.named_modules())
        if head is not None and head in layers:
            watch_input(layers[head], self._keep)

    def multiply(self, factor: float) -> None:
        for parameter, weight in zip(self.module.parameters(), self.weights, strict=True):
            parameter.copy_(weight * factor)
        clear_caches(self.module)

    def __call__(self, inputs: Tensor) -> tuple[Tensor, Tensor | None]:
        with as_written():
            logits: Tensor = self.module(inputs)
        return logits, self.features

    def _keep(self, features: Tensor) -> None:
        self.features = features


@dataclass
class _Method:
    """How one method predicts from its members' outputs, and how often it is right."""

    result: ScalingCurve
    members: list[int]
    head: _Network | None = None
    by_batch: bool = False

    def count(
        self, outputs: Sequence[tuple[Tensor, Tensor | None]], targets: Tensor
    ) -> tuple[float, float]:
        """How many predictions of a batch are right, and how many have finite logits."""
        chosen = [outputs[index] for index in self.members]
        if self.result.kind == "ingredient":
            found = [logits for logits, _ in chosen]
        elif self.head is not None:
            features = [features for _, features in chosen if features is not None]
            found = [self.head(torch.stack(features).mean(0))[0]]
        else:
            found = [torch.stack([logits for logits, _ in chosen]).mean(0)]
        right = [float(are_right(logits, targets).sum()) for logits in found]
        # Of one logit for each example there may be no second axis.
        finite = [float(one.isfinite().unsqueeze(-1).flatten(1).all(1).sum()) for one in found]
        return sum(right) / len(found), sum(finite) / len(found)

    def add(
        self, factor: float, counts: Sequence[tuple[float, float]], sizes: Sequence[int]
    ) -> None:
        """Adds what was counted at a factor, batch by batch, to the result."""
        self.result.factor.append(factor)
        self.result.accuracy.append(sum(right for right, _ in counts) / sum(sizes))
        self.result.finite.append(sum(finite for _, finite in counts) / sum(sizes))
        if self.by_batch:
            shares = [right / size for (right, _), size in zip(counts, sizes, strict=True)]
            self.result.by_batch.append(shares)


def _is_plain(recipe: Recipe) -> bool:
    """Whether an ensemble's members are ingredients as they are, and all that its search keeps."""
    return recipe.recalibrate is None and recipe.select is None


def _classes(batch: Any) -> Tensor:
    targets = targets_of(batch)
    if targets is None or not are_classes(targets):
        raise ConfigError(
            "magnitudes count right outputs, so every test example needs one class: leave "
            "--magnitudes out"
        )
    return targets.flatten()


def _test_batches(context: Context) -> Iterable[Any]:
    """The test batches on the device, as many as the Trainer's limit allows."""
    trainer = context.trainer()
    loader, limit = context.data.test_dataloader(), trainer.limit_test_batches
    convert = trainer.precision_plugin.convert_input
    batches = Transferred(loader, context.module, context.data, context.device, convert)
    if isinstance(limit, int):
        return islice(batches, limit)
    size = sized_len(loader)
    return batches if size is None else islice(batches, int(limit * size))
