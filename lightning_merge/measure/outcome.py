"""The outcome of a recipe that is run and measured: a row, a module, a checkpoint."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule
from lightning.pytorch import __version__ as lightning_version
from torch import Tensor

from lightning_merge.checkpoint import StateDict, tensors_of
from lightning_merge.division import records_of
from lightning_merge.errors import ConfigError
from lightning_merge.measure.measurement import AVERAGE, Measurement, measure
from lightning_merge.recipe.aggregate import Merged
from lightning_merge.recipe.context import Context
from lightning_merge.recipe.recipe import Recipe


@dataclass(frozen=True)
class Outcome:
    """The outcome of one recipe.

    Attributes:
        measurement: Its row.
        module: The merged network, or the ensemble.
        content: The checkpoint of the merged network; None for an ensemble.
        choices: What was chosen on held-out data (`Choice.details`).
        for_tasks: As in `Merged`.
    """

    measurement: Measurement
    module: LightningModule
    content: dict[str, Any] | None = None
    choices: list[dict[str, Any]] = field(default_factory=list)
    for_tasks: Mapping[str, LightningModule] = field(default_factory=dict)

    @property
    def alphas(self) -> StateDict | None:
        """The first ingredient's learned alphas by parameter name; None where there are none."""
        return (self.content or {}).get("lightning_merge", {}).get("alphas")


def check_names(recipes: Sequence[Recipe]) -> None:
    """Checks that recipes' names can be those of rows and files; a `ConfigError` if not."""
    if not recipes:
        raise ConfigError("there are no recipes: name at least one under `recipes`")
    taken = {file_name(AVERAGE): AVERAGE}
    for recipe in recipes:
        name = file_name(recipe.name)
        if not name or name in taken or name.startswith("ingredient-"):
            other = f"; '{taken[name]}' has it" if name in taken else ""
            raise ConfigError(
                f"a recipe cannot be named '{recipe.name}': its results would have no name of "
                f"their own{other}"
            )
        taken[name] = recipe.name


def run_recipe(recipe: Recipe, context: Context) -> Outcome:
    """Makes and measures one merge of a context's ingredients."""
    made = recipe(context)
    is_ensemble = recipe.aggregate.is_ensemble
    measurement = measure(
        made.module,
        context.data,
        context.trainer(),
        method=recipe.name,
        kind="ensemble" if is_ensemble else "merge",
        seconds=made.seconds,
        seed=context.seed,
        train_examples=made.labelled_examples,
    )
    measurement.pool_size = len(context.states)
    measurement.chosen = "; ".join(dict.fromkeys(str(choice) for choice in made.choices))
    measurement.chose = any(choice.looked for choice in made.choices)
    choices = [choice.details for choice in made.choices]
    content = None if is_ensemble else merged_content(made, recipe, context)
    return Outcome(measurement, made.module, content, choices, made.for_tasks)


def measure_ingredients(context: Context) -> Iterator[Measurement]:
    """A row for each ingredient, as it is."""
    for state, name in zip(context.states, context.names, strict=True):
        trainer, module = context.trainer(), context.build(state)
        yield measure(module, context.data, trainer, name, "ingredient", None, context.seed, None)


def merged_content(made: Merged, recipe: Recipe, context: Context) -> dict[str, Any]:
    """A merge's checkpoint, which the ingredients' class loads with `load_from_checkpoint`.

    Beside Lightning's own entries it has how the data module prepares and divides images, and,
    under `lightning_merge`, the recipe's name, the ingredients' hashes, the choices, and the alphas
    (if any): those of the first ingredient, and where there are more than two, `other_alphas`, a
    list of those of the others. Of several tasks it has, `for_tasks`, what the networks of some
    have beside the body.
    """
    origin: dict[str, Any] = {"recipe": recipe.name, "ingredients": context.digests}
    if made.choices:
        origin["choices"] = [choice.details for choice in made.choices]
    alphas_of = getattr(made.module, "alphas_by_ingredient", None)
    if alphas_of is not None:
        origin["alphas"], *others = map(_on_cpu, alphas_of())
        if others:
            origin["other_alphas"] = others
    if made.for_tasks:
        body = made.module.state_dict()
        origin["for_tasks"] = {
            task: _on_cpu({k: value for k, value in one.state_dict().items() if k not in body})
            for task, one in made.for_tasks.items()
        }
    content = content_of(made.module, context.module)
    return {**content, "lightning_merge": origin, **records_of(context.data)}


def content_of(module: LightningModule, described_by: LightningModule) -> dict[str, Any]:
    """A checkpoint as Lightning would write it: a module's weights, another's hyper-parameters."""
    return {
        "epoch": 0,
        "global_step": 0,
        "pytorch-lightning_version": lightning_version,
        "state_dict": {**module.state_dict(), **_on_cpu(tensors_of(module))},
        "hyper_parameters": dict(described_by.hparams),
    }


def _on_cpu(state: Mapping[str, Tensor]) -> StateDict:
    return {name: value.detach().cpu().clone() for name, value in state.items()}


def merge_file(method: str, size: int, sizes: Sequence[int]) -> Path:
    """Where a merge of `size` ingredients lies below `merges`, of a comparison over `sizes`."""
    of = f"{size}-networks" if len(sizes) > 1 else ""
    return Path(of) / f"{file_name(method)}.ckpt"


def reference_ensemble(recipes: Sequence[Recipe]) -> str | None:
    """The name of the ensemble that merges are compared with: the first one of logits, if any."""
    return next((one.name for one in recipes if one.aggregate.combines == "logits"), None)


def network_name(module: LightningModule) -> str:
    """What to call the ingredients' architecture."""
    return str(dict(module.hparams).get("model") or type(module).__name__)


def file_name(method: str) -> str:
    """A method's name as a file's: lower case, words joined by hyphens."""
    words = "".join(letter if letter.isalnum() else " " for letter in method.lower()).split()
    return "-".join(words)
