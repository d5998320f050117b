"""The modules and heads of a study's tasks: heads are fitted, or made of text under a CLIP."""

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule

from lightning_merge.checkpoint import Checkpoint
from lightning_merge.data import prompts, readable
from lightning_merge.errors import ConfigError
from lightning_merge.recipe.build import Plain, build_module
from lightning_merge.recipe.described_module import module_of
from lightning_merge.recipe.task_context import loaded


def reads_text(config: Mapping[str, Any] | None) -> bool:
    """Whether the heads of a model's tasks are made of text, as a `CLIPClassifier`'s are."""
    folder, _, name = str((config or {}).get("class_path", "")).rpartition(".")
    try:
        found = getattr(import_module(folder or "lightning_merge.modules"), name, None)
    except ImportError:
        return False
    return bool(getattr(found, "reads_text", False))


def module_for(
    config: Plain | None, data: LightningDataModule, checkpoint: Checkpoint | None = None
) -> LightningModule:
    """A module with as many classes as the data have; its weights do not matter.

    `config` has `class_path` and `init_args`; without it the checkpoint, whose weights are going to
    be loaded, describes the module.
    """
    if config is None:
        assert checkpoint is not None
        return module_of(checkpoint)
    arguments = _arguments(config, data)
    if reads_text(config):
        # Neither weights nor heads are made where others are put in their place.
        saved = {} if checkpoint is None else checkpoint.hyper_parameters or {}
        origin = saved.get("made_from") or {"pretrained": arguments.get("pretrained")}
        arguments |= {"pretrained": None, "class_names": None, "made_from": origin}
    module = build_module({**config, "init_args": arguments})
    if next(module.parameters(), None) is None:
        module.configure_model()
    return module


def module_with_own_head(checkpoint: Checkpoint, model: Plain | None) -> LightningModule:
    """A checkpoint's network, with the head that it has, of whatever task."""
    data = LightningDataModule()
    if "num_classes" in checkpoint.hyper_parameters:
        setattr(data, "num_classes", checkpoint.hyper_parameters["num_classes"])  # noqa: B010
    return loaded(module_for(model, data, checkpoint), checkpoint.state_dict, str(checkpoint.path))


def starting_module(config: Plain, data: LightningDataModule) -> LightningModule:
    """The module with its own pre-trained weights and any head; a `ConfigError` without them."""
    arguments = _arguments(config, data)
    if reads_text(config):
        arguments["class_names"] = None
    return build_module({**config, "init_args": arguments})


def module_to_train(
    config: Plain, data: LightningDataModule, sentences: Sequence[str] | str | None = None
) -> LightningModule:
    """The module that training starts from; a CLIP's head is made of the classes' names.

    These are the `class_names` of the data module, which is set up. The sentences are prompts of a
    CLIP, or the name of a set of them in `prompts.yaml`; None for the data's `prompt_set`.
    """
    if not reads_text(config):
        return module_for(config, data)
    names = getattr(data, "class_names", None)
    if not names:
        raise ConfigError(
            f"{type(data).__name__} does not name its classes: give it an attribute class_names"
        )
    known = getattr(data, "prompt_set", "photo")
    if sentences is None or isinstance(sentences, str):
        sentences = prompts(sentences or known)
    arguments = _arguments(config, data)
    arguments |= {
        "class_names": [readable(known, name) for name in names],
        "prompts": list(sentences),
    }
    return build_module({**config, "init_args": arguments})


def check_prompts(config: Plain | None, task: Mapping[str, Any]) -> None:
    """Checks a task's own prompts and the model's text tower; a `ConfigError` if they fail."""
    given = task.get("prompts")
    if given is None:
        return
    whose = f"task '{task['name']}'"
    if not reads_text(config):
        raise ConfigError(f"{whose}: only a CLIPClassifier reads prompts: leave them out")
    if isinstance(given, str):
        prompts(given)
    elif not given or any(not isinstance(one, str) or one.count("{}") != 1 for one in given):
        raise ConfigError(f"{whose}: give as prompts sentences with one {{}} for the class's name")


def check_images_for(module: LightningModule, data: LightningDataModule, task: str) -> None:
    """Checks that images are such as a network declares; a `ConfigError` if not."""
    wanted = getattr(module, "image_size", None)
    if wanted is None:
        return
    size, channels = getattr(data, "image_size", None), getattr(data, "in_chans", None)
    if size not in (None, wanted) or channels not in (None, 3):
        raise ConfigError(
            f"task '{task}': the images are {size}x{size} with {channels} channels, and the image "
            f"tower takes {wanted}x{wanted} with 3: set resize: {wanted} and channels: 3 in "
            "data_defaults"
        )
    given = getattr(data, "normalisation", None)
    trained = getattr(module, "image_mean", None), getattr(module, "image_std", None)
    if given is not None and None not in trained and (given.mean, given.std) != trained:
        raise ConfigError(
            f"task '{task}': the images are normalised otherwise than those that the image tower "
            "was trained with: set normalise: clip in data_defaults"
        )


def _arguments(config: Plain, data: LightningDataModule) -> dict[str, Any]:
    arguments = dict(config.get("init_args") or {})
    if hasattr(data, "num_classes"):
        arguments["num_classes"] = data.num_classes
    return arguments
