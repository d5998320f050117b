"""The report of the coverage walk, in Markdown."""

import re
import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Any

from benchmarks.spec_symmetries import KINDS

TOLERANCE = 1e-6
ENOUGH = 0.8
NOT_RUN = "not run"

_INTRODUCTION = """# How much of each timm family the specs cover

    {command}

One network of every module of `timm.list_modules()`: {versions}. It is the one with the fewest
parameters among those that build, timm's `test_*` models left out, with 10 classes, at the
smallest square input of 96, 128, 160, 192, 224 or 256 pixels that it takes (its own size
where none of them fits). Nothing is downloaded: the weights are random (seed 0). The
transformers of more than 150 million parameters have 4 blocks.

A *hidden unit* is a position along an axis of a parameter or persistent buffer, where all
positions that have to move together (a channel of a residual stream in every layer that reads
or writes it) count as one. Not counted are the network's inputs and what runs over positions
(pixels, tokens, rows of a table that are looked up by position), its outputs (unless another
layer of the network reads them), and positions in the window of a convolution. Everything
else counts, also what an operator without a rule or a constant (the angles of rotary
positions, say) holds in place. A unit is *free* if some group of the verified spec exchanges
it with another one; those that move only as a part of their attention head are not.

*Error* is that of the network itself, outside the engine, in float64: all parameters and the
running statistics are random (seed 1), all groups are permuted at once, and it is the relative
change of the output. Permuting every other tensor only has to change it by more than {vacuous:g},
and the inverse permutation has to restore every tensor bit for bit. An error above
{tolerance:g} is called wrong (a few networks compute a part in float32 whatever their dtype).

The last five columns are those of the spec with all symmetries: for each kind the number of
groups, and in brackets of their units; *refused*, how many groups the verification (1e-9, in
float64, everything random) left with permutations though more had been derived; *error of maps*,
the same check by the network itself, of its canonical form under random maps of all groups. All
groups that are counted were verified.

Seconds are those of one process with one thread, on a machine that others used at the time:
they bound the cost from above.
"""

_VACUOUS = 1e-3


def summary(rows: Sequence[dict[str, Any]]) -> list[str]:
    """A few lines over all families."""
    done = [row for row in rows if "failed" not in row]
    if not done:
        return [f"{len(rows)} families, none done"]
    enough = [row for row in done if share(row) >= ENOUGH and not wrong(row)]
    times = [seconds(row) for row in done]
    slowest = max(done, key=seconds)
    strict = [r for r in done if r["free"] >= ENOUGH * (r["hidden"] + r["positions"])]
    mapped = [row for row in done if "failed" not in row["symmetries"]]
    found = [row["symmetries"] for row in mapped]
    kinds = [f"{kind} groups in {sum(kind in one['kinds'] for one in found)}" for kind in KINDS]
    some = [one for one in found if one["kinds"]]
    return [
        f"{len(done)} of {len(rows)} families derived and verified, {_failures(rows)}",
        f"{sum(map(wrong, done))} wrong",
        f"{len(enough)} with at least {ENOUGH:.0%} of their hidden units free "
        f"({len(enough) / len(rows):.0%} of the families); {len(strict)} if inputs, pixels and "
        "tokens counted as hidden units that are not free",
        f"{sum(len(row['refused']) for row in done)} groups refused by the verification, in "
        f"{sum(bool(row['refused']) for row in done)} families",
        f"export, derivation and verification: median {statistics.median(times):.1f} s, "
        f"most {seconds(slowest):.1f} s ({slowest['family']})",
        f"all symmetries: {len(mapped)} families derived and verified, "
        f"{_failures([row['symmetries'] for row in done])}; "
        f"{', '.join(kinds)} of them, permutations alone in {len(found) - len(some)}; "
        f"{sum(map(_maps_wrong, found))} wrong; {sum(len(one['refused']) for one in found)} groups "
        f"refused in {sum(bool(one['refused']) for one in found)} families",
    ]


