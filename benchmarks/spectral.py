"""What TSV-M and Iso-C of eight fine-tuned ViT-B/32 cost that are read from disk.

Held against the same merges with full decompositions of every layer (`torch.linalg.svd`: of each
task's matrix for TSV-M, of their sum for Iso-C), in one run, with the number of threads (one, or
all) at which a decomposition is faster. The weights are made: a low-rank step and noise. `--full`
has all twelve blocks (86 M parameters), without it there is one. Both sides read the files. Memory
is the peak that the kernel counts (Linux only) beyond the pages of the input files.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.memory import status
from benchmarks.ratio import Ratio, seconds
from lightning_merge.aggregate import LazyTaskVector, StateOnDisk, iso_c, tsv_merge

_TASKS, _RANK = 8, 16


def run(full: bool = False, blocks: int = 1) -> list[Ratio]:
    """Times, accuracies and memory; `full` for the whole network, else so many blocks."""
    blocks = 12 if full else blocks
    with tempfile.TemporaryDirectory() as folder:
        _write_networks(Path(folder), blocks)
        pretrained, *tuned = (StateOnDisk(_file(Path(folder), k)) for k in range(_TASKS + 1))
        vectors = [LazyTaskVector(state, pretrained) for state in tuned]
        small = {"w": torch.randn(9, 9)}
        tsv_merge(small, [small, small])
        found, result = [], {}
        threads, fastest = torch.get_num_threads(), _fastest_threads()
        for name, ours, theirs in _METHODS:
            before, mapped = status("VmRSS"), status("RssFile")
            Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew

            def merge(ours: Callable[..., object] = ours) -> None:
                result["ours"] = ours(pretrained, vectors)

            mine = _times(merge)
            beyond = status("VmHWM") - before - (status("RssFile") - mapped)
            errors: list[float] = []

            def decompose(
                theirs: Callable[..., Tensor] = theirs, errors: list[float] = errors
            ) -> None:
                for key, value in pretrained.items():
                    steps = [vector[key] for vector in vectors]
                    if value.dim() > 1:
                        merged = theirs([step.reshape(len(step), -1) for step in steps])
                        step = result["ours"][key] - value  # type: ignore[index]
                        error = (merged.view_as(value) - step).norm() / merged.norm()
                        errors.append(float(error))

            torch.set_num_threads(fastest)
            other = _times(decompose)
            torch.set_num_threads(threads)
            one = sum(value.nbytes for value in pretrained.values()) / 2**20
            what = f"{name} of {_TASKS} ViT-B/32 of {blocks} blocks from disk"
            used = f"{threads} threads, theirs {fastest}"
            nan = float("nan")
            found += [
                Ratio(
                    f"{what}, {used}; relative difference at most {max(errors):.1e}",
                    mine[0],
                    other[0],
                    mine[0] / other[0],
                    nan,
                    "full decompositions",
                    "ratio <= 0.333" + ("; <= 60 s" if full else ""),
                ),
                Ratio(
                    f"{what}, processor time",
                    mine[1],
                    other[1],
                    mine[1] / other[1],
                    nan,
                    "full decompositions",
                ),
                Ratio(
                    f"{what}, peak memory beyond its inputs",
                    beyond / 2**20,
                    one,
                    beyond / 2**20 / one,
                    nan,
                    "one network",
                    "ratio < 3",
                    "MiB",
                ),
            ]
    return found


def _times(action: Callable[[], object]) -> tuple[float, float]:
    """Seconds by the clock, and of all processors together."""
    before = time.process_time()
    return seconds(action), time.process_time() - before


def _fastest_threads() -> int:
    """How many threads, one or all, decompose a matrix in the least time."""
    threads, matrix = torch.get_num_threads(), torch.randn(768, 768)
    taken = {}
    for count in {1, threads}:
        torch.set_num_threads(count)
        taken[count] = min(seconds(lambda: torch.linalg.svd(matrix)) for _ in range(3))
    torch.set_num_threads(threads)
    return min(taken, key=lambda count: taken[count])


def _full_tsv(matrices: Sequence[Tensor]) -> Tensor:
    count = min(matrices[0].shape) // len(matrices)
    parts = [torch.linalg.svd(matrix, full_matrices=False) for matrix in matrices]
    left = _procrustes(torch.cat([u[:, :count] for u, _, _ in parts], 1))
    right = _procrustes(torch.cat([vh[:count].mT for _, _, vh in parts], 1))
    return (left * torch.cat([s[:count] for _, s, _ in parts])) @ right.mT


def _full_iso_c(matrices: Sequence[Tensor]) -> Tensor:
    u, s, vh = torch.linalg.svd(sum(matrices[1:], matrices[0]), full_matrices=False)
    return s.mean() * (u @ vh)


def _procrustes(columns: Tensor) -> Tensor:
    u, _, vh = torch.linalg.svd(columns, full_matrices=False)
    return u @ vh


def _write_networks(folder: Path, blocks: int) -> None:
    import timm
    from safetensors.torch import save_file

    torch.manual_seed(0)
    network = timm.create_model("vit_base_patch32_224", num_classes=0, depth=blocks)
    # Layers alone: the two kinds of merging differ in what they do with embeddings.
    start = {
        name: value.detach().clone()
        for name, value in network.state_dict().items()
        if "embed" not in name and "token" not in name
    }
    save_file(start, _file(folder, 0))
    for index in range(1, _TASKS + 1):
        tuned = {}
        for name, value in start.items():
            step = 1e-3 * torch.randn_like(value)
            if value.dim() > 1:
                rows, columns = value.shape
                step += 2e-3 * torch.randn(rows, _RANK) @ torch.randn(_RANK, columns)
            tuned[name] = value + step
        save_file(tuned, _file(folder, index))


def _file(folder: Path, index: int) -> Path:
    return folder / f"{index}.safetensors"


_METHODS = (("TSV-M", tsv_merge, _full_tsv), ("Iso-C", iso_c, _full_iso_c))
