"""`export`: a checkpoint as safetensors, as timm loads it, with a model card."""

from pathlib import Path

from lightning_merge.commands.export_masks import export_masks
from lightning_merge.commands.short_errors import PlainParser
from lightning_merge.errors import ConfigError
from lightning_merge.files import read_json
from lightning_merge.model_folder import export as export_checkpoint


def export(words: list[str]) -> None:
    """Writes `model.safetensors`, `config.json` (for timm) and `README.md`.

    Args:
        words: The command line after `export`.

    Raises:
        MergeError: For any error that the user can fix.
    """
    parser = PlainParser(
        prog="python -m lightning_merge export",
        description="Writes a folder that timm.create_model('local-dir:FOLDER') loads, with a "
        "model card; of networks that are not timm's, the weights as safetensors.",
    )
    parser.add_argument("checkpoint", type=Path, help="for example merged.ckpt of `merge`")
    parser.add_argument("--output", required=True, type=Path, help="the folder")
    parser.add_argument(
        "--result",
        type=Path,
        help="what `merge` wrote, for the card; result.json beside the checkpoint if not given",
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
    chosen = parser.parse_args(words)
    if chosen.masks:
        folder = export_masks(
            chosen.checkpoint, chosen.masks, chosen.output, chosen.threshold, chosen.overwrite
        )
        print(f"{folder}: {', '.join(sorted(one.name for one in folder.iterdir()))}")
        return
    beside = chosen.checkpoint.parent / "result.json"
    path = chosen.result or (beside if beside.is_file() else None)
    try:
        result = None if path is None else read_json(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read as JSON: give --result another file") from error
    folder = export_checkpoint(chosen.checkpoint, chosen.output, result, chosen.overwrite)
    print(f"{folder}: {', '.join(sorted(one.name for one in folder.iterdir()))}")
