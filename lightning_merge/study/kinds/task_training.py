"""The pre-trained body of a study of tasks, and a body for each task."""

import time
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule, Trainer

from lightning_merge.checkpoint import (
    Checkpoint,
    StateDict,
    digest,
    prefixed,
    read_checkpoint,
    tensors_of,
)
from lightning_merge.division import records_of
from lightning_merge.errors import CheckpointError
from lightning_merge.measure.linear_probe import linear_probe
from lightning_merge.measure.outcome import content_of
from lightning_merge.measure.task_conditions import Conditions, measure_tasks
from lightning_merge.measure.task_heads import (
    module_for,
    module_to_train,
    reads_text,
    starting_module,
)
from lightning_merge.recalibrate.training_data import reset_on_training_data
from lightning_merge.recipe.build import Plain, build_data, trainer_of
from lightning_merge.recipe.fitting import Fitted, fit_resumably
from lightning_merge.recipe.task_context import TaskData, head_of, loaded
from lightning_merge.study.same_data import data_of
from lightning_merge.study.store import Store
from lightning_merge.study.work import Session, Work, work_kinds


@work_kinds.register("file")
def take_file(work: Work, store: Store, session: Session) -> None:
    """Takes the pre-trained network from a file."""
    del session
    checkpoint = _read_file(work.settings["file"])
    kept = {"hyper_parameters": checkpoint.hyper_parameters} if checkpoint.hyper_parameters else {}
    store.put(work.key, {"seconds": None}, {"state_dict": checkpoint.state_dict, **kept})


@work_kinds.register("own_weights")
def take_own_weights(work: Work, store: Store, session: Session) -> None:
    """Takes the pre-trained network that the model's own configuration names."""
    del session
    module = starting_module(work.settings["model"], build_data(work.settings["data"]))
    store.put(work.key, {"seconds": None}, content_of(module, module))


@work_kinds.register("pretraining")
def pretrain(work: Work, store: Store, session: Session) -> None:
    """Trains the pre-trained network."""
    start, settings = time.perf_counter(), work.settings
    data = set_up(settings["data"], store)
    module = module_to_train(settings["model"], data)
    trainer = trainer_of(settings["trainer"], session.progress)
    fitted = fit_resumably(module, data, trainer(), store.training(work.key))
    seconds = fitted.seconds + time.perf_counter() - start
    own = Conditions([TaskData(work.name, module, {}, data)])
    named = work.name, "baseline", work.seed, False
    (row,) = measure_tasks(lambda _: module, own, trainer, *named)
    result = {
        "seconds": seconds,
        "train_examples": fitted.examples,
        "accuracy": row.metrics["accuracy"],
    }
    store.put(work.key, result, {**content_of(module, module), **records_of(data)})


@work_kinds.register("task")
def fine_tune(work: Work, store: Store, session: Session) -> None:
    """Fine-tunes the pre-trained body on one task, or takes the task's network from a file."""
    start, settings = time.perf_counter(), work.settings
    data = set_up(settings["data"], store)
    result: dict[str, Any] = {"settings": settings}
    learned_from: object = data
    if "file" in settings:
        checkpoint = _read_file(settings["file"])
        module = module_for(settings["model"], data, checkpoint)
        loaded(module, checkpoint.state_dict, str(checkpoint.path))
        learned_from = checkpoint.content
        result |= {"head": "of its checkpoint", "seconds": None}
    else:
        module, head, described = _headed(work, store, session, data)
        tuned = Fitted(0, 0.0)
        if settings["training"] is not None:
            arguments = {**settings["trainer"], **settings["training"]}
            trainer = trainer_of(arguments, session.progress)()
            kept = store.training(work.key)
            tuned = _tune(module, data, trainer, list(head), settings["train_heads"], kept)
        examples = max(described.pop("train_examples", 0), tuned.examples)
        seconds = tuned.seconds + time.perf_counter() - start
        result |= {**described, "train_examples": examples, "seconds": seconds}
    result["split_hash"] = getattr(data, "split_hash", None)
    content = {**content_of(module, module), **records_of(learned_from)}
    result["digest"] = digest(tensors_of(module))
    store.put(work.key, result, content)


def set_up(config: Plain, store: Store | None = None) -> LightningDataModule:
    """A data module that has read its files, which are to be those of the store's other pieces."""
    data = build_data(config) if store is None else data_of(config, store)
    data.prepare_data()
    data.setup("fit")
    return data


def headless(state: StateDict, module: LightningModule, head: StateDict) -> StateDict:
    """A body with the names of a module, without the tensors of a head."""
    named = prefixed(state, module.state_dict())
    return {name: value for name, value in named.items() if name not in head}


def _headed(
    work: Work, store: Store, session: Session, data: LightningDataModule
) -> tuple[LightningModule, StateDict, dict[str, Any]]:
    """The pre-trained body under a head for the task, the head, and how it was made."""
    settings = work.settings
    module = module_to_train(settings["model"], data, settings["prompts"])
    head = head_of(module, data, tensors_of(module))
    body = headless(store.state(work.needs[0]), module, head)
    loaded(module, {**body, **head}, "the pre-trained network")
    if reads_text(settings["model"]):
        sentences = len(module.hparams["made_from"]["prompts"])
        return module, head, {"head": f"made of the classes' names in {sentences} prompts"}
    arguments = {**settings["trainer"], **(settings["training"] or {})}
    device = trainer_of(arguments, session.progress)().strategy.root_device
    if settings["task_statistics"]:
        examples = settings["statistics_examples"]
        reset_on_training_data(module, data, device, examples, work.seed)
    head, examples = linear_probe(module, data, device, settings["head_examples_per_class"])
    module.load_state_dict({**module.state_dict(), **head})
    fitted = f"fitted to the pre-trained body on {examples:,} labelled examples"
    return module, head, {"head": fitted, "train_examples": examples}


def _read_file(file: Plain) -> Checkpoint:
    checkpoint = read_checkpoint(file["path"])
    if digest(checkpoint.state_dict) != file["digest"]:
        raise CheckpointError(
            f"{file['path']} was changed after the study was planned: start the study again"
        )
    return checkpoint


def _tune(
    module: LightningModule,
    data: LightningDataModule,
    trainer: Trainer,
    head: list[str],
    train_head: bool,
    kept: Path,
) -> Fitted:
    """Trains the body, and its head if that is wanted."""
    before = {name: module.get_parameter(name).requires_grad for name in head}
    for name in head:
        module.get_parameter(name).requires_grad_(train_head)
    fitted = fit_resumably(module, data, trainer, kept)
    for name, state in before.items():
        module.get_parameter(name).requires_grad_(state)
    return fitted
