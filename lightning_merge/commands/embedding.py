"""`plot embedding`: data sets as networks see them, from checkpoints or a run of `tasks`."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule

from lightning_merge.checkpoint import Checkpoint, fit_names, read_checkpoint
from lightning_merge.commands import options
from lightning_merge.commands.figures import write_figures
from lightning_merge.errors import ConfigError
from lightning_merge.files import read_json
from lightning_merge.loaders import statistics_batches_of
from lightning_merge.plots import plot_embedding
from lightning_merge.progress import tracked
from lightning_merge.recalibrate import reset_batchnorm
from lightning_merge.study.build import build_data
from lightning_merge.study.compare import file_name
from lightning_merge.study.embedding import embed, representations
from lightning_merge.study.task_heads import module_for
from lightning_merge.study.task_plan import PRETRAINED, TaskStudy

_METHODS = {"pca": "principal components", "tsne": "t-SNE"}


def embedding(words: list[str]) -> None:
    """Draws the representations of several data sets under one network or more.

    Args:
        words: The command line after `plot embedding`.

    Raises:
        MergeError: If the user can mend it.
    """
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
    options.add_optional_model(parser)
    parser.add_argument(
        "--show",
        type=list[str] | None,
        default=None,
        help="for a folder: which networks, by the names of tasks and recipes, or Pre-trained; "
        "the pre-trained one and all merges if not given",
    )
    parser.add_argument("--method", choices=sorted(_METHODS), default="tsne")
    parser.add_argument("--examples", type=int, default=200, help="test images of each set")
    parser.add_argument("--seed", type=int, default=0, help="which images; and of t-SNE")
    config = options.plain(parser, parser.parse_args(words))
    options.quiet()
    sources = [Path(source) for source in config["sources"]]
    folder = sources[0] if len(sources) == 1 and sources[0].is_dir() else None
    if folder is not None and (config["data"] or config["model"]):
        raise ConfigError(f"{folder} says itself what its data and networks are: leave --data out")
    if folder is None and config["show"]:
        raise ConfigError("--show chooses among the networks of a folder that `tasks` wrote")
    if folder is not None:
        networks, study = _of_tasks(folder, config["show"])
        given, model = _data_of(study), study.model
    else:
        study = None
        networks, given = _of_checkpoints(sources, config["data"]), _named(config["data"])
        model = config["model"]
    if config["examples"] < 2:
        raise ConfigError("--examples is 2 or more")
    sets = {name: _ready(build_data(one)) for name, one in given.items()}
    count = min([config["examples"], *(_size(name, data) for name, data in sets.items())])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found = {}
    for name, path in tracked(list(networks.items()), "Networks"):
        module = _module(read_checkpoint(path), model)
        features = {
            one: representations(
                _asked(module, data, study, device), data, count, config["seed"], device
            )
            for one, data in sets.items()
        }
        found[name] = embed(features, config["method"], config["seed"])
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


def _of_tasks(folder: Path, show: list[str] | None) -> tuple[dict[str, Path], TaskStudy]:
    """The networks of the first repetition, and the study."""
    if not (folder / "tasks.json").is_file() or not (folder / "results.json").is_file():
        raise ConfigError(f"{folder} is no folder that `tasks` wrote: give one, or checkpoints")
    study = TaskStudy(**read_json(folder / "tasks.json"))
    results, seed = read_json(folder / "results.json"), study.seeds[0]
    known = {
        one["task"]: folder / "runs" / key / "weights.ckpt"
        for key, one in results["ingredients"].items()
        if one["seed"] == seed
    }
    merges = {
        one["method"]: folder / "merges" / f"seed{seed}" / f"{file_name(one['method'])}.ckpt"
        for one in results["methods"]
        if one["kind"] == "merge" and one["seed"] == seed
    }
    known |= {name: path for name, path in merges.items() if path.is_file()}
    shown = show or [PRETRAINED, *(name for name in merges if name in known)]
    strange = [name for name in shown if name not in known]
    if strange or len(set(shown)) < len(shown):
        raise ConfigError(
            f"--show names {strange[0] if strange else 'a network twice'}: choose among "
            f"{', '.join(known)}"
        )
    return {name: known[name] for name in shown}, study


def _data_of(study: TaskStudy) -> dict[str, dict[str, Any]]:
    return {task["name"]: study.data(task["data"], study.seeds[0]) for task in study.tasks}


def _asked(
    module: LightningModule,
    data: LightningDataModule,
    study: TaskStudy | None,
    device: torch.device,
) -> LightningModule:
    """The module as a study asks it for a task."""
    if study is None or not study.task_statistics:
        return module
    asked = copy.deepcopy(module).to(device)
    images = statistics_batches_of(data, asked, device, study.statistics_examples, study.seeds[0])
    reset_batchnorm(asked, images)
    return asked


def _module(checkpoint: Checkpoint, model: Mapping[str, Any] | None) -> LightningModule:
    # With the head that it has, of whatever task.
    task = LightningDataModule()
    if "num_classes" in checkpoint.hyper_parameters:
        setattr(task, "num_classes", checkpoint.hyper_parameters["num_classes"])  # noqa: B010
    module = module_for(dict(model) if model else None, task, checkpoint)
    state = fit_names(checkpoint.state_dict, module.state_dict(), str(checkpoint.path))
    module.load_state_dict(state)
    return module


def _ready(data: LightningDataModule) -> LightningDataModule:
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    return data


def _size(name: str, data: LightningDataModule) -> int:
    loader = data.test_dataloader()
    try:
        return len(loader.dataset)
    except (AttributeError, TypeError) as error:
        raise ConfigError(f"data set '{name}' does not say how many test images it has") from error
