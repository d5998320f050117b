"""`plot templates` and `plot kernels`: the patterns in weights, from checkpoints."""

from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule

from lightning_merge.analysis.patterns import first_kernels, pairs
from lightning_merge.checkpoint import read_checkpoint
from lightning_merge.commands import options
from lightning_merge.commands.written_figures import write_figures
from lightning_merge.errors import ConfigError
from lightning_merge.measure.templates_of_data import templates_beside_averages
from lightning_merge.plots import plot_kernels, plot_merged_templates, plot_templates
from lightning_merge.recipe.build import build_data


def templates(words: list[str]) -> None:
    """Draws a linear classifier's templates beside the class averages, and merged in pairs."""
    parser = options.figure_parser(
        "templates",
        "Draws the weights of a linear classifier as images, and (its name ends in -merged) the "
        "templates of the first half of the classes merged with those of the second half. With "
        "--data, the average training image of each class stands beside its template.",
    )
    parser.add_argument("checkpoint", type=str, help="a linear classifier of images")
    parser.add_subclass_arguments(
        LightningDataModule,
        "data",
        required=False,
        fail_untyped=False,
        help="the data module whose training images are averaged by class",
    )
    parser.add_argument(
        "--classes",
        type=list[int] | None,
        default=None,
        help="which classes to draw, by number, for example '[0, 1, 2]'; all if not given",
    )
    config = options.plain(parser, parser.parse_args(words))
    options.quiet()
    checkpoint = read_checkpoint(config["checkpoint"])
    data = build_data(config["data"]) if config["data"] else None
    found = templates_beside_averages(checkpoint, data)
    weights = found.templates
    names = found.names or [str(number) for number in range(len(weights))]
    chosen = config["classes"] or list(range(len(weights)))
    if any(not 0 <= number < len(weights) for number in chosen):
        raise ConfigError(f"classes are {chosen}: choose numbers from 0 to {len(weights) - 1}")
    shown, titles = weights[chosen], [names[number] for number in chosen]
    beside = None if found.averages is None else found.averages[chosen]
    figures = {"": plot_templates(shown, beside, titles, config["title"], found.caption)}
    if len(chosen) > 1:
        under = "each pair and its mean, on one scale"
        merged = plot_merged_templates(shown, pairs(shown), titles, config["title"], under)
        figures["-merged"] = merged
    write_figures(figures, _path(config, checkpoint.path, "templates"), config["overwrite"])


def kernels(words: list[str]) -> None:
    """Draws the kernels of networks' first layers, and how alike they are."""
    parser = options.figure_parser(
        "kernels",
        "Draws the first layer's kernels as a grid, and the cosines between them; of several "
        "networks (two ingredients and their merge) side by side and on one scale.",
    )
    parser.add_argument("checkpoints", type=str, nargs="+", help="networks with convolutions")
    parser.add_argument("--most", type=int, default=64, help="how many kernels of each to draw")
    config = options.plain(parser, parser.parse_args(words))
    paths = [Path(path) for path in config["checkpoints"]]
    stems = [path.stem for path in paths]
    names = stems if len(set(stems)) == len(stems) else list(config["checkpoints"])
    if len(set(names)) < len(names) or config["most"] < 1:
        raise ConfigError("give each checkpoint once, and --most 1 or more")
    found = {
        name: first_kernels(read_checkpoint(path).state_dict, str(path))[1]
        for name, path in zip(names, paths, strict=True)
    }
    figures = {"": plot_kernels(found, config["title"], config["most"])}
    write_figures(figures, _path(config, paths[0], "kernels"), config["overwrite"])


def _path(config: dict[str, Any], source: Path, figure: str) -> Path:
    if config["output"]:
        return Path(config["output"])
    return source.with_name(f"{source.stem}-{figure}")
