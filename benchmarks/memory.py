"""The peak memory of matching and of applying, each in a process of its own (Linux only).

The kernel's own high-water mark counts everything: torch, its scratch memory, the networks'
activations, and Python. It is read from before the two networks are made, and after torch
and scipy have been used once, so that their code does not count.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.ratio import Ratio

_CASES = (
    ("weights", "resnet18", 64),
    ("weights", "resnet50", 64),
    ("activations", "resnet18", 224),
    ("activations", "resnet50", 224),
    ("activations", "vit_tiny_patch16_224", 224),
    ("applying", "resnet50", 64),
)
_EXAMPLES = 32


def run() -> list[Ratio]:
    """Both matchings and applying; nothing where the kernel does not tell."""
    if not Path("/proc/self/clear_refs").exists():
        print("memory: left out, it is measured on Linux only")
        return []
    import timm

    from lightning_merge import PermutationSpec

    found = []
    for what, name, pixels in _CASES:
        model = timm.create_model(name, num_classes=10).eval()
        spec = PermutationSpec.from_model(model, torch.randn(2, 3, pixels, pixels))
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "spec.pt"
            torch.save(spec, file)
            words = [sys.executable, "-m", "benchmarks.memory", what, name, str(pixels), str(file)]
            done = subprocess.run(words, capture_output=True, text=True, check=True)
        result = json.loads(done.stdout.splitlines()[-1])
        ours, theirs = result["peak"] - result["covariances"], result["networks"]
        images = f", {_EXAMPLES} images of {pixels} pixels" if what == "activations" else ""
        title = f"peak memory, {what if what == 'applying' else 'matching ' + what}, {name}{images}"
        goal, nan = "ratio < 3", float("nan")
        found.append(Ratio(title, ours, theirs, ours / theirs, nan, "two networks", goal, "MiB"))
    return found


def _measure(what: str, name: str, pixels: int, file: str) -> dict[str, float]:
    """Runs one case here: MiB of the peak, the covariances and the two networks."""
    import timm

    from lightning_merge import WeightMatching
    from lightning_merge.align.matching.activation import ActivationMatching, assign_groups
    from lightning_merge.align.matching.assignment import assign
    from lightning_merge.align.matching.observe import observe, summed_correlation

    spec: Any = torch.load(file, weights_only=False)
    assign(torch.randn(8, 8).double() @ torch.randn(8, 8).double())
    torch.nn.Conv2d(3, 8, 3)(torch.randn(2, 3, 8, 8))
    timm.create_model("test_resnet")
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
    a, b = (timm.create_model(name, num_classes=10).eval() for _ in range(2))
    entries = sum(group.size**2 for group in spec.groups)
    if what == "weights":
        WeightMatching().match(spec, a.state_dict(), b.state_dict())
    elif what == "applying":
        spec.apply(b.state_dict(), spec.random())
        entries = 0
    else:
        batch = torch.randn(_EXAMPLES, 3, pixels, pixels)
        moments = observe(spec, a, b, [batch], cost=ActivationMatching().cost)
        scores = {n: summed_correlation(n, listed) for n, listed in moments.items()}
        assign_groups(spec, scores, a.state_dict(), b.state_dict())
        entries += sum(m.product.numel() for listed in moments.values() for m in listed)
    networks = sum(t.nbytes for model in (a, b) for t in model.state_dict().values())
    return {
        "peak": (status("VmHWM") - before) / 2**20,
        "covariances": 8 * entries / 2**20,
        "networks": networks / 2**20,
    }


def status(key: str) -> int:
    """Bytes that the kernel reports of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


if __name__ == "__main__":
    print(json.dumps(_measure(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])))
