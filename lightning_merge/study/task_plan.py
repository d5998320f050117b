"""A study of several tasks: what there is to train, to merge and to measure."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from lightning_merge.errors import ConfigError
from lightning_merge.measure.outcome import file_name
from lightning_merge.recipe.build import Plain
from lightning_merge.study.plan import check_seeds, data_for, determining
from lightning_merge.study.work import Work, make_work

PRETRAINED = "Pre-trained"
INDIVIDUAL = "Individual"

# What the tables' other columns are called.
_COLUMNS = ("seen", "unseen", "all", "average", "method", "95%", "held out", "seeds")
_STATISTICS = ("task_statistics", "statistics_examples")
_TASK = ("name", "data", "checkpoint", "unseen", "training", "prompts", "networks")


@dataclass
class TaskStudy:
    """One pre-trained body, fine-tuned on tasks, merged by recipes, measured on all tasks.

    Attributes:
        tasks: For each task its `name`, its `data` (`class_path`, `init_args`), and, where it
            is not to be trained, a `checkpoint`; `unseen: true` keeps its body out of merges;
            `prompts` replaces the sentences of which a CLIP's head is made; `networks` are
            further networks of the task, beside its own, for each of which that lists what differs
            in the Trainer's arguments (`{max_epochs: 1}`).
        recipes: The recipes, as plain configuration.
        model: `class_path` and `init_args` of the LightningModule; its `num_classes` are set
            to those of the data. Needed where something is trained.
        pretrained: A checkpoint of the body that the tasks were, or are to be, fine-tuned from;
            None for the weights that the model's own `pretrained` names.
        pretraining: Where there is none: `data` and `trainer` to make it with.
        pretraining_model: The model while it is pre-trained, where its optimizer, for example, is
            another one then; None for `model`.
        training: The Trainer's arguments for fine-tuning, `max_epochs` above all; a task's own
            `training` changes some of them.
        train_heads: Whether fine-tuning changes the heads, too. Otherwise each stays as it
            was fitted to the pre-trained body, or as a CLIP's text tower made it.
        head_examples_per_class: How many labelled examples of each class a head is fitted on;
            None for all training examples.
        task_statistics: Whether every body, be it pre-trained, individual or merged, is tested
            on a task with BatchNorm statistics of that task's (unlabelled) training images.
        seeds: One repetition each.
        trainer: The Trainer's arguments for everything.
        data_defaults: `init_args` of every data module, where it does not set them itself.
        root: Replaces each `root` among the data modules' `init_args`.
        corruptions: Corruptions of the test images to measure under as well.
        severity: Of the corruptions, 1 to 5.
        corrupted_tasks: The tasks to measure under them; all if none is named.
        statistics_examples: How many training examples of each task statistics are read
            from; None for all.
        title: What tables are headed with.
        paper: As in `Study`; figures are by method and by task (or `seen`, `unseen`, `all`, or
            `motion_blur: TASK`).
        differs: As in `Study`.
    """

    tasks: list[Plain]
    recipes: list[Plain]
    model: Plain | None = None
    pretrained: str | None = None
    pretraining: Plain | None = None
    pretraining_model: Plain | None = None
    training: Plain = field(default_factory=dict)
    train_heads: bool = False
    head_examples_per_class: int | None = None
    task_statistics: bool = False
    seeds: list[int] = field(default_factory=lambda: [0])
    trainer: Plain = field(default_factory=dict)
    data_defaults: Plain = field(default_factory=dict)
    root: str | None = None
    corruptions: list[str] = field(default_factory=list)
    severity: int = 3
    corrupted_tasks: list[str] = field(default_factory=list)
    statistics_examples: int | None = None
    title: str = "Tasks"
    paper: Plain = field(default_factory=dict)
    differs: list[str] = field(default_factory=list)

    def data(self, config: Plain, seed: int) -> Plain:
        """A data module's configuration, with what all share, for one repetition."""
        arguments = {**self.data_defaults, **(config.get("init_args") or {})}
        if self.root is not None and "root" in arguments:
            arguments["root"] = self.root
        return data_for({**config, "init_args": arguments}, seed, {})


