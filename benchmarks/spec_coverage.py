"""How much of every timm family the derived specs cover: `python -m benchmarks.spec_coverage`.

One small network of each family with random weights is traced, its spec derived and
verified, and the spec checked once more without the engine: by the network itself.
"""

import argparse
import copy
import json
import multiprocessing
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.random_networks import outputs_of, randomised
from benchmarks.spec_census import census
from benchmarks.spec_report import NOT_RUN, report, summary
from benchmarks.spec_symmetries import symmetries
from lightning_merge.align import PermutationSpec
from lightning_merge.progress import tracked
from lightning_merge.provenance import provenance
from lightning_merge.symmetry import derive, spec

SIZES = (96, 128, 160, 192, 224, 256)
SCRATCH = Path(tempfile.gettempdir()) / "lightning_merge_spec_coverage.jsonl"
_LARGE = 150_000_000
_DEPTH = ("vit_412m_enc", "vit_412m", "vit_167m", "vit_167m_enc")


def smallest(family: str) -> str:
    """The model of a family with the fewest parameters; timm's test models are no models.

    Counted on the meta device with 10 classes; names break ties.
    """
    import timm

    counted = []
    for name in timm.list_models(module=family, exclude_filters="test_*"):
        try:
            with torch.device("meta"):
                model = timm.create_model(name, num_classes=10)
        except Exception:  # a model that cannot be built on the meta device is not chosen
            continue
        counted.append((sum(p.numel() for p in model.parameters()), name))
    return min(counted)[1]


def build(name: str) -> tuple[nn.Module, Tensor]:
    """The network with random weights, and the smallest square input of `SIZES` that it takes.

    Networks of a fixed input size are built for that size if they can be; networks of more
    than 150 million parameters with 4 blocks, if they can be.
    """
    import timm

    torch.manual_seed(0)
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=10)
    config = model.default_cfg
    channels, _, default = config["input_size"]
    large = sum(p.numel() for p in model.parameters()) > _LARGE
    depth = {"depth": 4} if large and name.endswith(_DEPTH) else {}
    fixed = bool(config.get("fixed_input_size"))
    model = None if fixed else timm.create_model(name, num_classes=10, **depth).eval()
    for size in (*(one for one in SIZES if one < default), default):
        x = torch.randn(2, channels, size, size)
        try:
            if fixed:
                torch.manual_seed(0)
                resized = {"img_size": size} if size != default else {}
                model = timm.create_model(name, num_classes=10, **resized, **depth).eval()
            with torch.no_grad():
                model(x)
        except Exception:  # too small: the next size
            continue
        return model, x
    raise ValueError(f"{name} takes no square input")


def examine(family: str, name: str | None = None) -> Iterator[dict[str, Any]]:
    """What the report says of one family: of its permutations, then of its symmetries too."""
    name = name or smallest(family)
    row: dict[str, Any] = {"family": family, "model": name}
    model, x = build(name)
    row |= {"size": x.shape[-1], "parameters": sum(p.numel() for p in model.parameters())}
    seen: dict[str, Any] = {}
    with _watched(seen), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        permutations = PermutationSpec.from_model(model, x)
    row |= {f"{step}_s": seen[f"{step}_s"] for step in ("export", "derive", "verify")}
    kept = {group.name for group in permutations.groups}
    why = dict(line.split(": ", 1) for line in seen["verify"][1])
    refused = {
        g.name: (g, "verification: " + _numberless(why.get(g.name, "refused")))
        for g in seen["derive"][0]
        if g.name not in kept
    }
    row["groups"] = len(permutations.groups)
    row["refused"] = [f"{g}: {line}" for g, (_, line) in refused.items()]
    row["unknown"] = seen["walk"].unknown
    counted = census(seen["walk"], seen["find_groups"][1], permutations.groups, refused)
    row |= counted.as_dict()
    start = time.perf_counter()
    row |= check(model, x, permutations)
    row["check_s"] = time.perf_counter() - start
    yield row
    try:
        row["symmetries"] = symmetries(model, x)
    except Exception as error:  # what is known of its permutations stands
        row["symmetries"] = _failure(error)
    yield row


class _watched:  # noqa: N801 - used as a function
    """While in force, what the steps of `PermutationSpec.from_model` return is kept."""

    steps = ((spec, "export"), (spec, "derive"), (spec, "verify"))
    steps += ((derive, "walk"), (derive, "find_groups"))

    def __init__(self, seen: dict[str, Any]) -> None:
        self.seen = seen

    def __enter__(self) -> None:
        self.before = [getattr(module, name) for module, name in self.steps]
        for (module, name), function in zip(self.steps, self.before, strict=True):
            setattr(module, name, self._timed(name, function))

    def __exit__(self, *_: object) -> None:
        for (module, name), function in zip(self.steps, self.before, strict=True):
            setattr(module, name, function)

    def _timed(self, name: str, function: Any) -> Any:
        def timed(*args: Any) -> Any:
            start = time.perf_counter()
            self.seen[name] = function(*args)
            self.seen[f"{name}_s"] = time.perf_counter() - start
            return self.seen[name]

        return timed


def _numberless(line: str) -> str:
    return " ".join(word for word in line.split() if not any(c.isdigit() for c in word))


