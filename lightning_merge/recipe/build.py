"""Objects from plain configuration: modules, data modules, recipes, Trainers."""

import copy
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import yaml
from jsonargparse import ArgumentError, ArgumentParser
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_merge.align import matchings
from lightning_merge.callbacks.fit_progress import FitProgress
from lightning_merge.errors import ConfigError
from lightning_merge.recipe.aggregate import aggregates
from lightning_merge.recipe.one_device import on_one_device
from lightning_merge.recipe.recalibration import recalibrations
from lightning_merge.recipe.recipe import Recipe
from lightning_merge.recipe.selection import selections

T = TypeVar("T")
Plain = dict[str, Any]
"""Nested dicts, lists, numbers and strings, as in a YAML file."""


def build_data(config: Mapping[str, Any]) -> LightningDataModule:
    """A data module from its `class_path` and `init_args`."""
    return _build(LightningDataModule, config, "data")


def build_module(config: Mapping[str, Any]) -> LightningModule:
    """A LightningModule from its `class_path` and `init_args`."""
    return _build(LightningModule, config, "model")


def build_recipe(config: Recipe | Mapping[str, Any]) -> Recipe:
    """A recipe from its plain configuration, or as it is; a `ConfigError` if it cannot be made."""
    if isinstance(config, Recipe):
        return config
    load_parts()
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--recipe", type=Recipe)
    return _made(parser, "recipe", config, f"recipe '{config.get('name')}'")


def spelled_out(config: Mapping[str, Any]) -> Plain:
    """The options of a study with the parts that commands parse as they leave them.

    Short names become dotted paths and defaults are written out, so that a study has the same keys
    from Python, from a file and from the command line.

    Options other than model, data, recipes and Trainer stay as they are.
    """
    load_parts()
    parser = ArgumentParser(exit_on_error=False)
    kinds = {
        "model": LightningModule,
        "pretraining_model": LightningModule,
        "data": LightningDataModule,
    }
    for name, kind in kinds.items():
        if config.get(name) is not None:
            parser.add_subclass_arguments(kind, name, fail_untyped=False)
    parser.add_argument("--recipes", type=list[Recipe])
    parser.add_class_arguments(Trainer, "trainer", instantiate=False, fail_untyped=False)
    known = {*kinds, "recipes", "trainer"}
    given = {name: part for name, part in config.items() if name in known and part is not None}
    try:
        # Parsing changes what it is given.
        parsed = parser.parse_object(copy.deepcopy(given))
    except ArgumentError as error:
        raise ConfigError(_one_line(error)) from error
    return {**config, **yaml.safe_load(parser.dump(parsed, skip_none=False))}


def load_parts() -> None:
    """Imports all that a recipe can name, so that short names work as `class_path`."""
    for registry in (aggregates, matchings, recalibrations, selections):
        registry.load()


def instantiate_trainer(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The Trainer's arguments that are set, from plain configuration, with callbacks made.

    `logger` is taken out, and `loggers` is a list, empty where none was chosen.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Trainer, "trainer", instantiate=False, fail_untyped=False)
    # Parsing changes what it is given.
    made = dict(_made(parser, "trainer", copy.deepcopy(dict(settings)), "Trainer"))
    logger = made.pop("logger", None)
    # True is Lightning's default logger, which a command of many fits has no use for.
    chosen = [] if logger in (None, True, False) else logger
    made["loggers"] = chosen if isinstance(chosen, list) else [chosen]
    return {name: value for name, value in made.items() if value is not None}


def trainer_maker(settings: Mapping[str, Any], progress: bool = True) -> Callable[..., Trainer]:
    """A function that makes Trainers for the many short runs of a merge or study.

    They write no logs and no checkpoints of their own: a study stores what it finishes.

    Its keyword arguments override `settings`, of which `logger` is left out; of several devices it
    takes the first. A `ConfigError` if Lightning refuses them.
    """
    kept = {name: value for name, value in settings.items() if value is not None}
    kept.pop("logger", None)
    own: list[Callback] = list(kept.pop("callbacks", None) or [])

    def make(**changes: Any) -> Trainer:
        arguments = {**kept, **changes}
        arguments.update(
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
            num_sanity_val_steps=0,
            # Callbacks have a state, and each run is one of its own.
            callbacks=[*copy.deepcopy(own), *([FitProgress()] if progress else [])],
        )
        return _on_one_device(arguments)

    return make


def _on_one_device(arguments: Plain) -> Trainer:
    try:
        trainer = Trainer(**on_one_device(arguments))
    except (MisconfigurationException, ValueError, TypeError) as error:
        raise ConfigError(f"Trainer: {_one_line(error)}") from error
    if trainer.world_size > 1:
        raise ConfigError(
            f"Trainer: merges are made and tested on one device, not {trainer.world_size}: set "
            "devices and num_nodes to 1 (`fit` trains on several)"
        )
    return trainer


def trainer_of(config: Mapping[str, Any], progress: bool = True) -> Callable[..., Trainer]:
    """A function that makes Trainers, from the Trainer's arguments as plain configuration."""
    settings = instantiate_trainer(config)
    settings.pop("loggers")
    return trainer_maker(settings, progress)


def _build(kind: type[T], config: Mapping[str, Any], name: str) -> T:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(kind, name, required=True, fail_untyped=False)
    return _made(parser, name, config, name)


def _made(parser: ArgumentParser, name: str, config: Mapping[str, Any], what: str) -> Any:
    try:
        parsed = parser.parse_object({name: dict(config)})
    except ArgumentError as error:
        raise ConfigError(f"{what}: {_one_line(error)}") from error
    return parser.instantiate_classes(parsed)[name]


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
