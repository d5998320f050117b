"""`predict FOLDER`: the class of every image in a folder, as a table."""

from pathlib import Path
from typing import Any

from lightning_merge.commands import options
from lightning_merge.errors import ConfigError, OutputExistsError
from lightning_merge.files import sweep, write_csv
from lightning_merge.measure.folder_predictions import predict_folder


def predict(words: list[str]) -> None:
    """Writes a CSV file with a row for each image: path, predicted class, probabilities."""
    parser = _parser()
    config = options.plain(parser, parser.parse_args(words))
    output = Path(config["output"])
    if output.is_dir():
        raise ConfigError(f"{output} is a folder: give --output a file, such as predictions.csv")
    if output.exists() and not config["overwrite"]:
        raise OutputExistsError(f"{output} exists: choose another --output, or add --overwrite")
    options.quiet()
    found = predict_folder(
        config["folder"],
        config["ckpt"],
        model=config["model"],
        prepared=_prepared(config),
        batch_size=config["batch_size"],
        num_workers=config["num_workers"],
        device=config["device"],
    )
    sweep(output.parent)
    write_csv(output, found.rows)
    readable = len(found.rows) - found.unreadable
    wrong = f"; {found.unreadable} could not be read, see `error`" if found.unreadable else ""
    images = "1 image" if readable == 1 else f"{readable} images"
    options.console.print(f"{output}: {images}{wrong}", soft_wrap=True)
    if found.left_out:
        options.console.print(found.left_out, soft_wrap=True)


def _parser() -> Any:
    parser = options.Parser(
        prog="python -m lightning_merge predict",
        description="Predicts the class of every image in a folder and below it. With -c and no "
        "folder it is Lightning's own predict.",
    )
    parser.add_argument("folder", type=str, help="a folder of images, flat or nested, or an image")
    parser.add_argument("--ckpt", type=str, required=True, help="the network's checkpoint")
    parser.add_argument("--output", type=str, required=True, help="the CSV file to write")
    parser.add_argument("--overwrite", action="store_true", help="write over an existing file")
    options.add_model(parser)
    parser.add_argument("--batch_size", type=int, default=64, help="how many images at once")
    parser.add_argument("--num_workers", type=int, default=0, help="processes that read images")
    parser.add_argument(
        "--device", type=str | None, default=None, help="such as cuda:1; a GPU if there is one"
    )
    parser.add_argument(
        "--image_size",
        type=int | None,
        default=None,
        help="height and width in pixels, where the checkpoint does not say how images were "
        "prepared or to change what it says",
    )
    parser.add_argument(
        "--mean",
        type=list[float] | float | None,
        default=None,
        help="of each channel: '[0.5, 0.5, 0.5]', or 0.5 for grey",
    )
    parser.add_argument(
        "--std",
        type=list[float] | float | None,
        default=None,
        help="of each channel, in [0, 1] like mean",
    )
    return parser


def _prepared(config: dict[str, Any]) -> dict[str, Any]:
    given = [config[name] for name in ("image_size", "mean", "std")]
    if given.count(None) == 3:
        return {}
    if None in given:
        raise ConfigError("give --image_size, --mean and --std together, or none of them")
    size = given[0]
    mean, std = ([it] if isinstance(it, float) else it for it in given[1:])
    return {"input_size": [len(mean), size, size], "mean": mean, "std": std}