def check(model: nn.Module, x: Tensor, permutations: PermutationSpec) -> dict[str, Any]:
    """Permute the network itself, all groups at once, and compare its outputs in float64.

    Every parameter and the statistics of every norm are random. `error` is the relative
    change of the output, `half` that of permuting every other tensor only, which must show.
    """
    generator = torch.Generator().manual_seed(1)
    model = randomised(copy.deepcopy(model).double().eval(), generator)
    x = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    permutation = permutations.random(generator)
    permuted = permutations.apply(before, permutation)
    back = permutations.apply(permuted, permutations.inverse(permutation))
    moved = [name for name in before if not torch.equal(before[name], permuted[name])]
    half = {name: permuted[name] if name in moved[::2] else before[name] for name in before}
    outputs = outputs_of(model, x, (before, permuted, half))
    return {
        "error": float((outputs[1] - outputs[0]).norm() / outputs[0].norm()),
        "half": float((outputs[2] - outputs[0]).norm() / outputs[0].norm()),
        "inverse": all(torch.equal(back[name], before[name]) for name in before),
    }


def _child(family: str, name: str | None, pipe: Connection) -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    try:
        for row in examine(family, name):
            pipe.send(row)
    except Exception as error:  # the walk goes on, whatever a family does
        pipe.send({"family": family, "model": name, **_failure(error)})


def _failure(error: Exception) -> dict[str, str]:
    line = (str(error).splitlines() or [""])[0]
    return {
        "failed": f"{type(error).__name__}: {line}"[:300],
        "traceback": traceback.format_exc()[-2000:],
    }


def walk(
    families: list[str], limit: float, jobs: int, chosen: dict[str, str]
) -> Iterator[dict[str, Any]]:
    """One row for each family, in the order in which they finish, each in a process of its own."""
    fork = multiprocessing.get_context("fork")
    waiting, running = list(families), {}
    halves: dict[str, dict[str, Any]] = {}
    while waiting or running:
        while waiting and len(running) < jobs:
            family = waiting.pop(0)
            ours, theirs = fork.Pipe(duplex=False)
            process = fork.Process(target=_child, args=(family, chosen.get(family), theirs))
            process.start()
            theirs.close()
            running[ours] = family, process, time.monotonic()
        ready = set(wait(list(running), timeout=0.5))
        for pipe, (family, process, start) in list(running.items()):
            row: dict[str, Any] | None = None
            if pipe in ready:
                try:
                    row = pipe.recv()
                except EOFError:
                    row = _stopped(family, halves, "the process died")
                if "failed" not in row and "symmetries" not in row:
                    halves[family], row = row, None
            elif time.monotonic() - start > limit:
                row = _stopped(family, halves, f"took more than {limit:.0f} s")
            if row is not None:
                process.kill()
                process.join()
                del running[pipe]  # type: ignore[arg-type]
                yield row | {"total_s": time.monotonic() - start}


def _stopped(family: str, halves: dict[str, dict[str, Any]], why: str) -> dict[str, Any]:
    """The row of a family whose process ended early, perhaps after its permutations."""
    if family in halves:
        return {**halves[family], "symmetries": {"failed": why}}
    return {"family": family, "failed": why}


def main(arguments: list[str] | None = None) -> None:
    """Walk what has not been walked yet, and write the report."""
    import timm
    from rich.console import Console

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--families", nargs="*", help="only these; the report has these only")
    parser.add_argument("--output", type=Path, help="where to write the report")
    parser.add_argument("--limit", type=float, default=300, help="seconds for a family")
    parser.add_argument("--jobs", type=int, default=1, help="families at a time")
    parser.add_argument("--scratch", type=Path, default=SCRATCH, help="rows seen so far")
    parser.add_argument("--fresh", action="store_true", help="forget the rows seen so far")
    parser.add_argument("--only_report", action="store_true", help="of the rows seen so far")
    options = parser.parse_args(arguments)
    families = options.families or timm.list_modules()
    rows: dict[str, dict[str, Any]] = {}
    chosen: dict[str, str] = {}
    if options.scratch.exists():
        seen = [json.loads(line) for line in options.scratch.read_text().splitlines()]
        chosen = {row["family"]: row["model"] for row in seen if row.get("model")}
        rows = {} if options.fresh else {row["family"]: row for row in seen}
        rows = {family: row for family, row in rows.items() if "failed" not in row}
    console = Console(highlight=False)
    todo = [family for family in families if family not in rows and not options.only_report]
    made = walk(todo, options.limit, options.jobs, chosen)
    with options.scratch.open("a") as file:
        for _ in tracked(todo, "Families"):
            row = next(made)
            rows[row["family"]] = row
            file.write(json.dumps(row) + "\n")
            file.flush()
            console.print(_line(row), markup=False)
    missing = {"failed": NOT_RUN}
    chosen_rows = [rows.get(family, {"family": family, **missing}) for family in families]
    for line in summary(chosen_rows):
        console.print(line, markup=False)
    if options.output:
        made_by = provenance([])
        versions = ", ".join(f"{name} {version}" for name, version in made_by["versions"].items())
        command = "python -m benchmarks.spec_coverage"
        if options.families:
            command += f" --families {' '.join(families)}"
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(report(chosen_rows, f"{command} --output FILE", versions))


def _line(row: dict[str, Any]) -> str:
    head = f"{row['family']}: {row.get('model')}"
    if "failed" in row:
        return f"{head}: {row['failed']} ({row['total_s']:.0f} s)"
    return (
        f"{head} at {row['size']}: {row['groups']} groups, {row['free']} of {row['hidden']} units "
        f"free, error {row['error']:.0e}, {len(row['refused'])} refused, "
        f"{row['export_s']:.1f} + {row['derive_s']:.1f} + {row['verify_s']:.1f} s; "
        f"symmetries: {row['symmetries']}"
    )


if __name__ == "__main__":
    main()
