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
    title: str, results: Mapping[str, Any], recommendation: Recommendation, figures: Sequence[str]
) -> str:
    """The text of `report.md` from the content of `results.json`; figures are names of files."""
    rows, summary = results["measurements"], results["summary"]
    lines = "".join(f"* {line}\n" for line in choices(rows))
    statistics = statistics_line(results.get("statistics_examples"))
    parts = [
        f"# {title}\n",
        advice_part(recommendation),
        provenance_part(results, results["differing"]),
        explanation(rows, summary) + "\n",
        *([pool_table(summary)] if len(pool_sizes(summary)) > 1 else []),
        markdown_table(summary, metric_columns(rows)),
    ]
    if lines:
        parts.append(lines)
    if statistics:
        parts.append(statistics + "\n")
    for entry in sweeps:
        found = results.get(entry.value.key)
        if found:
            parts += map(markdown_lines, entry.value().tables(found))
    parts += [f"![{name}]({name}.png)\n" for name in figures]
    return "\n".join(parts)


def explanation(rows: Sequence[Row], summary: Sequence[Row]) -> str:
    """What the numbers of the table are, and on how many examples they stand."""
    seeds = sorted({row["seed"] for row in rows})
    examples = sorted({row["test_examples"] for row in rows})
    spread = "Numbers are mean ± standard deviation over seeds. " if len(seeds) > 1 else ""
    return (
        f"{_listed('Seed', seeds)}; {' or '.join(f'{count:,}' for count in examples)} test "
        f"examples. Merges that learn saw {_labelled(rows)}. {spread}Seconds are those of making "
        "the model (training for an ingredient; alignment, aggregation and recalibration for a "
        "merge); MFLOPs are those of one prediction, a multiply-add counting as two. "
        + intervals_line(summary)
        + "`held out` is the accuracy on examples held out of train: by it alone the best is "
        "chosen, and what is tied with it (within one example)."
    )


def statistics_line(examples: int | None) -> str:
    """How many training examples statistics were read from; empty if all."""
    if examples is None:
        return ""
    return (
        "Activations, BatchNorm statistics, REPAIR's and least squares' were read from "
        f"{examples:,} training examples, drawn at random."
    )


def advice_part(recommendation: Recommendation) -> str:
    """The recommendation as a quotation."""
    quoted = "\n".join(f"> {line}\n>" for line in recommendation.lines)
    return quoted.removesuffix("\n>") + "\n"


def intervals_line(summary: Sequence[Row], of: str = "") -> str:
    """How the intervals of a table were made, and of what; empty if there are none."""
    how = dict.fromkeys(row["interval"] for row in summary if row["interval"])
    if not how:
        return ""
    words = {
        "bootstrap": "by bootstrap over test examples",
        "Wilson": "by Wilson's formula from accuracy and number of test examples",
    }
    return f"95% intervals {of}are {' or '.join(words[one] for one in how)}. "


def choices(rows: Sequence[Row]) -> list[str]:
    """What was chosen on held-out data, one line for all methods that share a choice."""
    several = len(pool_sizes(rows)) > 1
    methods: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row.get("chosen"):
            where = f"{row[SIZE]} networks, " if several else ""
            where += f"seed {row['seed']}"
            methods.setdefault((where, row["chosen"]), []).append(row["method"])
    return [f"{', '.join(of)}, {where}: {what}" for (where, what), of in methods.items()]


def _labelled(rows: Sequence[Row]) -> str:
    """How many labelled examples merges learned from; those that had another number are named."""
    having: dict[int, dict[str, None]] = {}
    for row in rows:
        if row["kind"] != "ingredient" and row["train_examples"]:
            having.setdefault(row["train_examples"], {})[row["method"]] = None
    if not having:
        return "no labelled training examples"
    most, *others = sorted(having, key=lambda count: (-len(having[count]), -count))
    named = "; ".join(f"{count:,}: {', '.join(having[count])}" for count in others)
    return f"{most:,} labelled training examples" + (f" ({named})" if named else "")


def _listed(what: str, values: Sequence[int]) -> str:
    plural = "s" if len(values) > 1 else ""
    return f"{what}{plural} {', '.join(str(value) for value in values)}"
