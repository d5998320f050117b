"""What a search among damaged files found, and its page."""

import collections
import platform
import re
from pathlib import Path
from typing import Any

import torch


class Tally:
    """What was found so far.

    Attributes:
        counts: Files by kind, fault and outcome.
        findings: By what they say: kind, fault, first number, how many.
    """

    def __init__(self) -> None:
        self.counts: collections.Counter[tuple[str, str, str]] = collections.Counter()
        self.findings: dict[str, list[Any]] = {}

    def add_finding(self, kind: str, fault: str, text: str, number: int) -> None:
        """One more."""
        known = self.findings.setdefault(
            f"{kind}: {text.split(': ')[1]}", [kind, fault, text, number, 0]
        )
        known[4] += 1


def report(seed: int, done: int, seconds: float, tally: Tally, words: list[str]) -> str:
    """The page of results."""
    outcomes = ("read", "refused", "finding")

    def table(title: str, index: int) -> list[str]:
        rows = [f"| {title} | files | read | refused in a line | findings |"]
        rows.append("| --- | ---: | ---: | ---: | ---: |")
        for name in dict.fromkeys(sorted(key[index] for key in tally.counts)):
            by = [
                sum(n for k, n in tally.counts.items() if k[index] == name and k[2] == outcome)
                for outcome in outcomes
            ]
            rows.append(f"| {name} | {sum(by):,} | " + " | ".join(f"{n:,}" for n in by) + " |")
        return rows

    found = [
        f"* {kind}, {fault or 'any fault'}: `{text[9:]}` ({times} times, first file {number})"
        for kind, fault, text, number, times in tally.findings.values()
    ]
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    return "\n".join(
        [
            f"{done:,} files of seed {seed} in {seconds / 60:.0f} minutes ({versions}):",
            "",
            f"    python -m benchmarks.mutated_files {' '.join(words)}",
            "",
            *table("kind of file", 0),
            "",
            "Faults (what each does: `benchmarks/mutations.py`):",
            "",
            *table("fault", 1),
            "",
            "Findings:",
            "",
            *(found or ["None."]),
            "",
        ]
    )


BEGIN, END = "<!-- figures: written by benchmarks.mutated_files -->", "<!-- end of figures -->"


def write_report(path: Path, seed: int, text: str) -> None:
    """Puts a seed's figures into the page, between its marks, and the sum of all seeds above them.

    The words around the marks, and the figures of other seeds, stay.
    """
    page = path.read_text() if path.is_file() else f"# Damaged files\n\n{BEGIN}\n{END}\n"
    before, _, rest = page.partition(BEGIN)
    figures, _, after = rest.partition(END)
    found = re.findall(
        r"^### Seed (\d+)\n(.*?)(?=^### Seed |\Z)", figures, re.DOTALL | re.MULTILINE
    )
    seeds = {int(number): section.strip() for number, section in found} | {seed: text.strip()}
    count = sum(int(one.partition(" ")[0].replace(",", "")) for one in seeds.values())
    listed = ", ".join(map(str, sorted(seeds)))
    sections = [f"### Seed {number}\n\n{seeds[number]}\n" for number in sorted(seeds)]
    total = f"**{count:,} files in all**, of the seeds {listed}.\n"
    path.write_text("\n".join([f"{before}{BEGIN}\n", total, *sections, f"{END}{after}"]))
