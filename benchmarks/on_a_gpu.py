"""What is worth a GPU's minutes, the shortest first: `python -m benchmarks.on_a_gpu --data DIR`.

The tests marked `gpu`; the benchmarks with a goal on a GPU; then as much of NP Merge's Tables I and
II (ResNet20 on CIFAR-100) as the time allows. A study stores each piece as it ends, and each epoch
of a training: the same command goes on where the time was over. What is printed is kept, too.
"""

import argparse
import signal
import subprocess
import sys
import time
from pathlib import Path

import yaml

CONFIGS = Path("configs/studies")
# Those that hold others up come first.
PATTERNS = ("table1_resnet20_cifar100.yaml", "table2_*.yaml")
# A study that is interrupted writes its last epoch and gives its claims back.
GRACE = 20


def main(arguments: list[str] | None = None) -> int:
    """Runs everything that there is time for.

    Returns:
        1 if tests or benchmarks failed, else 0: what the time did not suffice for is no failure.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.on_a_gpu", description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("data"), help="has cifar-100-python")
    parser.add_argument("--output", type=Path, default=Path("outputs/gpu"))
    parser.add_argument("--minutes", type=float, default=12)
    parser.add_argument(
        "--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a rehearsal"
    )
    given = parser.parse_args(arguments)
    given.output.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * given.minutes
    table = str(given.output / "benchmarks.md")
    python = [sys.executable, "-m"]
    bench = ["benchmarks", "np_cost", "training", "--device", given.device, "--write", table]
    if given.device == "cpu":
        bench.remove("np_cost")
    steps = {
        "tests": [*python, "pytest", "-m", "gpu", "tests/gpu"],
        "benchmarks": [*python, *bench],
    }
    failed = [name for name, words in steps.items() if _do(name, words, given.output, end)]
    for config in studies(given.output):
        if time.monotonic() > end - GRACE:
            break
        words = ["study", "--config", str(config), "--output", str(given.output / config.stem)]
        words += ["--data.init_args.root", str(given.data), "--data.init_args.on_device", "true"]
        words += ["--trainer.accelerator", "gpu" if given.device == "cuda" else "cpu"]
        _do(config.stem, [*python, "lightning_merge", *words], given.output, end)
    print(f"in {given.output}; the same command goes on with what the time did not suffice for")
    return int(bool(failed))


def studies(folder: Path) -> list[Path]:
    """The configurations of the tables, in the order in which they are run.

    Args:
        folder: Where they are written if the repository has none.
    """
    found = [path for pattern in PATTERNS for path in sorted(CONFIGS.glob(pattern))]
    return found or [_written(width, folder) for width in (1, 8)]


def _do(name: str, words: list[str], folder: Path, end: float) -> bool:
    """Runs a command until it ends, or the time does, and keeps what it prints.

    Returns:
        Whether it failed, or the time did not suffice.
    """
    left = end - time.monotonic() - GRACE
    if left <= 0:
        print(f"{name}: no time left", flush=True)
        return True
    print(f"{name}: {' '.join(words[1:])}", flush=True)
    start = time.monotonic()
    with (folder / f"{name}.txt").open("a") as log:
        process = subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT)
        try:
            status: int | str = process.wait(left)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            status = "time is over"
    print(f"{name}: {status}, {time.monotonic() - start:.0f} s", flush=True)
    return status != 0


def _written(width: int, folder: Path) -> Path:
    """80%-20% parts of CIFAR-100, 25 epochs; optimizers and rates are our choice."""
    epochs, tuned = 25, 10
    adam = "torch.optim.Adam"

    def merge(name: str, aggregate: str, rate: float) -> dict[str, object]:
        settings = {
            "max_epochs": tuned,
            "optimizer": {"class_path": adam, "init_args": {"lr": rate}},
        }
        learned = {"class_path": aggregate, "init_args": settings}
        aligned = {"align": "ActivationMatching", "recalibrate": "batchnorm"}
        return {"name": name, "aggregate": learned, **aligned}

    study = {
        "title": f"CIFAR-100, 80%-20%, ResNet20 x{width}",
        "model": {
            "class_path": "ImageClassifier",
            "init_args": {
                "model": "resnet20_cifar",
                "num_classes": 100,
                "model_kwargs": {"width": width},
                "optimizer": {
                    "class_path": "torch.optim.SGD",
                    "init_args": {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4},
                },
                "lr_scheduler": {
                    "class_path": "torch.optim.lr_scheduler.CosineAnnealingLR",
                    "init_args": {"T_max": epochs},
                },
            },
        },
        "data": {
            "class_path": "CIFARDataModule",
            "init_args": {"num_classes": 100, "split": "80-20", "held_out": 0.0},
        },
        "ingredients": [{"part": 0}, {"part": 1}],
        "training": {"max_epochs": epochs},
        "recipes": [
            {"name": "Logits ensemble", "aggregate": "LogitsEnsemble"},
            {"name": "Direct average", "aggregate": "Average", "recalibrate": "batchnorm"},
            {
                "name": "Permute + average",
                "aggregate": "Average",
                "align": "ActivationMatching",
                "recalibrate": "batchnorm",
            },
            merge("Fine-tuning of Permute", "FineTune", 0.001),
            merge("NP Merge on Permute", "NPMerge", 0.01),
        ],
    }
    path = folder / f"resnet20_x{width}_cifar100.yaml"
    path.write_text(yaml.safe_dump(study, sort_keys=False))
    return path


if __name__ == "__main__":
    raise SystemExit(main())
