"""A leader table over studies: which merges rank first, and in which situations."""

import hashlib
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from lightning_merge.errors import ConfigError
from lightning_merge.files import read_json, write_csv, write_text, written_together
from lightning_merge.measure.whole_means import ROUNDING, whole_mean
from lightning_merge.plots.figure import SIZE
from lightning_merge.plots.leader_map import plot_leaders
from lightning_merge.plots.style import save
from lightning_merge.report.recipe_words import arguments_of, kind_of
from lightning_merge.report.summary import markdown_lines

Plain = Mapping[str, Any]

FILES = ("leaders.md", "leaders.csv", "leaders.png", "leaders.svg")

LITTLE = 100
"""So many labelled examples of each class, or fewer, are little data."""

_COLUMNS = ("mean rank", "of", "beaten", "over networks", "over best", "first in", "fields")

_SKEWED = ("80-20", "dirichlet")


@dataclass(frozen=True)
class Leader:
    """How one way of merging ranks in one situation.

    Attributes:
        id: Of this row, to be cited by: it depends on situation and recipe alone.
        situation: `factor: value`, several of them joined by `; `, or `all`.
        recipe: Aggregate, alignment, recalibration, selection.
        rank: The mean of its ranks by test accuracy (1 is best) among the merges of each field.
        of: The mean number of merges in these fields.
        beaten: The mean share of the other merges in a field that it is better than; fields of
            different sizes can be compared by it.
        over_networks: Its mean accuracy less that of the networks merged, a fraction of 1.
        over_best: The same less that of the best of these networks, chosen by held-out accuracy
            for each seed; None where a study has no held-out examples.
        fields: How many fields that are: a study with one number of ingredients.
        first: In how many of them it is the best.
        studies: The ids of the studies.
    """

    id: str
    situation: str
    recipe: str
    rank: float
    of: float
    beaten: float
    over_networks: float | None
    over_best: float | None
    fields: int
    first: int
    studies: tuple[str, ...]


@dataclass(frozen=True)
class LeaderTable:
    """Rows for every situation, best first, and the studies that they stand on.

    Attributes:
        rows: The rows.
        studies: For each study, by id, its folder, its title and how many seeds it has.
    """

    rows: Sequence[Leader]
    studies: Mapping[str, str]

    @property
    def markdown(self) -> str:
        """The table in Markdown, a section for each situation."""
        text = (
            "# Leaders\n\nMerges ranked by mean test accuracy over seeds, among the merges of the "
            "same ingredients (a study with one number of them is a field); ensembles, which cost "
            "more to run, and ingredients are left out. `beaten` is the share of the other merges "
            "of a field that one is better than, on average: rows are sorted by it. `over "
            "networks` is the difference to the mean accuracy of the networks that are merged, "
            "`over best` to the best of them by held-out accuracy, in percentage points. Rows are "
            f"cited by their id. Little data: at most {LITTLE} labelled examples of a class.\n"
        )
        for situation in dict.fromkeys(row.situation for row in self.rows):
            lines = [["id", "merge", *_COLUMNS, "studies"]]
            lines += [
                [
                    row.id,
                    row.recipe,
                    f"{row.rank:.2f}",
                    f"{row.of:.1f}",
                    f"{row.beaten:.2f}",
                    _points(row.over_networks),
                    _points(row.over_best),
                    str(row.first),
                    str(row.fields),
                    " ".join(row.studies),
                ]
                for row in self.rows
                if row.situation == situation
            ]
            text += f"\n## {situation}\n\n{markdown_lines(lines, ('merge', 'studies'))}"
        return (
            text
            + "\n## Studies\n\n"
            + "".join(f"* {name}: {what}\n" for name, what in self.studies.items())
        )

    def figure(self) -> Figure:
        """By how much each merge is above or below its networks, by situation."""
        # Whole situations have several factors: their names do not fit a column.
        shown = [row for row in self.rows if ";" not in row.situation]
        return plot_leaders(
            list(dict.fromkeys(row.recipe for row in shown)),
            list(dict.fromkeys(row.situation for row in shown)),
            {(row.recipe, row.situation): row.over_networks for row in shown},
            "Accuracy over the networks' average, in percentage points",
        )

    def save(self, folder: Path) -> list[Path]:
        """Writes `leaders.md`, `leaders.csv` and the figure."""
        rows = [{**vars(row), "studies": " ".join(row.studies)} for row in self.rows]
        with written_together():
            return [
                write_text(folder / FILES[0], self.markdown),
                write_csv(folder / FILES[1], rows),
                *save(self.figure(), folder / "leaders"),
            ]


