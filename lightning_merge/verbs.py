"""`merge` and `compare` as functions, which the commands call."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule

from lightning_merge.checkpoint import StateDict, write_checkpoint
from lightning_merge.errors import ConfigError
from lightning_merge.files import check_claim, claim_folder, write_json, written_together
from lightning_merge.folder_lock import alone_in_output
from lightning_merge.loggers import log_config
from lightning_merge.measure.measurement import Measurement
from lightning_merge.measure.one_batch import check_one_batch
from lightning_merge.measure.outcome import (
    Outcome,
    check_names,
    measure_ingredients,
    merge_file,
    network_name,
    reference_ensemble,
    run_recipe,
)
from lightning_merge.measure.sweep import Sweep, chosen_sweeps
from lightning_merge.measure.sweep import sweeps as sweep_kinds
from lightning_merge.plots.alpha_histograms import alphas_of
from lightning_merge.provenance import provenance
from lightning_merge.quiet_trainers import quiet_trainers
from lightning_merge.randomness import randomness_of_caller
from lightning_merge.recipe.build import (
    Plain,
    build_recipe,
    instantiate_trainer,
    trainer_maker,
)
from lightning_merge.recipe.context import Context, check_statistics_examples
from lightning_merge.recipe.opening import Network, open_context
from lightning_merge.recipe.recipe import Recipe
from lightning_merge.report.comparison import Comparison
from lightning_merge.report.publish import WRITTEN
from lightning_merge.report.results import Merges, StoredMerge
from lightning_merge.study.plan import check_pool_sizes

Data = LightningDataModule | Mapping[str, Any]
"""A data module, or its `class_path` and `init_args`."""
Model = LightningModule | Mapping[str, Any]
Given = Recipe | Mapping[str, Any]

OnRow = Callable[[Measurement], None]

_MERGE_FILES = ("merged.ckpt", "result.json")


@dataclass(repr=False)
class Merge(Comparison):
    """One recipe's result: its row, and the merged network, saved as `merged.ckpt`."""

    outcome: Outcome | None = None

    def save(self, folder: str | Path, overwrite: bool = False) -> Path:
        """Writes `merged.ckpt` and `result.json`.

        Args:
            folder: Where to.
            overwrite: Whether an existing merge in the folder may be overwritten.

        Raises:
            OutputExistsError: If there is one that may not be overwritten.
        """
        path = claim_folder(folder, _MERGE_FILES, overwrite)
        assert self.outcome is not None
        assert self.outcome.content is not None
        known = {name: self.details[name] for name in ("config", "ingredients", "split_hash")}
        measured = {"measurement": self.rows[0].row(), "choices": self.outcome.choices}
        with written_together():
            write_checkpoint(path / "merged.ckpt", self.outcome.content)
            write_json(path / "result.json", {**self.made_by, **known, **measured})
        return path


