"""What NP Merge costs, held against fine-tuning of the same network with the same optimizer.

Steps are taken in turns, in one process; memory is the peak over some steps, in a process for
either side (on the CPU as the kernel counts it, Linux only, with glibc told to give freed memory
back at once, so that peaks repeat; times are those of glibc as it comes). Adam is the fused one.

On the CPU the gradient of the alphas lies in the same memory step after step, the fourth copy of
the weights: pages that are new in every step cost time. The rows "buffer given back" are without
it; what they save shows only with glibc set as said, not as it comes. On a GPU none is kept.
"""

import ctypes
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from benchmarks.memory import status
from benchmarks.ratio import Ratio, measure

_SMALL = {"model": "resnet20_cifar", "num_classes": 10, "model_kwargs": {"width": 8}}
_STEPS = 4
_LEAN = "buffer given back"


def run(device: str | None = None) -> list[Ratio]:
    """ResNet18 on 32 images of 64x64; on a GPU also ResNet20, width 8, on 128 of 32x32.

    On the CPU and, where there is one, on a GPU, if no `device` is given.
    """
    found = []
    if device in (None, "cpu"):
        found += [_time("cpu", small=False), _time("cpu", small=False, lean=True), *_memory("cpu")]
    if device in (None, "cuda") and torch.cuda.is_available():
        found += [_time("cuda", small=True), _time("cuda", small=False), *_memory("cuda")]
    return found


def _time(device: str, small: bool, lean: bool = False) -> Ratio:
    steps = [_steps(side, device, small) for side in ("lean" if lean else "merging", "tuning")]
    what = "ResNet20 width 8, 128 images of 32x32" if small else "ResNet18, 32 images of 64x64"
    if device == "cpu":
        what = f"{what}, {_LEAN}" if lean else what
        title = f"NP Merge step, {what}, {torch.get_num_threads()} threads"
        return measure(title, *steps, 21, 3, "fine-tuning step", "" if lean else "ratio <= 1.10")
    title = f"10 NP Merge steps, {what}, {torch.cuda.get_device_name()}"
    steps = [partial(_ten, step) for step in steps]
    goal = "ratio <= 1.03" if small else ""
    return measure(title, *steps, 41, 3, "10 fine-tuning steps", goal)


def _memory(device: str) -> list[Ratio]:
    """How many copies of the weights the peak lies above that of fine-tuning."""
    if device == "cpu" and not Path("/proc/self/clear_refs").exists():
        return []
    sides = ("merging", "lean") if device == "cpu" else ("merging",)
    tuned, weights = _peak_of("tuning", device)
    found = []
    for side in sides:
        more = _peak_of(side, device)[0] - tuned
        where = "ResNet18, 32 images of 64x64, " + ("CPU" if device == "cpu" else "GPU")
        where += f", {_LEAN}" if side == "lean" else ""
        title = f"NP Merge's peak memory above fine-tuning's, {where}"
        against = f"one copy of the weights (fine-tuning: {tuned:.0f} MiB)"
        most = 3 if device == "cpu" else 3.1
        goal, nan = "" if side == "lean" else f"ratio <= {most}", float("nan")
        found.append(Ratio(title, more, weights, more / weights, nan, against, goal, "MiB"))
    return found


def _peak_of(side: str, device: str) -> tuple[float, float]:
    words = [sys.executable, "-m", "benchmarks.np_cost", side, device]
    settings = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(1 << 18), "MALLOC_ARENA_MAX": "1"}
    done = subprocess.run(words, capture_output=True, text=True, check=True, env=settings)
    peak, weights = json.loads(done.stdout.splitlines()[-1])
    return peak, weights


def _steps(side: str, device: str, small: bool) -> Callable[[], None]:
    from lightning_merge import ImageClassifier, MergeModule

    torch.manual_seed(0)
    size, pixels = (128, 32) if small else (32, 64)
    settings = _SMALL if small else {"model": "resnet18", "num_classes": 10}
    batch = (torch.randn(size, 3, pixels, pixels), torch.randint(0, 10, (size,)))
    module = ImageClassifier(**settings)
    if side != "tuning":
        states = [ImageClassifier(**settings).state_dict() for _ in range(2)]
        module = MergeModule(module, states)
    module = module.to(device).train()
    module.log = module.log_dict = lambda *args, **kwargs: None
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=1e-3, fused=True)
    lean = side == "lean"
    return partial(_step, module, optimizer, tuple(part.to(device) for part in batch), lean)


def _step(module, optimizer, batch, lean) -> None:  # type: ignore[no-untyped-def]
    if lean:
        module._learned.flat.release()
    loss = module.training_step(batch, 0)
    loss.backward()
    module.on_after_backward()
    optimizer.step()
    optimizer.zero_grad()


def _ten(step: Callable[[], None]) -> None:
    # A single step on a GPU is shorter than what it takes to look at the clock.
    for _ in range(10):
        step()
    torch.cuda.synchronize()


def _peak(side: str, device: str) -> tuple[float, float]:
    """MiB of the peak over some steps, and of the network's weights."""
    step = _steps(side, device, small=False)
    module = step.args[0]  # type: ignore[attr-defined]
    network = [p for name, p in module.named_parameters() if name != "alpha_logits"]
    step()
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        # What is free goes back, and the high-water mark begins anew.
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    for _ in range(_STEPS):
        step()
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else status("VmHWM")
    return peak / 2**20, sum(parameter.nbytes for parameter in network) / 2**20


if __name__ == "__main__":
    print(json.dumps(_peak(sys.argv[1], sys.argv[2])))