@dataclass(frozen=True)
class _Field:
    """The merges of the same ingredients: accuracies by recipe, in a situation."""

    study: str
    situation: dict[str, str]
    scores: dict[str, list[float]]
    networks: float | None
    best: float | None

    def over(self, recipe: str) -> tuple[float | None, float | None]:
        """By how much a recipe is above the mean network, and above the best one."""
        own = statistics.fmean(self.scores[recipe])
        networks, best = (None if it is None else own - it for it in (self.networks, self.best))
        return networks, best

    def places(self) -> dict[str, tuple[float, float]]:
        """For each recipe its rank, and the share of the others that it beats; ties share both."""
        every = [score for scores in self.scores.values() for score in scores]
        found = {}
        for recipe, scores in self.scores.items():
            ranks = [_rank(score, every) for score in scores]
            rank = statistics.fmean(ranks)
            found[recipe] = rank, (len(every) - rank) / (len(every) - 1)
        return found

    @property
    def size(self) -> int:
        """How many merges there are."""
        return sum(map(len, self.scores.values()))


def leader_table(folders: Sequence[str | Path]) -> LeaderTable:
    """Ranks the merges of several studies, in all and in each situation.

    Situations are read from each study's stored options: whether its networks start from the same
    weights, how many labelled examples of a class there are, how many networks are merged, and
    whether they were trained on the same classes.

    Args:
        folders: Output folders of `study`, each with a `results.json`.

    Raises:
        ConfigError: If a folder has no results of a study (those of `compare` and `tasks` do not
            say what the situation is), two hold the same merge, or none has two merges to compare.
    """
    fields: list[_Field] = []
    studies: dict[str, str] = {}
    seen: set[str] = set()
    taken: dict[str, Path] = {}
    for folder in map(Path, folders):
        results = _results(folder)
        text = f"{results['config']}{results['measurements']}"
        digest = hashlib.sha256(text.encode()).hexdigest()
        if digest in seen:
            continue
        seen.add(digest)
        _take(taken, folder, results)
        # As a rule four digits; more where another study has the same ones.
        names = (f"S{digest[:length]}" for length in range(4, len(digest) + 1))
        name = next(name for name in names if name not in studies)
        seeds = len({row["seed"] for row in results["measurements"]})
        title = " ".join(str(results["config"].get("title", "a study")).split())
        studies[name] = f"{title}, {seeds} seed{'s' if seeds > 1 else ''} ({folder})"
        fields += _fields(name, results)
    if not fields:
        raise ConfigError("these studies have no two merges of the same ingredients to compare")
    rows = []
    for situation, within in _situations(fields).items():
        rows += _ranked(situation, within)
    return LeaderTable(rows, studies)


def _take(taken: dict[str, Path], folder: Path, results: Plain) -> None:
    """Notes the merges of a folder, `taken` by none before it: they would count twice."""
    config = {name: results["config"].get(name) for name in ("model", "data", "training", "start")}
    for row in results["measurements"]:
        if row["kind"] != "merge":
            continue
        other = taken.setdefault(f"{config}{row}", folder)
        if other is not folder:
            raise ConfigError(
                f"{other} and {folder} hold the same merge ('{row['method']}', seed {row['seed']}) "
                "and would count it twice: give the larger one, or what `join` makes of them"
            )


def situation_of(
    config: Plain, rows: Sequence[Plain], size: int | None, classes: int | None = None
) -> dict[str, str]:
    """The situation of a study's merges of `size` ingredients, by factor.

    `classes` is for models without a `num_classes` of their own. Where neither is known it is not
    known either whether data are little.
    """
    model, data = (arguments_of(config.get(name)) for name in ("model", "data"))
    ingredients = config.get("ingredients") or []
    same = config.get("start") is not None or bool(model.get("pretrained"))
    examples, count = data.get("examples_per_class"), model.get("num_classes") or classes
    if examples is None and count:
        seen = [row["train_examples"] for row in rows if row.get("train_examples")]
        examples = max(seen, default=0) / int(count)
    divided = {str(one["classes"]) for one in ingredients if one.get("classes") is not None}
    if len(divided) > 1 or data.get("split") == "classes":
        shared = "disjoint"
    else:
        shared = "shared unevenly" if data.get("split") in _SKEWED else "the same"
    return {
        "initialisation": "same" if same else "different",
        "data": _amount(examples),
        "networks": str(size or 2),
        "classes": shared,
    }


def _amount(examples: float | None) -> str:
    if examples is None:
        return "unknown"
    return "little" if examples <= LITTLE else "much"


