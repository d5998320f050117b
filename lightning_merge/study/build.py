"""Objects from plain configuration: modules, data modules, recipes, Trainers."""

import copy
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from jsonargparse import ArgumentError, ArgumentParser
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loggers import Logger

from lightning_merge.aggregate.heads import share_head
from lightning_merge.callbacks.fit_progress import FitProgress
from lightning_merge.checkpoint import (
    Checkpoint,
    check_ingredients,
    digest,
    fit_names,
    prefixed,
    read_checkpoint,
)
from lightning_merge.errors import ConfigError
from lightning_merge.modules import ImageClassifier
from lightning_merge.study.pool import Pool
from lightning_merge.study.recipe import Recipe

T = TypeVar("T")


def build_data(config: Mapping[str, Any]) -> LightningDataModule:
    """A data module from its `class_path` and `init_args`."""
    return _build(LightningDataModule, config, "data")


def build_module(config: Mapping[str, Any]) -> LightningModule:
    """A LightningModule from its `class_path` and `init_args`."""
    return _build(LightningModule, config, "model")


def build_recipe(config: Mapping[str, Any]) -> Recipe:
    """A recipe from its plain configuration."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--recipe", type=Recipe)
    try:
        parsed = parser.parse_object({"recipe": dict(config)})
    except ArgumentError as error:
        raise ConfigError(f"recipe '{config.get('name')}': {error}") from error
    recipe: Recipe = parser.instantiate_classes(parsed)["recipe"]
    return recipe


def instantiate_trainer(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The Trainer's arguments with callbacks made, and the loggers beside them.

    Args:
        settings: The Trainer's arguments as plain configuration.

    Returns:
        Those that are set; `logger` is taken out, and `loggers` is a list, empty where
        none was chosen.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Trainer, "trainer", instantiate=False, fail_untyped=False)
    parsed = parser.parse_object({"trainer": dict(settings)})
    made = dict(parser.instantiate_classes(parsed)["trainer"])
    logger = made.pop("logger", None)
    # True is Lightning's default logger, which a command of many fits has no use for.
    chosen = [] if logger in (None, True, False) else logger
    made["loggers"] = chosen if isinstance(chosen, list) else [chosen]
    return {name: value for name, value in made.items() if value is not None}


def changed_trainer(trainer: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a Trainer for one purpose.

    Args:
        trainer: The Trainer's arguments for everything, with callbacks made.
        changes: Those that are otherwise, as plain configuration; `callbacks` take the place of
            the others'.

    Returns:
        The arguments, with callbacks made.

    Raises:
        ConfigError: If there is no such argument, or a callback cannot be made.
    """
    if not changes:
        return dict(trainer)
    try:
        # Parsing changes what it is given.
        made = instantiate_trainer(copy.deepcopy(dict(changes)))
    except ArgumentError as error:
        raise ConfigError(f"Trainer: {error}") from error
    return {**trainer, **{name: made.get(name) for name in changes}}


def open_pool(config: Mapping[str, Any]) -> tuple[Pool, list[Logger]]:
    """The pool that the options of `merge` and `compare` describe, and their loggers.

    Args:
        config: `checkpoints`, `model` (or None), `data`, `trainer`, `seed`,
            `statistics_examples` (or None) and `heads` (or None).

    Returns:
        The pool and the loggers.

    Raises:
        MergeError: If a checkpoint cannot be read or does not fit.
    """
    checkpoints = [read_checkpoint(path) for path in config["checkpoints"]]
    names = [str(checkpoint.path) for checkpoint in checkpoints]
    module = build_module(config["model"]) if config.get("model") else module_of(checkpoints[0])
    expected = module.state_dict()
    own = [prefixed(checkpoint.state_dict, expected) for checkpoint in checkpoints]
    shared, heads = share_head(own, names, config["heads"]) if config["heads"] else (own, [])
    check_ingredients(shared, names)
    states = [fit_names(state, expected, name) for state, name in zip(shared, names, strict=True)]
    trainer = instantiate_trainer(config["trainer"])
    loggers = trainer.pop("loggers")
    data = build_data(config["data"])
    pool = Pool(
        module,
        states,
        names,
        data,
        trainer_maker(trainer),
        seed=config["seed"],
        statistics_examples=config["statistics_examples"],
        heads=heads,
    )
    # Of what the files hold, not of what the pool made of them.
    pool.digests = [digest(state) for state in own]
    return pool, loggers


def module_of(checkpoint: Checkpoint) -> LightningModule:
    """The module that a Lightning checkpoint's hyper-parameters describe.

    Raises:
        ConfigError: If the checkpoint says nothing of its module.
    """
    saved = checkpoint.hyper_parameters
    if not saved:
        raise ConfigError(
            f"{checkpoint.path} does not say what network it is of: add --model ImageClassifier "
            "and its --model.init_args..."
        )
    arguments = {name: value for name, value in saved.items() if not name.startswith("_")}
    if "pretrained" in arguments:
        arguments["pretrained"] = False
    known = inspect.signature(ImageClassifier).parameters
    kind = saved.get("_class_path")
    if kind is None and not arguments.keys() <= known.keys():
        raise ConfigError(
            f"{checkpoint.path} is not of an ImageClassifier (it has {', '.join(arguments)}): say "
            "what it is of with --model your.module.Class and its --model.init_args..."
        )
    kind = kind or "lightning_merge.modules.ImageClassifier"
    return build_module({"class_path": kind, "init_args": arguments})


def trainer_maker(settings: Mapping[str, Any], progress: bool = True) -> Callable[..., Trainer]:
    """A function that makes Trainers for the many short runs of a merge or study.

    They write no logs and no checkpoints of their own: a study stores what it finishes.

    Args:
        settings: The Trainer's arguments; `logger` is left out.
        progress: Whether a fit shows its progress.

    Returns:
        A function whose keyword arguments override `settings`.
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
        return Trainer(**arguments)

    return make


def _build(kind: type[T], config: Mapping[str, Any], name: str) -> T:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(kind, name, required=True)
    try:
        parsed = parser.parse_object({name: dict(config)})
    except ArgumentError as error:
        raise ConfigError(f"{name}: {error}") from error
    made: T = parser.instantiate_classes(parsed)[name]
    return made
