"""The report of a comparison or a study, in Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

from lightning_merge.measure.recommendation import Recommendation
from lightning_merge.measure.sweep import sweeps
from lightning_merge.plots.figure import SIZE, pool_sizes
from lightning_merge.report.publish import provenance_part
from lightning_merge.report.summary import (
    markdown_lines,
    markdown_table,
    metric_columns,
    pool_table,
)

Row = Mapping[str, Any]


def comparison_report(
    title: str,
    rows: Sequence[Row],
    summary: Sequence[Row],
    recommendation: Recommendation,
    made_by: Mapping[str, Any],
    differing: Sequence[str],
    swept: Mapping[str, Sequence[Row]],
    figures: Sequence[str],
    statistics_examples: int | None,
) -> str:
    """The text of `report.md`.

    Args:
        title: Its heading.
        rows: One per measurement (`Measurement.row`).
        summary: One per method (`Comparison.summary`).
        recommendation: Which network to use.
        made_by: Command, versions and device.
        differing: The differences in provenance between the pieces.
        swept: The measurements of sweeps, under their keys.
        figures: The names of the figures beside the report.
        statistics_examples: The number of examples used for statistics; None for all.
    """
    columns = metric_columns(rows)
    seeds = sorted({row["seed"] for row in rows})
    examples = sorted({row["test_examples"] for row in rows})
    learned = sorted({row["train_examples"] for row in rows if row["kind"] != "ingredient"} - {0})
    parts = [
        f"# {title}\n",
        "\n".join(f"> {line}\n>" for line in recommendation.lines).removesuffix("\n>") + "\n",
        provenance_part(made_by, differing),
        f"{_listed('seed', seeds)}; {_listed('test example count', examples)}; merges that learn "
        f"saw {', '.join(str(count) for count in learned) or 'no'} labelled training examples. "
        "Mean ± standard deviation over seeds; seconds are those of making the model (training "
        "for an ingredient; alignment, aggregation and recalibration for a merge); MFLOPs are "
        "those of one prediction, a multiply-add counting as two. "
        + _intervals(summary)
        + "`held out` is the accuracy on examples held out of train: by it alone the best is "
        "chosen, and what is tied with it (within one example).\n",
        *([pool_table(summary)] if len(pool_sizes(summary)) > 1 else []),
        markdown_table(summary, columns),
    ]
    parts += _choices(rows)
    if statistics_examples is not None:
        parts.append(
            "Activations, BatchNorm statistics and REPAIR's were read from "
            f"{statistics_examples:,} training examples, drawn at random.\n"
        )
    for entry in sweeps:
        found = swept.get(entry.value.key)
        if found:
            parts += [_markdown(table) for table in entry.value().tables(found)]
    parts += [f"![{name}]({name}.png)\n" for name in figures]
    return "\n".join(parts)


def _intervals(summary: Sequence[Row]) -> str:
    how = dict.fromkeys(row["interval"] for row in summary if row["interval"])
    if not how:
        return ""
    words = {
        "bootstrap": "by bootstrap over test examples",
        "Wilson": "by Wilson's formula from accuracy and number of test examples",
    }
    return f"95% intervals are {' or '.join(words[one] for one in how)}. "


def _markdown(table: Sequence[Sequence[str]]) -> str:
    header, *lines = table
    return markdown_lines([header, ["---", *["---:"] * (len(header) - 1)], *lines])


def _choices(rows: Sequence[Row]) -> list[str]:
    """What was chosen on validation data, one entry for all methods that share a choice."""
    several = len(pool_sizes(rows)) > 1
    methods: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row.get("chosen"):
            where = f"{row[SIZE]} networks, " if several else ""
            where += f"seed {row['seed']}"
            methods.setdefault((where, row["chosen"]), []).append(row["method"])
    lines = [f"* {', '.join(of)}, {where}: {what}\n" for (where, what), of in methods.items()]
    return ["".join(lines)] if lines else []


def _listed(what: str, values: Sequence[int]) -> str:
    plural = "s" if len(values) > 1 else ""
    return f"{what}{plural} {', '.join(str(value) for value in values)}"
