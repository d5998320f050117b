"""What TSV-M and Iso-C of eight fine-tuned ViT-B/32 cost that are read from disk.

Held against the same merges with full decompositions of every layer (`torch.linalg.svd`), in one
run. The weights are made: a low-rank step and noise. `--full` has all twelve blocks (86 M
parameters), without it there is one. Memory is the peak that the kernel counts (Linux only) beyond
the pages of the input files.
"""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.memory import status
from benchmarks.ratio import Ratio, seconds

_TASKS, _RANK = 8, 16


def run(full: bool = False, blocks: int = 1) -> list[Ratio]:
    """Times, accuracies and memory; `full` for the whole network, else so many blocks."""
    from lightning_merge.aggregate import LazyTaskVector, StateOnDisk, iso_c, tsv_merge

    blocks = 12 if full else blocks
    with tempfile.TemporaryDirectory() as folder:
        _write_networks(Path(folder), blocks)
        pretrained, *tuned = (StateOnDisk(_file(Path(folder), k)) for k in range(_TASKS + 1))
        vectors = [LazyTaskVector(state, pretrained) for state in tuned]
        small = {"w": torch.randn(9, 9)}
        tsv_merge(small, [small, small])
        found, result = [], {}
        for name, ours, theirs in (("TSV-M", tsv_merge, _full_tsv), ("Iso-C", iso_c, _full_iso_c)):
            before, mapped = status("VmRSS"), status("RssFile")
            Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew

            def merge(ours: Callable[..., object] = ours) -> None:
                result["ours"] = ours(pretrained, vectors)

            mine = seconds(merge)
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

            other = seconds(decompose)
            one = sum(value.nbytes for value in pretrained.values()) / 2**20
            what = f"{name} of {_TASKS} ViT-B/32 of {blocks} blocks from disk"
            threads = f"{torch.get_num_threads()} threads"
            nan = float("nan")
            found += [
                Ratio(
                    f"{what}, {threads}; relative difference at most {max(errors):.1e}",
                    mine,
                    other,
                    mine / other,
                    nan,
                    "full decompositions",
                    "ratio <= 0.333" + ("; <= 60 s" if full else ""),
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
