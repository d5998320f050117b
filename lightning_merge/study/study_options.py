"""The options of a study, from whatever a user gives."""

from collections.abc import Mapping
from dataclasses import MISSING, Field, asdict, fields
from operator import index
from pathlib import Path
from typing import Any

import yaml

from lightning_merge.errors import ConfigError
from lightning_merge.measure.sweep import sweeps
from lightning_merge.recipe.build import Plain, spelled_out
from lightning_merge.study.plan import Study
from lightning_merge.study.task_plan import TaskStudy


def options_of(
    study: Study | TaskStudy | Mapping[str, Any] | str | Path, kind: type[Study | TaskStudy]
) -> Plain:
    """All options of a study, those that are not given at their defaults.

    However a study is given, the same one has the same options, and goes on in the same folder. In
    a mapping and a YAML file `output`, `overwrite` and what else is a command's own are left aside.
    """
    if isinstance(study, Study | TaskStudy):
        given = asdict(study)
    elif isinstance(study, Mapping):
        given = dict(study)
    else:
        given = _read_options(Path(study))
    options = {one.name: one for one in fields(kind)}
    defaults = {name: _default(one) for name, one in options.items()}
    if kind is Study:
        defaults |= {entry.value.option: entry.value.default for entry in sweeps}
        given |= given.pop("sweeps", {})
        del defaults["sweeps"]
    what = "study" if kind is Study else "tasks"
    unknown = sorted(set(given) - set(defaults))
    if unknown:
        raise ConfigError(
            f"{what} has no option '{unknown[0]}': its options are {', '.join(defaults)}"
        )
    missing = [name for name in defaults if name not in given and defaults[name] is MISSING]
    if missing:
        raise ConfigError(f"{what}: `{missing[0]}` is missing")
    for name in ("seeds", "pool_sizes"):
        if name in given:
            given[name] = _whole_numbers(given[name], name)
    given["paper"] = check_paper(given.get("paper") or {})
    return spelled_out({**defaults, **given})


def check_paper(paper: Any) -> Plain:
    """A `paper` as it is stored: what the paper prints is text, and so are names.

    It has a `title` and the `table` of a paper; its `figures` as printed, by recipe: one each, or
    by number of ingredients or by metric; `metric`, where that is not accuracy; `unit`, `percent`
    or `fraction`; `magnitude`, where all weights are multiplied by that. Nothing else may be in it.
    """
    known = ("title", "table", "metric", "unit", "magnitude", "figures")
    if not isinstance(paper, Mapping) or not set(paper) <= set(known):
        strange = sorted(set(paper) - set(known)) if isinstance(paper, Mapping) else [paper]
        raise ConfigError(f"paper has no '{strange[0]}': it has {', '.join(known)}")
    if not paper:
        return {}
    figures = paper.get("figures") or {}
    if "title" not in paper or not isinstance(figures, Mapping):
        raise ConfigError("paper: give its `title`, and `figures` as `{recipe: what is printed}`")
    if paper.get("unit", "percent") not in ("percent", "fraction"):
        raise ConfigError(f"paper: unit is {paper['unit']!r}: choose percent or fraction")
    text = {
        str(name): {str(one): str(value) for one, value in of.items()}
        if isinstance(of, Mapping)
        else str(of)
        for name, of in figures.items()
    }
    return {**paper, "figures": text}


def _whole_numbers(values: Any, name: str) -> list[int]:
    """Whole numbers of any kind, as a range or an array has them, as they are stored."""
    try:
        return [index(one) for one in (() if values is None else values)]
    except TypeError as error:
        raise ConfigError(f"{name} is {values!r}: give a list of whole numbers") from error


def _read_options(path: Path) -> Plain:
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path} cannot be read as YAML: {reason}; give another") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{path} holds no options of a study: give a YAML file of `name: value`")
    # A command's own, which are arguments here.
    own = ("output", "overwrite", "executor", "executor_options", "dry_run")
    return {name: value for name, value in found.items() if name not in own}


def _default(option: Field[Any]) -> Any:
    return option.default if option.default_factory is MISSING else option.default_factory()
