"""The module that a checkpoint describes, made without trusting the checkpoint."""

import inspect
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import LightningModule

from lightning_merge.checkpoint import Checkpoint
from lightning_merge.errors import ConfigError
from lightning_merge.modules import CLIPClassifier, ImageClassifier
from lightning_merge.untrusted import bounded, check_arguments

_OWN: Mapping[str, type[LightningModule]] = {
    kind.__name__: kind for kind in (ImageClassifier, CLIPClassifier)
}
# Of training, not of the network; they may name what would be imported.
_LEFT_OUT = ("optimizer", "lr_scheduler")
_SAY = "say what it is of with --model your.module.Class and its --model.init_args..."


def module_of(checkpoint: Checkpoint) -> LightningModule:
    """The module that a Lightning checkpoint's hyper-parameters describe, with initial weights.

    A file is a stranger's: only this package's own classes are made from what it describes, with
    plain values as arguments. Nothing is imported because a file names it, and nothing is fetched
    from the internet.
    """
    saved, path = checkpoint.hyper_parameters, checkpoint.path
    if not saved:
        raise ConfigError(
            f"{path} does not say what network it is of: add --model ImageClassifier and its "
            "--model.init_args..."
        )
    kind = _own_class(saved, path)
    known = inspect.signature(kind).parameters
    given = {
        name: value
        for name, value in saved.items()
        if not name.startswith("_") and name not in _LEFT_OUT
    }
    strange = [name for name in given if name not in known]
    if strange:
        article = "an" if kind.__name__[0] in "AEIOU" else "a"
        raise ConfigError(
            f"{path} is not of {article} {kind.__name__} (it has {', '.join(strange)}): {_SAY}"
        )
    if isinstance(given.get("metrics"), list):
        # Others are named by the path of their class.
        given["metrics"] = [name for name in given["metrics"] if isinstance(name, str)]
    check_arguments(path, given, _SAY)
    if "pretrained" in given:
        given["pretrained"] = None if kind is CLIPClassifier else False
    with bounded(path, checkpoint.state_dict, _SAY):
        return kind(**given)


def _own_class(saved: Mapping[str, Any], path: object) -> type[LightningModule]:
    named = saved.get("_class_path")
    if named is None:
        return ImageClassifier
    package, _, name = str(named).rpartition(".")
    if package.partition(".")[0] != "lightning_merge" or name not in _OWN:
        raise ConfigError(
            f"{path} names the class '{str(named)[:80]}', which is not imported because a file "
            f"says so: {_SAY}"
        )
    return _OWN[name]