@quiet_trainers()
@randomness_of_caller()
@alone_in_output
def merge(
    networks: Sequence[Network],
    recipe: Given,
    data: Data,
    *,
    model: Model | None = None,
    trainer: Mapping[str, Any] | None = None,
    seed: int = 0,
    heads: str | None = None,
    widen: bool = False,
    statistics_examples: int | None = None,
    output: str | Path | None = None,
    overwrite: bool = False,
    progress: bool = True,
    command: list[str] | None = None,
    config: Plain | None = None,
    on_context: Callable[[Context], None] | None = None,
) -> Merge:
    """Runs one recipe on trained networks, and tests the merged network.

    Args:
        networks: Two or more ingredients of one architecture: checkpoint paths, state dicts or
            networks; the others are aligned to the first.
        recipe: A `Recipe`, or its plain configuration.
        data: The data to merge and test on: a LightningDataModule, or its configuration.
        model: The ingredients' LightningModule, if the first network does not determine it.
        trainer: The Trainer's arguments.
        seed: Seeds all random choices of the merge.
        heads: For ingredients of different tasks: `first` gives all of them the first one's
            head; a regular expression gives them the first one's tensors of matching names.
            `join` makes one network for all classes: bodies merged, heads side by side in the
            networks' order.
        widen: Whether networks of one family may differ in width: narrower ones are brought to the
            shapes of the widest (`lightning_merge.align.widened`), and compute what they did.
        statistics_examples: How many training examples to use for statistics; None for all.
        output: A folder to save the result in; None to save nothing.
        overwrite: Whether an existing result in the folder may be overwritten.
        progress: Whether to show progress bars.
        command: The command to store; the process's own if not given.
        config: The configuration to store.
        on_context: Called with the context of the ingredients when they have been read.

    Returns:
        The result: `.rows`, `.table()`, `.merged[name]`, `.save(folder)`.

    Raises:
        MergeError: If a checkpoint cannot be read or does not fit, the recipe does not suit the
            ingredients, or the folder already contains a result, or another process works in it.
    """
    built = build_recipe(recipe)
    if built.aggregate.is_ensemble:
        raise ConfigError(
            f"recipe '{built.name}' is an ensemble, not one network: `compare` evaluates those"
        )
    if output is not None:
        check_claim(output, _MERGE_FILES, overwrite)
    settings = {
        "heads": heads,
        "widen": widen,
        "seed": seed,
        "statistics_examples": statistics_examples,
        "progress": progress,
    }
    context, _ = _opened(networks, data, trainer, model, settings)
    if on_context is not None:
        on_context(context)
    built.check_context(context)
    if output is not None:
        claim_folder(output, _MERGE_FILES, overwrite)
    outcome = run_recipe(built, context)
    result = Merge(
        title=built.name,
        rows=[outcome.measurement],
        merged=Merges({built.name: _in_memory(context, outcome, Path("merged.ckpt"))}),
        made_by=provenance(command),
        details=_details(networks, context, [built], config),
        alphas=outcome.alphas,
        alphas_of=_among(outcome),
        outcome=outcome,
    )
    if output is not None:
        result.save(output, overwrite=True)
    return result


@quiet_trainers()
@randomness_of_caller()
@alone_in_output
def compare(
    networks: Sequence[Network],
    recipes: Sequence[Given],
    data: Data,
    *,
    model: Model | None = None,
    trainer: Mapping[str, Any] | None = None,
    seed: int = 0,
    heads: str | None = None,
    widen: bool = False,
    statistics_examples: int | None = None,
    pool_sizes: Sequence[int] = (),
    title: str = "Comparison",
    output: str | Path | None = None,
    overwrite: bool = False,
    progress: bool = True,
    command: list[str] | None = None,
    config: Plain | None = None,
    on_context: Callable[[Context], None] | None = None,
    on_row: OnRow | None = None,
    **sweeps: Any,
) -> Comparison:
    """Runs several recipes and ensembles on the same networks, for one table.

    Args:
        networks: As for `merge`.
        recipes: Recipes, as objects or as plain configuration, with different names.
        data: As for `merge`.
        model: As for `merge`.
        trainer: As for `merge`.
        seed: As for `merge`.
        heads: As for `merge`.
        widen: As for `merge`.
        statistics_examples: As for `merge`.
        pool_sizes: For each number n, run every recipe on the first n networks; on all networks
            if not given.
        title: The heading of tables and figures.
        output: As for `merge`; merged checkpoints are written there as they are made, or at the
            end where they replace others.
        overwrite: As for `merge`.
        progress: As for `merge`.
        command: As for `merge`.
        config: As for `merge`.
        on_context: As for `merge`.
        on_row: Called with each measurement when it is made.
        **sweeps: Further measurements: `barrier=11`, `triangle=7`, `magnitudes=[0.5, 1, 2]`, or
            the option of any registered sweep.

    Returns:
        The result: `.rows`, `.frame()`, `.table()`, `.figures()`, `.merged[name]`,
        `.save(folder)`.

    Raises:
        MergeError: As `merge` does.
    """
    built = [build_recipe(recipe) for recipe in recipes]
    check_names(built)
    check_pool_sizes(pool_sizes, len(networks))
    check_statistics_examples(statistics_examples)
    sizes = list(pool_sizes) or [len(networks)]
    chosen = _chosen(sweeps)
    for sweep, value in chosen.items():
        sweep.check(value, len(networks))
    if output is not None:
        check_claim(output, WRITTEN, overwrite)
    settings = {
        "heads": heads,
        "widen": widen,
        "seed": seed,
        "statistics_examples": statistics_examples,
        "progress": progress,
    }
    context, loggers = _opened(networks, data, trainer, model, settings)
    if on_context is not None:
        on_context(context)
    for size in sizes:
        for recipe in built:
            recipe.check_context(context.first(size))
    for sweep in chosen:
        sweep.check_context(context)
    folder = None if output is None else claim_folder(output, WRITTEN, overwrite)
    # Earlier results describe the merges that lie beside them: both stay until the end.
    at_once = folder is not None and not (folder / "results.json").exists()
    details = _details(networks, context, built, config)
    for logger in loggers:
        log_config(logger, details["config"])
    rows: list[Measurement] = []

    def add(row: Measurement) -> None:
        rows.append(row)
        if on_row is not None:
            on_row(row)

    for row in measure_ingredients(context):
        add(row)
    contents: dict[tuple[str, int], Plain | None] = {}
    alphas: StateDict | None = None
    among = 2
    stored: dict[str, StoredMerge] = {}
    for size in sizes:
        for recipe in built:
            outcome = run_recipe(recipe, context.first(size))
            add(outcome.measurement)
            contents[recipe.name, size] = outcome.content
            if outcome.alphas:
                alphas, among = outcome.alphas, _among(outcome)
            name = recipe.name + (f", {size} ingredients" if len(sizes) > 1 else "")
            if outcome.content is not None:
                one = _in_memory(context, outcome, merge_file(recipe.name, size, sizes))
                stored[name] = one
                if folder is not None and at_once:
                    one.write(folder / "merges" / one.path)
            if outcome.choices:
                details["choices"][name] = outcome.choices

    def weights(name: str, size: int) -> StateDict:
        return (contents[name, size] or {})["state_dict"]

    result = Comparison(
        title=title,
        rows=rows,
        merged=Merges(stored),
        made_by=provenance(command),
        details=details,
        swept={
            sweep.key: sweep.measure(context, sweep.settings(value, recipes, sizes), weights)
            for sweep, value in chosen.items()
        },
        alphas=alphas,
        alphas_of=among,
        loggers=loggers,
    )
    if folder is not None:
        if not at_once:
            result.write_merges(folder)
        result.write(folder)
        result.remove_other_merges(folder)
    return result


