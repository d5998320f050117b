"""WiSE-FT: between the pre-trained network and a fine-tuned or merged one, clean and shifted.

Wortsman et al. 2022, "Robust Fine-Tuning of Zero-Shot Models" (arXiv 2109.01903).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from lightning_merge.aggregate import interpolate
from lightning_merge.checkpoint import StateDict
from lightning_merge.data import ClassificationDataModule
from lightning_merge.data.corruptions import Corruption
from lightning_merge.errors import ConfigError
from lightning_merge.measure.measurement import evaluate
from lightning_merge.measure.path_recipes import Given
from lightning_merge.measure.sweep import MergedWeights, Plain, Sweep, by_name, mean_cell, sweeps
from lightning_merge.progress import tracked
from lightning_merge.recipe.build import build_recipe
from lightning_merge.recipe.context import Context
from lightning_merge.recipe.pretrained import check_pretrained, pretrained_state
from lightning_merge.recipe.recalibration import Recalibrate, recalibrate_with

_DEFAULTS: Plain = {"corruptions": ["gaussian_noise"], "severity": 3, "points": 11}


@sweeps.register("wise_ft", paper="Wortsman et al. 2022, Robust Fine-Tuning", needs="--wise_ft")
class WiSEFT(Sweep):
    """Accuracy on clean and corrupted images from the pre-trained network to fine-tuned ones."""

    option = "wise_ft"
    type = dict[str, Any]
    default: ClassVar[Plain] = {}
    help = (
        "test `(1 - a) * pretrained + a * network` of the first ingredient and of each merge on "
        "clean and corrupted images, for example '{pretrained: start.ckpt, corruptions: "
        "[gaussian_noise], severity: 3, points: 11}'; a study's `start` is known"
    )
    key = "wise_ft"
    title = "WiSE-FT"
    reads_merges = True

    def check(self, value: Mapping[str, Any], ingredients: int) -> None:
        """Checks that the settings are known ones, and that the corruptions exist."""
        del ingredients
        strange = sorted(set(value) - {*_DEFAULTS, "pretrained"})
        if strange:
            raise ConfigError(
                f"wise_ft: '{strange[0]}' is unknown; give pretrained, corruptions, severity or "
                "points"
            )
        chosen = {**_DEFAULTS, **value}
        if not chosen["corruptions"] or chosen["points"] < 2:
            raise ConfigError("wise_ft: give a corruption or more, and 2 points or more")
        for corruption in chosen["corruptions"]:
            Corruption(corruption, chosen["severity"])

    def check_context(self, context: Context) -> None:
        """Checks that the data can be corrupted."""
        if not isinstance(context.data, ClassificationDataModule):
            raise ConfigError(
                f"wise_ft: {type(context.data).__name__} cannot corrupt its images; leave it out"
            )

    def settings(
        self, value: Mapping[str, Any], recipes: Sequence[Given], sizes: Sequence[int]
    ) -> Plain:
        """The option's settings, and the recipes that merge."""
        built = [(build_recipe(recipe), recipe) for recipe in recipes]
        merging = [given for made, given in built if not made.aggregate.is_ensemble]
        return {**_DEFAULTS, **value, "recipes": merging, "size": sizes[-1]}

    def measure(self, context: Context, settings: Plain, weights: MergedWeights) -> list[Plain]:
        """For each network its coefficients, and accuracies by condition."""
        pretrained = settings.get("pretrained")
        check_pretrained(pretrained, context, "wise_ft")
        start = pretrained_state(pretrained, context, "wise_ft")
        data = context.data
        assert isinstance(data, ClassificationDataModule)
        conditions = {"clean": data}
        for name in settings["corruptions"]:
            conditions[name] = data.corrupted(name, settings["severity"])
        ends: list[tuple[str, StateDict, Recalibrate, Sequence[float] | None]] = [
            (context.names[0], context.states[0], recalibrate_with(context, context.states), None)
        ]
        for given in settings["recipes"]:
            recipe = build_recipe(given)
            own = context.recalibrated_by(recipe.recalibration, recipe.name)
            repairs = recipe.recalibration
            to_means = repairs is not None and repairs.of_means
            states = recipe.aligned(own).states if to_means else context.states
            shares = recipe.aggregate.weights_of_mean(len(states))
            end = weights(recipe.name, settings["size"])
            ends.append((recipe.name, end, recalibrate_with(own, states), shares))
        last = settings["points"] - 1
        coefficients = [index / last for index in range(settings["points"])]
        found = []
        for name, end, recalibrate, shares in ends:
            accuracy: dict[str, list[float]] = {condition: [] for condition in conditions}
            for coefficient in tracked(coefficients, f"WiSE-FT {name}", context.progress):
                module = context.build(interpolate(end, start, coefficient))
                recalibrate(module, shares)
                for condition, images in conditions.items():
                    metrics, _ = evaluate(module, images, context.trainer())
                    accuracy[condition].append(metrics.get("accuracy", math.nan))
            found.append({"name": name, "coefficient": coefficients, "accuracy": accuracy})
        return found

    def tables(self, found: Sequence[Mapping[str, Any]]) -> list[list[list[str]]]:
        """By network: the pre-trained end, the middle, and the other end."""
        lines = [["network", "coefficient", "clean", "shifted"]]
        for name, repeated in by_name(found).items():
            coefficients = repeated[0]["coefficient"]
            chosen = sorted({0, len(coefficients) // 2, len(coefficients) - 1})
            for index in chosen:
                clean = [one["accuracy"]["clean"][index] for one in repeated]
                away = [shifted(one)[index] for one in repeated]
                lines.append([name, f"{coefficients[index]:g}", mean_cell(clean), mean_cell(away)])
        return [lines]


def shifted(one: Mapping[str, Any]) -> list[float]:
    """The mean accuracy over the corruptions at each coefficient."""
    columns = [values for name, values in one["accuracy"].items() if name != "clean"]
    # An accuracy that is no number is stored as null.
    return np.asarray(columns, dtype=float).mean(0).tolist()