def _failures(rows: Sequence[dict[str, Any]]) -> str:
    """How many failed, and how many a walk that was cut off did not come to."""
    failed = [row["failed"] for row in rows if "failed" in row]
    left = failed.count(NOT_RUN)
    return f"{len(failed) - left} failed" + (f", {left} not run" if left else "")


def share(row: dict[str, Any]) -> float:
    """The share of the hidden units that are free."""
    return float(row["free"] / row["hidden"]) if row["hidden"] else 0.0


def wrong(row: dict[str, Any]) -> bool:
    """Whether the independent check saw another function, or could not have seen one."""
    return not (row["error"] <= TOLERANCE and row["inverse"] and row["half"] > _VACUOUS)


def seconds(row: dict[str, Any]) -> float:
    """Export, derivation and verification."""
    return float(row["export_s"] + row["derive_s"] + row["verify_s"])


def report(rows: Sequence[dict[str, Any]], command: str, versions: str) -> str:
    """The whole document."""
    lines = [
        _INTRODUCTION.format(
            command=command, versions=versions, vacuous=_VACUOUS, tolerance=TOLERANCE
        ),
        *(f"* {line}" for line in summary(rows)),
        "",
        "| family | model | pixels | groups | hidden units | free | positions, outputs, windows "
        "| export, derive, verify, s | error | what stays, and why "
        f"| {' | '.join(KINDS)} | refused | error of maps |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- "
        "| ---: | ---: | ---: | ---: | ---: |",
        *(_row(row) for row in rows),
    ]
    return "\n".join(lines) + "\n"


def _row(row: dict[str, Any]) -> str:
    if "failed" in row:
        return (
            f"| {row['family']} | {row.get('model') or ''} |  |  |  |  |  |  |  | {row['failed']} "
            "|  |  |  |  |  |"
        )
    times = ", ".join(f"{row[f'{step}_s']:.1f}" for step in ("export", "derive", "verify"))
    error = f"{row['error']:.0e}" + (" **wrong**" if wrong(row) else "")
    numbers = (
        row["family"],
        row["model"],
        row["size"],
        row["groups"],
        f"{row['hidden']:,}",
        _percent(share(row)),
        f"{row['positions']}, {row['outputs']}, {row['kernel']}",
        times,
        error,
        _why(row["reasons"]),
        *_maps(row["symmetries"]),
    )
    return f"| {' | '.join(map(str, numbers))} |"


def _maps(found: dict[str, Any]) -> list[str]:
    """The columns of the symmetries beyond permutations."""
    if "failed" in found:
        return ["", "", "", "", found["failed"]]
    counts = [found["kinds"].get(kind) for kind in KINDS]
    columns = [f"{one[0]} ({one[1]:,})" if one else "" for one in counts]
    error = f"{found['error']:.0e}" if found["kinds"] else ""
    return [
        *columns,
        str(len(found["refused"]) or ""),
        error + (" **wrong**" if _maps_wrong(found) else ""),
    ]


def _maps_wrong(found: dict[str, Any]) -> bool:
    """Whether the network itself gave something else, or did not see that tensors changed."""
    if not found["kinds"]:
        return False
    return not (found["error"] <= TOLERANCE and found["half"] > _VACUOUS)


def _percent(share: float) -> str:
    """Rounded down, so that only all is 100%."""
    return f"{int(1000 * share) / 10:g}%"


def _why(reasons: dict[str, int], most: int = 3) -> str:
    """The most frequent reasons, with the layers' names left out."""
    counted: Counter[str] = Counter()
    for reason, count in reasons.items():
        line = re.sub(r"the constant \S+ differs", "a constant differs", reason)
        counted[re.sub(r"^verification: .*$", "refused by the verification", line)] += count
    lines = [f"{count:,}: {line}" for line, count in counted.most_common(most)]
    rest = sum(counted.values()) - sum(count for _, count in counted.most_common(most))
    return "; ".join([*lines, *([f"{rest:,}: other"] if rest else [])]) or "nothing"
