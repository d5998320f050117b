"""Exports merged networks: safetensors, timm's configuration, and a model card."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from lightning_merge.checkpoint import (
    Checkpoint,
    StateDict,
    read_checkpoint,
    write_safetensors,
)
from lightning_merge.errors import ArchitectureMismatchError, ConfigError
from lightning_merge.files import claim_folder, write_json, write_text, written_together
from lightning_merge.model_card import model_card
from lightning_merge.network_programs import check_installed, example_images, write_program
from lightning_merge.preprocessing import preprocessing_of
from lightning_merge.safetensors_file import layout
from lightning_merge.state_dicts import table_of
from lightning_merge.tensor_names import unwrapped
from lightning_merge.untrusted import bounded, check_arguments

_INSTEAD = "export its state dict alone, saved with torch.save"
_FILES = ("model.safetensors", "config.json", "README.md")


def export(
    checkpoint: str | Path,
    output: str | Path,
    result: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    onnx: bool = False,
    torch_export: bool = False,
) -> Path:
    """Writes a folder with a network's weights, its architecture and a model card.

    If the checkpoint names its timm network (those of `ImageClassifier` do), the folder can be
    loaded with `timm.create_model("local-dir:FOLDER", pretrained=True)`; networks that this
    package registers need `import lightning_merge.networks` first. The preprocessing is what the
    checkpoint records of its data module, and is left out if it records none. Of any other
    checkpoint the weights are written under their own names.

    Args:
        checkpoint: A checkpoint, merged or not.
        output: The folder; created if missing.
        result: What `merge` wrote to `result.json`: recipe, ingredients, data and metrics for
            the card.
        overwrite: Whether an export in the folder may be overwritten.
        onnx: Whether to write `model.onnx` as well, opened again and compared with the network.
        torch_export: Whether to write `model.pt2` (`torch.export`) as well, likewise.

    Returns:
        The folder, with `model.safetensors`, `README.md` and, for timm, `config.json`.

    Raises:
        CheckpointError: If the checkpoint cannot be read, or safetensors lacks one of its dtypes.
        ArchitectureMismatchError: If its weights do not fit the network that it names.
        ConfigError: If its hyper-parameters are not those of a network, `result` is damaged, or
            a program of the network cannot be written, or computes something else.
        OutputExistsError: If the folder already contains an export.
    """
    if onnx:
        check_installed()
    read = read_checkpoint(checkpoint)
    network = _timm_network(read)
    if network is None:
        layout(table_of(read.state_dict), {})
    try:
        card = model_card(read, result or {}, network is not None)
    except (AttributeError, LookupError, TypeError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(
            f"the card of {read.path} cannot be written, its notes or result.json are damaged "
            f"({type(error).__name__}: {error}): give --result the file as `merge` wrote it"
        ) from error
    programs = [name for name, wanted in (("onnx", onnx), ("pt2", torch_export)) if wanted]
    images = example_images(read, network) if programs else None
    # Everything is read and checked before anything is written.
    files = (*_FILES, *(f"model.{ending}" for ending in programs))
    folder = claim_folder(output, files, overwrite)
    with written_together():
        if network is None:
            write_safetensors(folder / "model.safetensors", read.state_dict)
        else:
            write_safetensors(folder / "model.safetensors", network.state_dict())
            write_json(folder / "config.json", _timm_config(network, read))
        for ending in programs:
            write_program(network, images, folder / f"model.{ending}")
        write_text(folder / "README.md", card)
    return folder


def _timm_network(read: Checkpoint) -> Any:
    import timm

    import lightning_merge.networks  # noqa: F401  (registers our names with timm)

    said = read.hyper_parameters
    name = said.get("model")
    if not isinstance(name, str) or not timm.is_model(name):
        return None
    arguments: dict[str, Any] = {
        key: said[key] for key in ("num_classes", "in_chans") if key in said
    }
    more = said.get("model_kwargs") or {}
    check_arguments(read.path, {"model": name, "model_kwargs": more, **arguments}, _INSTEAD)
    with bounded(read.path, read.state_dict, _INSTEAD):
        network = timm.create_model(name, **arguments, **more)
    expected = network.state_dict()
    names = unwrapped(read.state_dict)
    state = whole = {bare: read.state_dict[given] for bare, given in names.items()}
    # A loss with weights, or metrics, may lie beside the network.
    for part in dict.fromkeys(key.partition(".")[0] + "." for key in whole):
        own: StateDict = {
            key.removeprefix(part): value for key, value in whole.items() if key.startswith(part)
        }
        if own.keys() == expected.keys():
            state = own
            break
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise ArchitectureMismatchError(
            f"{read.path}: its weights are not those of '{name}', which its hyper-parameters "
            "name; export the checkpoint as it was written"
        ) from error
    return network


def _timm_config(network: Any, read: Checkpoint) -> dict[str, Any]:
    # Not timm's `save_for_hf`: it would copy the origin, license and preprocessing of timm's own
    # weights of this architecture.
    said, of_architecture = read.hyper_parameters, network.pretrained_cfg
    arguments = dict(said.get("model_kwargs") or {})
    if said.get("in_chans", 3) != 3:
        arguments["in_chans"] = said["in_chans"]
    prepared = preprocessing_of(read.content) or {}
    if not prepared and of_architecture.get("fixed_input_size"):
        size = arguments.get("img_size") or of_architecture["input_size"][1:]
        height, width = (size, size) if isinstance(size, int) else size
        prepared = {"input_size": [said.get("in_chans", 3), height, width]}
    layers = ("fixed_input_size", "first_conv", "classifier")
    return {
        "architecture": of_architecture["architecture"],
        "num_classes": network.num_classes,
        "num_features": network.num_features,
        "model_args": arguments,
        "pretrained_cfg": {
            **{name: of_architecture[name] for name in layers if name in of_architecture},
            "custom_load": False,
            "num_classes": network.num_classes,
            **prepared,
            **({"crop_mode": "center"} if "crop_pct" in prepared else {}),
        },
    }