def _fields(study: str, results: Plain) -> list[_Field]:
    config, rows = results["config"], results["measurements"]
    classes = len((results.get("confusion") or {}).get("classes") or ())
    known = {recipe["name"]: _described(recipe) for recipe in config.get("recipes") or []}
    merges = [row for row in rows if row["kind"] == "merge" and row["method"] in known]
    found = []
    for size in dict.fromkeys(row.get(SIZE) for row in merges):
        scores: dict[str, list[float]] = {}
        for method in dict.fromkeys(row["method"] for row in merges if row.get(SIZE) == size):
            own = [r["accuracy"] for r in merges if (r["method"], r.get(SIZE)) == (method, size)]
            if None not in own:
                scores.setdefault(known[method], []).append(statistics.fmean(own))
        networks, best = _networks(rows, size)
        field = _Field(study, situation_of(config, rows, size, classes), scores, networks, best)
        if field.size > 1:
            found.append(field)
    return found


def _networks(rows: Sequence[Plain], size: int | None) -> tuple[float | None, float | None]:
    """The mean accuracy of a pool's networks, and of each seed's best by held-out data."""
    own = [row for row in rows if row["kind"] == "ingredient"]
    merged = list(dict.fromkeys(row["method"] for row in own))[:size]
    own = [row for row in own if row["method"] in merged]
    if not own or any(row["accuracy"] is None for row in own):
        return None, None
    mean = statistics.fmean(row["accuracy"] for row in own)
    if any(row.get("held_out") is None for row in own):
        return mean, None
    seeds = [[row for row in own if row["seed"] == seed] for seed in {r["seed"] for r in own}]
    best = [max(one, key=lambda row: row["held_out"])["accuracy"] for one in seeds]
    return mean, statistics.fmean(best)


def _situations(fields: Sequence[_Field]) -> dict[str, list[_Field]]:
    """All fields; those of each value of a factor; those of each whole situation."""
    found: dict[str, list[_Field]] = {"all": list(fields)}
    for factor in fields[0].situation:
        for value in sorted({field.situation[factor] for field in fields}):
            own = [field for field in fields if field.situation[factor] == value]
            found[f"{factor}: {value}"] = own
    for field in fields:
        whole = "; ".join(f"{factor}: {value}" for factor, value in field.situation.items())
        found.setdefault(whole, []).append(field)
    return found


def _ranked(situation: str, fields: Sequence[_Field]) -> list[Leader]:
    rows = []
    for recipe in dict.fromkeys(recipe for field in fields for recipe in field.scores):
        own = [field for field in fields if recipe in field.scores]
        places = [field.places() for field in own]
        networks, bests = zip(*(field.over(recipe) for field in own), strict=True)
        best = [min(rank for rank, _ in one.values()) for one in places]
        digest = hashlib.sha256(f"{situation}|{recipe}".encode()).hexdigest()[:5]
        rows.append(
            Leader(
                f"L{digest}",
                situation,
                recipe,
                statistics.fmean(one[recipe][0] for one in places),
                statistics.fmean(field.size for field in own),
                statistics.fmean(one[recipe][1] for one in places),
                whole_mean(networks),
                whole_mean(bests),
                len(own),
                sum(one[recipe][0] == top for one, top in zip(places, best, strict=True)),
                tuple(dict.fromkeys(field.study for field in own)),
            )
        )
    return sorted(rows, key=lambda row: (-row.beaten, row.rank, row.recipe))


def _points(fraction: float | None) -> str:
    # Adding zero takes the sign off a negative zero.
    return "" if fraction is None else f"{round(100 * fraction, 1) + 0.0:+.1f}"


def _rank(score: float, every: Sequence[float]) -> float:
    """The rank of a score, the highest first; equal ones share the mean of theirs."""
    above = sum(other > score + ROUNDING for other in every)
    return above + (1 + sum(abs(other - score) <= ROUNDING for other in every)) / 2


def _described(recipe: Plain) -> str:
    """What a recipe does, whatever it is called."""
    aggregate = recipe.get("aggregate")
    arguments = arguments_of(aggregate)
    align = recipe.get("align") or arguments.get("matching")
    kind = kind_of(aggregate)
    if arguments.get("granularity", "parameter") != "parameter":
        kind += f" ({arguments['granularity']})"
    after = f" after {kind_of(align)}" if align else ""
    chosen = f" of those chosen by {kind_of(recipe['select'])}" if recipe.get("select") else ""
    start = f" from {kind_of(arguments['start'])}" if arguments.get("start") else ""
    then = f", {kind_of(recipe['recalibrate'])}" if recipe.get("recalibrate") else ""
    return f"{kind}{after}{chosen}{start}{then}"


def _results(folder: Path) -> dict[str, Any]:
    path = folder / "results.json" if folder.is_dir() else folder
    try:
        found = read_json(path)
        _take({}, folder, found)
        if not isinstance(found["config"]["ingredients"], list) or not found["measurements"]:
            raise KeyError("ingredients")
        _fields("", found)
    except PermissionError:
        raise
    except (AttributeError, LookupError, OSError, RecursionError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{path} holds no results of a study: give folders that `study` has finished"
        ) from error
    return dict(found)
