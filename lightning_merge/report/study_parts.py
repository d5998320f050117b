"""What a report has beside its table and figures: the paper's table, NP Merge's duels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightning_merge.measure.measurement import Measurement
from lightning_merge.report.against_fine_tuning import duels, duels_part
from lightning_merge.report.paper_table import PaperTable, paper_table


@dataclass(frozen=True)
class StudyParts:
    """Further parts of a report: Markdown, entries of `results.json`, and the paper's table."""

    text: str
    results: dict[str, Any]
    table: PaperTable | None


def study_parts(
    config: Mapping[str, Any] | None,
    rows: Sequence[Measurement],
    summary: Sequence[Mapping[str, Any]],
    curves: Sequence[Mapping[str, Any]],
) -> StudyParts:
    """The further parts of a study's (or comparison's) results."""
    config = config or {}
    found = duels(rows, config.get("recipes") or [])
    table = paper_table(config, summary, curves)
    results: dict[str, Any] = {}
    if found:
        results["against_fine_tuning"] = [one.plain() for one in found]
    if table is not None:
        results["paper_table"] = table.plain
    paper = "" if table is None else f"\n## The paper's table\n\n{table.markdown}"
    return StudyParts(duels_part(found) + paper, results, table)
