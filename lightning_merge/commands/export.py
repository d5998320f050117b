"""`export`: a checkpoint as safetensors, as timm loads it, with a model card."""

from argparse import Namespace
from pathlib import Path

from lightning_merge.aggregate import write_masked
from lightning_merge.checkpoint import read_checkpoint
from lightning_merge.commands.short_errors import PlainParser
from lightning_merge.errors import ConfigError
from lightning_merge.hub import push_to_hub
from lightning_merge.model_folder import export as export_checkpoint
from lightning_merge.report.result_of_merge import result_of_merge


def export(words: list[str]) -> None:
    """Writes `model.safetensors`, `config.json` (for timm) and `README.md`."""
    parser = PlainParser(
        prog="python -m lightning_merge export",
        description="Writes a folder that timm.create_model('local-dir:FOLDER', pretrained=True) "
        "loads, with a model card; of networks that are not timm's, the weights as safetensors.",
    )
    parser.add_argument("checkpoint", type=Path, help="for example merged.ckpt of `merge`")
    parser.add_argument("--output", required=True, type=Path, help="the folder")
    parser.add_argument(
        "--result",
        type=Path,
        help="what `merge`, `compare` or `study` wrote, for the card; result.json beside the "
        "checkpoint, or results.json above its `merges` folder, if not given",
    )
    parser.add_argument("--overwrite", action="store_true", help="write over an export")
    parser.add_argument(
        "--masks",
        nargs="+",
        metavar="NAME=CHECKPOINT",
        help="networks fine-tuned from the checkpoint: written as one sum and a bit mask each, "
        "which lightning_merge.load_task(FOLDER, NAME) reads",
    )
    parser.add_argument("--threshold", type=float, default=0.4, help="of the masks")
    parser.add_argument(
        "--onnx", action="store_true", help="model.onnx too, compared with the network"
    )
    parser.add_argument(
        "--torch_export", action="store_true", help="model.pt2 too, compared with the network"
    )
    parser.add_argument(
        "--push_to_hub", metavar="USER/NAME", help="upload the folder to the Hugging Face Hub"
    )
    chosen = parser.parse_args(words)
    if chosen.masks:
        _check_unused(chosen)
        folder = _export_masks(chosen)
    else:
        folder = export_checkpoint(
            chosen.checkpoint,
            chosen.output,
            result_of_merge(chosen.checkpoint, chosen.result),
            chosen.overwrite,
            onnx=chosen.onnx,
            torch_export=chosen.torch_export,
        )
    print(f"{folder}: {', '.join(sorted(one.name for one in folder.iterdir()))}")
    if chosen.push_to_hub:
        print(push_to_hub(folder, chosen.push_to_hub, chosen.overwrite))


def _check_unused(chosen: Namespace) -> None:
    without = ("result", "onnx", "torch_export", "push_to_hub")
    unused = [f"--{name}" for name in without if getattr(chosen, name)]
    if unused:
        raise ConfigError(f"--masks goes without {', '.join(unused)}: leave one of them out")


def _export_masks(chosen: Namespace) -> Path:
    """Writes what `load_task` reads; a task has the name of its file where it is given none."""
    paths: dict[str, Path] = {}
    for given in chosen.masks:
        name, found, path = given.partition("=")
        if not found or Path(given).exists():
            # Lightning's own names have a sign of equality: epoch=1-step=40.ckpt.
            name, path = Path(given).stem, given
        if name in paths:
            raise ConfigError(f"--masks: two tasks are called '{name}': write NAME=CHECKPOINT")
        paths[name] = Path(path)
    states = {name: read_checkpoint(path).state_dict for name, path in paths.items()}
    start = read_checkpoint(chosen.checkpoint).state_dict
    return write_masked(start, states, chosen.output, chosen.threshold, chosen.overwrite)