def check_tasks(study: TaskStudy) -> None:
    """Checks that a study is complete and consistent; a `ConfigError` if not."""
    names = [task.get("name") for task in study.tasks]
    if any(not name or not isinstance(name, str) for name in names) or len(set(names)) < len(names):
        raise ConfigError("each of the tasks needs a `name` of its own")
    taken = [name for name in names if name in _COLUMNS or str(name).endswith("_sd")]
    if taken:
        raise ConfigError(
            f"task '{taken[0]}': a column of the tables has that name; choose another"
        )
    for task in study.tasks:
        unknown = sorted(set(task) - set(_TASK))
        if unknown or "data" not in task:
            wrong = f"`{unknown[0]}` is unknown" if unknown else "`data` is missing"
            raise ConfigError(
                f"task '{task['name']}': {wrong}; a task has name, data and, where wanted, "
                + ", ".join(_TASK[2:])
            )
        _check_data(task["data"], f"task '{task['name']}'")
        _check_networks(study, task)
    networks = [one["name"] for task in study.tasks for one in further_networks(task)]
    both = [name for name in names if name in networks]
    if both:
        raise ConfigError(f"task '{both[0]}': another task's network has that name; choose another")
    if sum(not task.get("unseen") for task in study.tasks) < 2:
        raise ConfigError("merging needs two seen tasks or more: list them under `tasks`")
    starts = [study.pretrained is not None, study.pretraining is not None]
    if sum(starts) > 1 or not (any(starts) or brings_weights(study.model)):
        raise ConfigError(
            "give either `pretrained`, a checkpoint, or `pretraining` to make one, or neither and "
            "a model whose own `pretrained` names its weights"
        )
    if study.pretraining is not None:
        strange = sorted(set(study.pretraining) - {"data", "trainer"})
        if strange:
            raise ConfigError(f"pretraining: `{strange[0]}` is unknown; it has data and trainer")
        _check_data(study.pretraining.get("data"), "pretraining")
    made = study.pretraining or any(task.get("checkpoint") is None for task in study.tasks)
    if made and study.model is None:
        raise ConfigError("something is to be trained: say with `model` what")
    strange = sorted(set(study.corrupted_tasks) - set(names))
    if strange:
        raise ConfigError(f"corrupted_tasks: there is no task '{strange[0]}'")
    if study.head_examples_per_class is not None and study.head_examples_per_class < 1:
        raise ConfigError(
            f"head_examples_per_class is {study.head_examples_per_class}: choose 1 or more"
        )
    check_seeds(study.seeds)
    for recipe in study.recipes:
        if file_name(recipe["name"]) in (file_name(PRETRAINED), file_name(INDIVIDUAL)):
            raise ConfigError(
                f"recipe '{recipe['name']}': a row of the tables has that name; choose another"
            )


def brings_weights(model: Plain | None) -> bool:
    """Whether a model's configuration names the weights that it starts from."""
    return bool(model and (model.get("init_args") or {}).get("pretrained"))


def _check_data(data: Any, whose: str) -> None:
    if not isinstance(data, Mapping) or "class_path" not in data:
        raise ConfigError(f"{whose}: say with `data: {{class_path: ..., init_args: ...}}` what on")


def _check_networks(study: TaskStudy, task: Plain) -> None:
    networks = task.get("networks") or []
    if not isinstance(networks, list) or not all(isinstance(one, Mapping) for one in networks):
        raise ConfigError(
            f"task '{task['name']}': `networks` is a list of Trainer's arguments, as in "
            "[{max_epochs: 1}]"
        )
    if networks and (task.get("unseen") or task.get("checkpoint") or study.train_heads):
        raise ConfigError(
            f"task '{task['name']}': its `networks` are trained and merged under the task's one "
            "head: leave them out, or `unseen`, `checkpoint` and `train_heads`"
        )


def further_networks(task: Plain) -> list[Plain]:
    """The tasks that a task's `networks` would be by themselves, numbered from 2."""
    rest = {name: value for name, value in task.items() if name != "networks"}
    own = task.get("training") or {}
    return [
        {**rest, "name": f"{task['name']} {number}", "training": {**own, **changes}}
        for number, changes in enumerate(task.get("networks") or [], start=2)
    ]


