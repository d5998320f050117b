"""`plot embedding`: data sets as networks see them, from checkpoints or a run of `tasks`."""

from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from lightning_merge.commands import options
from lightning_merge.commands.written_figures import write_figures
from lightning_merge.errors import ConfigError, MergeError
from lightning_merge.files import read_json
from lightning_merge.measure.embedded_sets import TaskStatistics, embedded_sets
from lightning_merge.measure.outcome import file_name
from lightning_merge.plots import plot_embedding
from lightning_merge.recipe.build import Plain
from lightning_merge.study.task_plan import PRETRAINED, TaskStudy
from lightning_merge.untrusted import check_classes

_METHODS = {"pca": "principal components", "tsne": "t-SNE"}


def embedding(words: list[str]) -> None:
    """Draws the representations of several data sets under one network or more."""
    parser = _parser()
    config = options.plain(parser, parser.parse_args(words))
    options.quiet()
    sources = [Path(source) for source in config["sources"]]
    folder = sources[0] if len(sources) == 1 and sources[0].is_dir() else None
    if folder is not None and (config["data"] or config["model"]):
        raise ConfigError(f"{folder} says itself what its data and networks are: leave --data out")
    if folder is None and config["show"]:
        raise ConfigError("--show chooses among the networks of a folder that `tasks` wrote")
    statistics = None
    if folder is not None:
        networks, sets, study = _of_tasks(folder, config["show"], config["trust"])
        model, seed = study.model, study.seeds[0]
        if study.task_statistics:
            statistics = TaskStatistics(study.statistics_examples, seed)
    else:
        networks, sets = _of_checkpoints(sources, config["data"]), _named(config["data"])
        model = config["model"]
    found, count = embedded_sets(
        networks, sets, model, config["method"], config["examples"], config["seed"], statistics
    )
    figure = plot_embedding(
        {name: one.points for name, one in found.items()},
        config["title"] or _title(list(networks), len(sets)),
        f"{count:,} test images of each set; {_METHODS[config['method']]} of what the last layer "
        "is given" + ("" if len(found) == 1 else ", of each network its own"),
        {name: one.explained for name, one in found.items() if one.explained is not None},
    )
    beside = (
        folder / "embedding" if folder else sources[0].with_name(f"{sources[0].stem}-embedding")
    )
    output = Path(config["output"]) if config["output"] else beside
    write_figures({"": figure}, output, config["overwrite"])


def _parser() -> ArgumentParser:
    parser = options.figure_parser(
        "embedding",
        "Draws what networks make of the test images of several data sets (what their last layers "
        "are given) in two dimensions, a panel for each network. From a folder that `tasks` wrote: "
        "the data sets are its tasks. From checkpoints: give the data sets with --data.",
    )
    parser.add_argument(
        "sources", type=str, nargs="+", help="a folder that `tasks` wrote, or checkpoints"
    )
    parser.add_argument(
        "--data",
        type=list[dict[str, Any]],
        default=[],
        help="for checkpoints: data modules, for example '[{class_path: MNISTDataModule, "
        "init_args: {root: data}}, {name: another, class_path: ...}]'",
    )
    options.add_model(parser, "for checkpoints: their LightningModule, where they do not say it")
    parser.add_argument(
        "--show",
        type=list[str] | None,
        default=None,
        help="for a folder: which networks, by the names of tasks and recipes, or Pre-trained; "
        "the pre-trained one and all merges if not given",
    )
    parser.add_argument(
        "--trust",
        action="store_true",
        help="for a folder of your own: import the classes that its tasks.json names, where they "
        "are not this package's",
    )
    parser.add_argument(
        "--method", choices=sorted(_METHODS), default="tsne", help="how to two dimensions"
    )
    parser.add_argument(
        "--examples", type=int, default=200, help="how many test images of each set"
    )
    parser.add_argument("--seed", type=int, default=0, help="draws the images, and starts t-SNE")
    return parser


def _title(networks: list[str], sets: int) -> str:
    if len(networks) == 1:
        return f"{sets} data sets as '{networks[0]}' sees them"
    return f"{sets} data sets as {len(networks)} networks see them"


def _of_checkpoints(paths: list[Path], data: list[dict[str, Any]]) -> dict[str, Path]:
    if not data:
        raise ConfigError(
            "which data sets? give --data '[{class_path: ..., init_args: ...}, ...]', or a folder "
            "that `tasks` wrote"
        )
    stems = [path.stem for path in paths]
    names = stems if len(set(stems)) == len(stems) else [str(path) for path in paths]
    if len(set(names)) < len(names):
        raise ConfigError("give each checkpoint once")
    return dict(zip(names, paths, strict=True))


def _named(data: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    named = {}
    for one in data:
        kind = str(one.get("class_path", "")).rpartition(".")[2].removesuffix("DataModule")
        name = str(one.get("name") or one.get("init_args", {}).get("name") or kind)
        if not kind or name in named:
            raise ConfigError(
                f"data set '{name}': each needs a class_path, and a `name` of its own beside it"
            )
        named[name] = {key: value for key, value in one.items() if key != "name"}
    return named


def _of_tasks(
    folder: Path, show: list[str] | None, trust: bool
) -> tuple[dict[str, Path], dict[str, Plain], TaskStudy]:
    """The networks and the data sets of the first repetition, and the study."""
    if not (folder / "tasks.json").is_file() or not (folder / "results.json").is_file():
        raise ConfigError(f"{folder} is no folder that `tasks` wrote: give one, or checkpoints")
    try:
        study = TaskStudy(**read_json(folder / "tasks.json"))
        results, seed = read_json(folder / "results.json"), study.seeds[0]
        known = {
            str(one["task"]): folder / "runs" / key / "weights.ckpt"
            for key, one in results["ingredients"].items()
            if one["seed"] == seed
        }
        merges = {
            str(one["method"]): folder
            / "merges"
            / f"seed{seed}"
            / f"{file_name(one['method'])}.ckpt"
            for one in results["methods"]
            if one["kind"] == "merge" and one["seed"] == seed
        }
        known |= {name: path for name, path in merges.items() if path.is_file()}
        sets = {task["name"]: study.data(task["data"], seed) for task in study.tasks}
        if not trust:
            named = [study.model, list(sets.values())]
            check_classes(folder / "tasks.json", named, "add --trust if the folder is your own")
    except MergeError:
        raise
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(
            f"{folder}: its tasks.json or results.json is damaged ({type(error).__name__}: "
            f"{error}); run the same `tasks` command again, which writes them"
        ) from error
    shown = show or [PRETRAINED, *(name for name in merges if name in known)]
    strange = [name for name in shown if name not in known]
    if strange or len(set(shown)) < len(shown):
        raise ConfigError(
            f"--show names {strange[0] if strange else 'a network twice'}: choose among "
            f"{', '.join(known)}"
        )
    return {name: known[name] for name in shown}, sets, study
