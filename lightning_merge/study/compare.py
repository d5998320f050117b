"""Several recipes on one pool of ingredients: a row for each, and the merged weights."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule
from lightning.pytorch import __version__ as lightning_version

from lightning_merge.checkpoint import StateDict
from lightning_merge.errors import ConfigError
from lightning_merge.modules import MergeModule
from lightning_merge.study.choice import Choice
from lightning_merge.study.measure import Measurement, measure
from lightning_merge.study.pool import Pool
from lightning_merge.study.recipe import Recipe
from lightning_merge.study.report import AVERAGE


@dataclass
class Outcome:
    """What one recipe gave.

    Attributes:
        measurement: Its row.
        content: The checkpoint of the merged network; None for an ensemble.
        choices: What was chosen on validation data on the way (`Choice.plain`).
        chosen: The same in words, for the row and the terminal; empty if nothing was.
    """

    measurement: Measurement
    content: dict[str, Any] | None = None
    choices: list[dict[str, Any]] = field(default_factory=list)
    chosen: str = ""

    def row(self) -> dict[str, Any]:
        """The measurement's row, with what was chosen where something was."""
        row = self.measurement.row()
        return {**row, "chosen": self.chosen} if self.chosen else row


def check_names(recipes: Sequence[Recipe]) -> None:
    """Checks that there are recipes, and that rows and files can be named by their names.

    Raises:
        ConfigError: If not.
    """
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


def run_recipe(recipe: Recipe, pool: Pool) -> Outcome:
    """Makes and measures one merge.

    Args:
        recipe: What to do.
        pool: The ingredients and their data.

    Returns:
        The row, and the merged checkpoint.
    """
    pool.learned_from, pool.selected = 0, []
    module, seconds = recipe(pool)
    measurement = measure(
        module,
        pool.data,
        pool.trainer(),
        method=recipe.name,
        kind="merge" if recipe.aggregate.merges else "ensemble",
        seconds=seconds,
        seed=pool.seed,
        train_examples=pool.learned_from,
    )
    measurement.pool_size = len(pool.states)
    choices = _choices(recipe, pool)
    content = merged_content(module, recipe, pool) if recipe.aggregate.merges else None
    return Outcome(
        measurement,
        content,
        [choice.plain() for choice in choices],
        "; ".join(dict.fromkeys(str(choice) for choice in choices)),
    )


def measure_ingredients(pool: Pool) -> Iterator[Measurement]:
    """A row for each ingredient, as it is."""
    for state, name in zip(pool.states, pool.names, strict=True):
        trainer = pool.trainer()
        yield measure(
            pool.build(state), pool.data, trainer, name, "ingredient", None, pool.seed, None
        )


def merged_content(module: LightningModule, recipe: Recipe, pool: Pool) -> dict[str, Any]:
    """What a merged checkpoint holds: Lightning's own entries, and where it came from.

    Args:
        module: The merged module.
        recipe: The recipe that made it.
        pool: The pool that it was made of.

    Returns:
        A checkpoint that the ingredients' class loads with `load_from_checkpoint`, with the
        recipe's name, the ingredients' hashes and the alphas (if any) under
        `lightning_merge`: those of the first ingredient, and where there are more than two,
        `other_alphas`, a list of those of the others.
    """
    state: StateDict = {name: value.cpu().clone() for name, value in module.state_dict().items()}
    origin: dict[str, Any] = {"recipe": recipe.name, "ingredients": pool.digests}
    choices = _choices(recipe, pool)
    if choices:
        origin["choices"] = [choice.plain() for choice in choices]
    if isinstance(module, MergeModule):
        first, *others = (
            {name: value.cpu().clone() for name, value in one.items()}
            for one in module.alphas_by_ingredient()
        )
        origin["alphas"] = first
        if others:
            origin["other_alphas"] = others
    return {
        "epoch": 0,
        "global_step": 0,
        "pytorch-lightning_version": lightning_version,
        "state_dict": state,
        "hyper_parameters": dict(pool.module.hparams),
        "lightning_merge": origin,
    }


def _choices(recipe: Recipe, pool: Pool) -> list[Choice]:
    return [*pool.choices(recipe.align), *pool.selected]


def merge_path(folder: Path, method: str, size: int, sizes: Sequence[int]) -> Path:
    """Where a merge of `size` ingredients is stored, of a comparison over `sizes` of them."""
    of = f"{size}-networks" if len(sizes) > 1 else ""
    return folder / "merges" / of / f"{file_name(method)}.ckpt"


def network_name(module: LightningModule) -> str:
    """What to call the ingredients' architecture."""
    return str(dict(module.hparams).get("model") or type(module).__name__)


def file_name(method: str) -> str:
    """A method's name as a file's: lower case, words joined by hyphens."""
    words = "".join(letter if letter.isalnum() else " " for letter in method.lower()).split()
    return "-".join(words)