def plan_tasks(study: TaskStudy, digests: Mapping[str, str]) -> list[Work]:
    """The work of a study, in an order in which it can be done.

    For each seed: the pre-training, the fine-tuning of each task's networks, the two rows to
    compare merges with, and the merges. Checkpoints that it names are known by their SHA-256, by
    path.
    """
    return [one for seed in study.seeds for one in _repetition(study, seed, digests)]


def _repetition(study: TaskStudy, seed: int, digests: Mapping[str, str]) -> Iterator[Work]:
    start = _start(study, seed, digests)
    yield start
    tested: list[Plain] = []
    needs = [start.key]
    for task in study.tasks:
        work, *further = (
            _task(study, one, seed, digests, start.key) for one in (task, *further_networks(task))
        )
        settings = work.settings
        described = {
            "name": work.name,
            "data": settings["data"],
            "unseen": settings["unseen"],
            "key": work.key,
            # An unseen task has a body of its own only where a checkpoint brings it.
            "has_body": "file" in settings or not settings["unseen"],
        }
        networks = {"networks": {one.name: one.key for one in further}} if further else {}
        tested.append({**described, **networks})
        needs += [work.key, *(one.key for one in further)]
        yield from (work, *further)
    copied = ("model", "corruptions", "severity", "corrupted_tasks", *_STATISTICS)
    common: Plain = {
        "trainer": determining(study.trainer),
        "tasks": tested,
        **{name: getattr(study, name) for name in copied},
    }
    for name in (PRETRAINED, INDIVIDUAL):
        settings = {**common, "individual": name == INDIVIDUAL}
        yield make_work("task_baseline", name, seed, settings, tuple(needs))
    for recipe in study.recipes:
        settings = {**common, "recipe": recipe}
        yield make_work("task_merge", recipe["name"], seed, settings, tuple(needs))


def _start(study: TaskStudy, seed: int, digests: Mapping[str, str]) -> Work:
    if study.pretraining is not None:
        own = study.pretraining.get("trainer") or {}
        settings: Plain = {
            "model": study.pretraining_model or study.model,
            "data": study.data(study.pretraining["data"], seed),
            "trainer": {**determining(study.trainer), **own},
        }
        return make_work("pretraining", PRETRAINED, seed, _repeated(settings, seed))
    if study.pretrained is not None:
        file = {"path": study.pretrained, "digest": digests[study.pretrained]}
        return make_work("file", PRETRAINED, seed, {"file": file})
    settings = {"model": study.model, "data": study.data(study.tasks[0]["data"], seed)}
    return make_work("own_weights", PRETRAINED, seed, _repeated(settings, seed))


def _task(study: TaskStudy, task: Plain, seed: int, digests: Mapping[str, str], start: str) -> Work:
    unseen, data = bool(task.get("unseen")), study.data(task["data"], seed)
    settings = _repeated({"model": study.model, "data": data, "unseen": unseen}, seed)
    if task.get("checkpoint") is not None:
        path = task["checkpoint"]
        settings["file"] = {"path": path, "digest": digests[path]}
        return make_work("task", task["name"], seed, settings)
    settings |= {
        "trainer": determining(study.trainer),
        "training": None,
        "head_examples_per_class": study.head_examples_per_class,
        "task_statistics": study.task_statistics,
        "statistics_examples": study.statistics_examples if study.task_statistics else None,
        "prompts": task.get("prompts"),
    }
    if not unseen:
        settings["training"] = {**study.training, **(task.get("training") or {})}
        settings["train_heads"] = study.train_heads
    return make_work("task", task["name"], seed, settings, (start,))


def _repeated(settings: Plain, seed: int) -> Plain:
    """Settings that differ between repetitions, whether or not the data are split by the seed."""
    split = "split_seed" in settings["data"]["init_args"]
    return settings if split else {**settings, "seed": seed}


def checkpoints_of(study: TaskStudy) -> list[str]:
    """The paths of all checkpoints that a study names."""
    named: list[Any] = [study.pretrained, *(task.get("checkpoint") for task in study.tasks)]
    return [str(path) for path in named if path is not None]
