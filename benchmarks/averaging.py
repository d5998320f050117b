"""What averaging files costs beside reading them once, and beside loading them with torch.

The files are made: random float32 weights of the shapes of a ViT, in safetensors. Time is that of
one process that has started already; `cat` reads the same files to nowhere. Loading everything in
torch keeps all files in memory and takes their mean; timm's way adds up one file after another in
float64 (its `avg_checkpoints` script). Memory is the anonymous memory that the kernel counts
(Linux only) in a process of its own, beyond what it had before. Our own time includes the sync to
the disk. The output is a new file each time, as `average` wants it.
"""

import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.memory import status
from benchmarks.ratio import Ratio, measure
from lightning_merge.aggregate.averaged_files import write_average
from lightning_merge.aggregate.files_to_average import open_files

_COUNTS = (2, 4, 8, 16)
_LAYERS, _WIDTH = 12, 768
_PAIRS = 5


def run() -> list[Ratio]:
    """Time and memory at each number of files."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{index}.safetensors" for index in range(max(_COUNTS))]
        for index, file in enumerate(files):
            save_file(_network(index), file)
        output = Path(folder) / "mean.safetensors"
        remove = partial(output.unlink, missing_ok=True)
        size = f"{files[0].stat().st_size / 1e6:.0f} MB"
        for count in _COUNTS:
            some = files[:count]
            what = f"averaging {count} files of {size}"

            def cat(some: list[Path] = some) -> None:
                subprocess.run(["cat", *map(str, some)], stdout=subprocess.DEVNULL, check=True)

            def act(name: str, some: list[Path] = some) -> Callable[[], None]:
                return partial(_WAYS[name], some, output)

            goal = "ratio < 1.43" if count >= 6 else ""
            found.append(
                measure(what, act(_OURS), cat, _PAIRS, against="cat", goal=goal, before=remove)
            )
            for name in (name for name in _WAYS if name != _OURS):
                theirs = act(name)
                found.append(measure(what, act(_OURS), theirs, _PAIRS, 1, name, before=remove))
                if Path("/proc/self/status").exists():
                    a, b = (_in_a_process(one, some, output) for one in (_OURS, name))
                    title = f"{what}, anonymous memory"
                    found.append(Ratio(title, a, b, a / b, float("nan"), name, "", "MiB"))
    return found


def _network(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"qkv": (3 * _WIDTH, _WIDTH), "proj": (_WIDTH, _WIDTH), "norm": (_WIDTH,)}
    shapes |= {"fc1": (4 * _WIDTH, _WIDTH), "fc2": (_WIDTH, 4 * _WIDTH)}
    return {
        f"blocks.{layer}.{name}.weight": torch.randn(shape, generator=generator)
        for layer in range(_LAYERS)
        for name, shape in shapes.items()
    }


def _ours(files: list[Path], output: Path) -> None:
    write_average(open_files(files), output, {})


def _all_loaded(files: list[Path], output: Path) -> None:
    states = [load_file(file) for file in files]
    mean = {name: torch.stack([s[name] for s in states]).mean(dim=0) for name in states[0]}
    save_file(mean, output)


def _one_by_one(files: list[Path], output: Path) -> None:
    total: dict[str, Tensor] = {}
    for file in files:
        for name, value in load_file(file).items():
            wide = value.to(torch.float64)
            total[name] = total[name] + wide if name in total else wide
    mean = {name: (value / len(files)).to(torch.float32) for name, value in total.items()}
    save_file(mean, output)


_OURS = "ours"
_WAYS: dict[str, Callable[[list[Path], Path], None]] = {
    _OURS: _ours,
    "torch, all loaded": _all_loaded,
    "timm's way": _one_by_one,
}


def _in_a_process(name: str, files: list[Path], output: Path) -> float:
    words = [sys.executable, "-m", "benchmarks.averaging", name, str(output), *map(str, files)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


def _anonymous(action: Callable[[], None]) -> float:
    """MiB of the most anonymous memory while an action runs, beyond what there was before."""
    before = most = status("RssAnon")
    done = threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.is_set():
            most = max(most, status("RssAnon"))
            time.sleep(0.002)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        action()
    finally:
        done.set()
        thread.join()
    return (most - before) / 2**20


if __name__ == "__main__":
    chosen, target, *paths = sys.argv[1:]
    print(_anonymous(partial(_WAYS[chosen], [Path(path) for path in paths], Path(target))))
