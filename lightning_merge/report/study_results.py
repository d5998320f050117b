"""The results of a study, read from its store."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule

from lightning_merge.checkpoint import read_checkpoint
from lightning_merge.measure.measurement import Measurement
from lightning_merge.measure.outcome import file_name, merge_file, network_name, reference_ensemble
from lightning_merge.measure.sweep import sweeps
from lightning_merge.measure.task_conditions import TaskMeasurement
from lightning_merge.measure.task_heads import module_with_own_head
from lightning_merge.plots.alpha_histograms import alphas_of
from lightning_merge.preprocessing import KEY
from lightning_merge.provenance import differences, provenance
from lightning_merge.recipe.build import Plain, build_module, build_recipe
from lightning_merge.report.comparison import Comparison
from lightning_merge.report.results import Merges, StoredMerge
from lightning_merge.report.task_results import TaskResults
from lightning_merge.study.plan import Study
from lightning_merge.study.store import Store
from lightning_merge.study.task_plan import TaskStudy
from lightning_merge.study.work import Work


def study_results(
    study: Study, works: Sequence[Work], store: Store, config: Plain, command: list[str] | None
) -> Comparison:
    """The comparison of a finished study, whose pieces of work are all in the store.

    `config` is stored in `results.json`; `command` has the arguments after `python -m
    lightning_merge`, those of this process if None.
    """
    results = {work.key: store.result(work.key) for work in works}
    merges = [w for w in works if w.kind == "merge" and store.weights(w.key).is_file()]
    several = len(study.pool_sizes) > 1
    stored, alphas, among, class_names = {}, None, 2, None
    for work in merges:
        size = len(work.settings["names"])
        name = f"{work.name}{_of_size(work, several)}, seed {work.seed}"
        path = Path(f"seed{work.seed}") / merge_file(work.name, size, study.pool_sizes)
        stored[name] = _stored(store, work, path)
        content = read_checkpoint(store.weights(work.key)).content
        held = content.get("lightning_merge", {})
        class_names = content.get(KEY, {}).get("label_names")
        if held.get("alphas"):
            alphas, among = held["alphas"], alphas_of(held)
    details = {
        "config": config,
        "network": network_name(build_module(study.model)),
        "ensemble": reference_ensemble([build_recipe(recipe) for recipe in study.recipes]),
        "ingredients": {w.key: results[w.key]["digest"] for w in works if w.kind == "ingredient"},
        "split_hashes": {key: result.get("split_hash") for key, result in results.items()},
        "class_names": class_names,
        "statistics_examples": study.statistics_examples,
        "choices": {
            f"{w.name}{_of_size(w, several)}, seed {w.seed}": results[w.key]["choices"]
            for w in works
            if results[w.key].get("choices")
        },
    }
    swept = {
        entry.value.key: [
            one for result in results.values() for one in result.get(entry.value.key, [])
        ]
        for entry in sweeps
    }
    return Comparison(
        title=study.title,
        rows=[Measurement.of_row(result["row"]) for result in results.values() if "row" in result],
        merged=Merges(stored),
        made_by=provenance(command),
        details=details,
        swept=swept,
        alphas=alphas,
        alphas_of=among,
        differing=_differing(works, store),
    )


def task_results(
    study: TaskStudy, works: Sequence[Work], store: Store, config: Plain, command: list[str] | None
) -> TaskResults:
    """The results of a finished study of tasks; the arguments are those of `study_results`."""
    results = {work.key: store.result(work.key) for work in works}
    trained = [work for work in works if work.kind not in ("task_baseline", "task_merge")]
    stored = {
        f"{work.name}, seed {work.seed}": _stored(
            store, work, Path(f"seed{work.seed}") / f"{file_name(work.name)}.ckpt"
        )
        for work in works
        if work.kind == "task_merge" and store.weights(work.key).is_file()
    }
    ingredients = {
        work.key: {"task": work.name, "seed": work.seed, **_unset(results[work.key])}
        for work in trained
    }
    return TaskResults(
        study=study,
        rows=[
            TaskMeasurement.of_row(row)
            for result in results.values()
            for row in result.get("rows", [])
        ],
        merged=Merges(stored),
        made_by=provenance(command),
        details={"config": config, "ingredients": ingredients},
        methods=[_method(work, results[work.key]) for work in works if work not in trained],
        heads={
            w.name: results[w.key]["head"]
            for w in trained
            if "head" in results[w.key] and w.name in {task["name"] for task in study.tasks}
        },
        differing=_differing(works, store),
    )


def _stored(store: Store, work: Work, path: Path) -> StoredMerge:
    def build() -> LightningModule:
        checkpoint = read_checkpoint(store.weights(work.key))
        return module_with_own_head(checkpoint, work.settings["model"])

    return StoredMerge(path, build, lambda target: store.export(work.key, target))


def _of_size(work: Work, several: bool) -> str:
    return f", {len(work.settings['names'])} ingredients" if several else ""


def _differing(works: Sequence[Work], store: Store) -> list[str]:
    named = {f"{w.name}, seed {w.seed}, {w.key[:6]}": store.made_by(w.key) for w in works}
    return differences(named)


def _method(work: Work, result: Plain) -> Plain:
    names = ("parameters", "seconds", "train_examples", "choices", "chosen", "not_merged")
    known: dict[str, Any] = {name: result[name] for name in names if name in result}
    kind = "merge" if work.kind == "task_merge" else "baseline"
    return {"method": work.name, "kind": kind, "seed": work.seed, **known}


def _unset(result: Plain) -> Plain:
    return {name: value for name, value in result.items() if name != "settings"}