def _among(outcome: Outcome) -> int:
    return alphas_of((outcome.content or {}).get("lightning_merge", {}))


def _opened(
    networks: Sequence[Network],
    data: Data,
    trainer: Mapping[str, Any] | None,
    model: Model | None,
    settings: Plain,
) -> tuple[Context, list[Any]]:
    """The networks' context, after trying one batch, and the Trainer's loggers."""
    arguments = instantiate_trainer(trainer or {})
    loggers = arguments.pop("loggers")
    made = trainer_maker(arguments, settings["progress"])
    context = open_context(networks, data, made, model, **settings)
    check_one_batch(context)
    return context, loggers


def _chosen(options: Mapping[str, Any]) -> dict[Sweep, Any]:
    known = [entry.value.option for entry in sweep_kinds]
    for unknown in sorted(set(options) - set(known)):
        raise ConfigError(f"compare has no option '{unknown}': the sweeps are {', '.join(known)}")
    return chosen_sweeps(options)


def _details(
    networks: Sequence[Network], context: Context, recipes: Sequence[Recipe], config: Plain | None
) -> Plain:
    # Tables have short names; here stands which files they were.
    files = [
        str(network) if isinstance(network, str | Path) else name
        for network, name in zip(networks, context.names, strict=True)
    ]
    named = {"recipes": [{"name": recipe.name} for recipe in recipes]}
    return {
        "config": named if config is None else config,
        "network": network_name(context.module),
        "ensemble": reference_ensemble(recipes),
        "ingredients": dict(zip(files, context.digests, strict=True)),
        "split_hash": getattr(context.data, "split_hash", None),
        "class_names": getattr(context.data, "class_names", None),
        "statistics_examples": context.statistics_examples,
        "choices": {},
    }


def _in_memory(context: Context, outcome: Outcome, path: Path) -> StoredMerge:
    content = outcome.content
    assert content is not None
    return StoredMerge(
        path,
        lambda: context.build(content["state_dict"]),
        lambda target: write_checkpoint(target, content),
    )
