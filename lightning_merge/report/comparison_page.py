"""What `report.html` shows of a comparison or a study."""

from collections.abc import Mapping, Sequence
from typing import Any

from lightning_merge.measure.recommendation import Recommendation
from lightning_merge.measure.sweep import sweeps
from lightning_merge.plots.figure import SIZE, pool_sizes
from lightning_merge.plots.figure import figures as registered
from lightning_merge.report.comparison_report import choices, explanation, statistics_line
from lightning_merge.report.page import Page, PageMatrix, PageRow, PageTable
from lightning_merge.report.summary import metric_columns, table_cells

Row = Mapping[str, Any]

# The page has its own confusion matrices, as tables.
_AS_TABLES = ("confusion",)
_MOST_MATRICES = 6


def comparison_page(
    title: str, results: Mapping[str, Any], recommendation: Recommendation, figures: Sequence[str]
) -> Page:
    """The page of a comparison; the arguments are those of `comparison_report`."""
    rows, summary = results["measurements"], results["summary"]
    caption = explanation(rows, summary).replace("`", "'")
    cells = table_cells(summary, metric_columns(rows))
    swept = [
        PageTable.of_cells(table[0][0][:1].upper() + table[0][0][1:], table)
        for entry in sweeps
        if results.get(entry.value.key)
        for table in entry.value().tables(results[entry.value.key])
    ]
    statistics = statistics_line(results.get("statistics_examples"))
    return Page(
        title=title,
        made_by=results,
        facts=_facts(rows, results),
        advice=recommendation.lines,
        chosen=recommendation.use is not None,
        tables=[judged_rows("All methods", cells, summary, caption), *swept],
        figures={name: shows(name) for name in _ordered(figures) if name not in _AS_TABLES},
        matrices=_matrices(results.get("confusion"), recommendation),
        choices=[*choices(rows), *([statistics] if statistics else [])],
        differing=results["differing"],
        origin=_origin(results),
        config=results.get("config"),
    )


def judged_rows(
    title: str,
    cells: Sequence[Sequence[str]],
    rows_of: Sequence[Row],
    caption: str,
    kinds: Mapping[str, str] | None = None,
) -> PageTable:
    """A table with what is best, what guesses, and bars for the intervals.

    Each line of `cells`, behind the headings, is about a row of `Comparison.summary`; lines beyond
    these stay below. `kinds` is as in `PageTable`.
    """
    header, *lines = cells
    held_out = header.index("held out") if "held out" in header else None
    rows = []
    for line, row in zip(lines, rows_of, strict=False):
        shown, mark = list(line), row.get("mark") or ""
        if held_out is not None and mark:
            # The mark stands beside the name.
            shown[held_out] = shown[held_out].removesuffix(f" {mark}")
        ends = (row.get("accuracy"), row.get("accuracy_low"), row.get("accuracy_high"))
        rows.append(
            PageRow(
                shown,
                row.get("kind") or "",
                mark or ("guessing" if row.get("guessing") else ""),
                None if None in ends else ends,  # type: ignore[arg-type]
            )
        )
    last = [PageRow(line) for line in lines[len(rows_of) :]]
    return PageTable(title, header, rows, last, caption=caption, kinds=kinds or {})


def _facts(rows: Sequence[Row], results: Mapping[str, Any]) -> list[str]:
    sizes = [size for size in pool_sizes(rows) if size]
    ingredients = len({row["method"] for row in rows if row["kind"] == "ingredient"})
    examples = sorted({row["test_examples"] for row in rows})
    held_out = sorted({row["held_out_examples"] or 0 for row in rows} - {0})
    seeds = len({row["seed"] for row in rows})
    facts = [f"{ingredients} networks" if len(sizes) < 2 else f"up to {max(sizes)} networks"]
    if results.get("network"):
        facts[0] += f" ({results['network']})"
    facts.append(f"{_counts(examples)} test examples")
    if held_out:
        facts.append(f"{_counts(held_out)} held out of train")
    return [*facts, f"{seeds} seeds" if seeds > 1 else "1 seed"]


def _counts(values: Sequence[int]) -> str:
    return " or ".join(f"{value:,}" for value in values)


def _ordered(figures: Sequence[str]) -> list[str]:
    first = [name for name in ("cost", "methods", "pools", "barrier") if name in figures]
    return [*first, *(name for name in figures if name not in first)]


def shows(name: str) -> str:
    """The sentence that the figure's registration has: `magnitude-gap` is one of `magnitude`."""
    lines = {entry.name: entry.line for entry in registered}
    known = lines.get(name) or lines.get(name.partition("-")[0])
    return known or name.replace("-", " ").capitalize()


def _matrices(
    confusion: Mapping[str, Any] | None, recommendation: Recommendation
) -> list[PageMatrix]:
    """Those of the network to use, the best ingredient, the best merge and the ensemble."""
    if not confusion:
        return []
    roles = {
        "recommended": recommendation.use,
        "best single network": recommendation.best_ingredient,
        "best merge": recommendation.best_merge,
        "ensemble": recommendation.ensemble,
    }
    known = {(one["method"], one[SIZE]): one for one in confusion["matrices"]}
    named: dict[tuple[str, int | None], list[str]] = {}
    for role, one in roles.items():
        if one is not None and (one.method, one.pool_size) in known:
            named.setdefault((one.method, one.pool_size), []).append(role)
    if not named:
        made = [key for key, one in known.items() if one["kind"] != "ingredient"]
        named = {key: [known[key]["kind"]] for key in made[:_MOST_MATRICES]}
    return [
        PageMatrix(f"{key[0]} ({', '.join(of)})", confusion["classes"], known[key]["counts"])
        for key, of in named.items()
    ]


def _origin(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    found = [(str(name), str(value)) for name, value in (results.get("ingredients") or {}).items()]
    if results.get("split_hash"):
        found.append(("data", str(results["split_hash"])))
    splits = {str(one) for one in (results.get("split_hashes") or {}).values() if one}
    return [*found, *(("data", one) for one in sorted(splits))]
