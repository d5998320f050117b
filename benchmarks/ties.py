"""What TIES over eight fine-tuned ViT-B/16 costs that are read from disk as they are needed.

The weights are made: a pre-trained network's initial ones, and the same with noise. Memory is the
peak that the kernel counts (Linux only), in a process of its own, beyond the pages of the input
files, which are mapped and which the kernel may drop at any time; glibc is told to give freed
memory back. Time is that of one vector, held against looking once at every number in the files.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.memory import status
from benchmarks.ratio import Ratio, seconds

_VECTORS, _READINGS = 8, 3
_SCALE, _DENSITY = 0.3, 0.2
_NOISE = 1 << 20


def run() -> list[Ratio]:
    """Memory and time; nothing where the kernel does not tell."""
    if not Path("/proc/self/clear_refs").exists():
        print("ties: left out, memory is measured on Linux only")
        return []
    with tempfile.TemporaryDirectory() as folder:
        _write_networks(Path(folder))
        peak, one = _in_a_process("memory", folder)
        merging, reading = _in_a_process("time", folder)
    what = f"TIES over {_VECTORS} ViT-B/16 read from disk"
    each, nan = merging / _VECTORS, float("nan")
    threads = f"{torch.get_num_threads()} threads"
    return [
        Ratio(
            f"{what}, peak memory beyond its inputs",
            peak,
            one,
            peak / one,
            nan,
            "one network",
            "ratio <= 2",
            "MiB",
        ),
        Ratio(
            f"{what}, time of each, {threads}",
            each,
            reading,
            each / reading,
            nan,
            f"reading all {_VECTORS + 1} files once",
        ),
    ]


def _write_networks(folder: Path) -> None:
    import timm
    from safetensors.torch import save_file

    torch.manual_seed(0)
    network = timm.create_model("vit_base_patch16_224", num_classes=0)
    start = {name: value.detach().clone() for name, value in network.state_dict().items()}
    save_file(start, _file(folder, 0))
    # So much of it, again and again, from another place each time: drawing it all takes minutes.
    noise = 0.01 * torch.randn(2 * _NOISE)
    for index in range(1, _VECTORS + 1):
        tuned = {name: value.clone() for name, value in start.items()}
        for value in tuned.values():
            for piece in value.view(-1).split(_NOISE):
                offset = int(torch.randint(_NOISE, ()))
                piece += noise[offset : offset + len(piece)]
        save_file(tuned, _file(folder, index))


def _in_a_process(what: str, folder: str) -> tuple[float, float]:
    settings = dict(os.environ)
    if what == "memory":
        # Whole tensors go back when they are freed; that costs the kernel's time, and so is not
        # asked where time is measured.
        settings |= {"MALLOC_MMAP_THRESHOLD_": str(1 << 22), "MALLOC_ARENA_MAX": "1"}
    words = [sys.executable, "-m", "benchmarks.ties", what, folder]
    done = subprocess.run(words, capture_output=True, text=True, check=True, env=settings)
    first, second = json.loads(done.stdout.splitlines()[-1])
    return first, second


def _measure(what: str, folder: Path) -> tuple[float, float]:
    """MiB of the peak beyond the inputs and of one network; or seconds of merging and reading."""
    from lightning_merge.aggregate import LazyTaskVector, ties
    from lightning_merge.aggregate.on_disk import SafetensorsState

    small = {"w": torch.randn(9, 9)}
    ties(small, [small, small])
    pretrained, *tuned = (SafetensorsState(_file(folder, k)) for k in range(_VECTORS + 1))
    vectors = [LazyTaskVector(state, pretrained) for state in tuned]

    def look() -> None:
        for state in (pretrained, *tuned):
            for value in state.values():
                value.sum()

    def merge() -> None:
        ties(pretrained, vectors, _SCALE, _DENSITY)

    if what == "time":
        look()
        reading = statistics.median(seconds(look) for _ in range(_READINGS))
        return seconds(merge), reading
    before, mapped = status("VmRSS"), status("RssFile")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
    merge()
    beyond = status("VmHWM") - before - (status("RssFile") - mapped)
    one = sum(value.nbytes for value in pretrained.values())
    return beyond / 2**20, one / 2**20


def _file(folder: Path, index: int) -> Path:
    return folder / f"{index}.safetensors"


if __name__ == "__main__":
    print(json.dumps(_measure(sys.argv[1], Path(sys.argv[2]))))
