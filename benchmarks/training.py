"""What `fit` costs, held against a plain PyTorch loop that does the same.

Both train networks of one kind on the same images, with the same augmentation, batch size and
optimizer; the plain loop's images are on the device as bytes, too, and it takes no account of
anything. Steps are taken in turns: whenever `fit` has done one (on a GPU forty, which are shorter),
the loop does as many. On the CPU what counts is this process's own time, which others' load changes
least.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from benchmarks.ratio import Ratio, of_pairs
from lightning_merge import ImageClassifier
from lightning_merge.data import ClassificationDataModule, LabelledImages, OfficialSplits
from lightning_merge.data.augment import random_crop, random_flip

_WARM_UP = 3


class Noise(ClassificationDataModule):
    """Images of CIFAR's shape, whose classes mean nothing."""

    horizontal_flip = True

    def __init__(self, examples: int, **settings: Any) -> None:
        super().__init__(held_out=0.0, **settings)
        self.examples = examples
        self.num_classes, self.in_chans, self.image_size = 100, 3, 32

    def load_splits(self) -> OfficialSplits:
        """Train and test, which is not used."""
        images = torch.randint(0, 256, (self.examples, 3, 32, 32), dtype=torch.uint8)
        all_of_it = LabelledImages(images, torch.randint(0, 100, (self.examples,)))
        return OfficialSplits(all_of_it, all_of_it)


class Turns(Callback):
    """Does the plain loop's steps between those of `fit`, and keeps how long either took."""

    def __init__(self, loop: Callable[[], None], steps: int, clock: Callable[[], float]) -> None:
        self.loop, self.steps, self.clock = loop, steps, clock
        self.ours: list[float] = []
        self.theirs: list[float] = []
        self.began: float | None = None

    def on_train_batch_end(self, *args: Any) -> None:
        """The loop's turn, after so many steps of `fit`."""
        index = args[-1]
        if (index + 1) % self.steps:
            return
        start = self.clock()
        for _ in range(self.steps):
            self.loop()
        end = self.clock()
        if self.began is not None:
            self.ours.append(start - self.began)
            self.theirs.append(end - start)
        self.began = self.clock()


def run(device: str | None = None) -> list[Ratio]:
    """On the CPU and, where there is one, on a GPU, if no `device` is given."""
    found = []
    if device in (None, "cpu"):
        goal = "ratio <= 1.05"
        found += [_ratio("cpu", 1, 16, 1, 15, "32-true", on_device, goal) for on_device in (0, 1)]
    if device in (None, "cuda") and torch.cuda.is_available():
        cases = [(1, "32-true"), (8, "32-true"), (8, "bf16-mixed")]
        found += [_ratio("cuda", *one, goal="ratio <= 1.15") for one in _on_a_gpu(cases)]
    return found


def _on_a_gpu(cases: list[tuple[int, str]]) -> list[tuple[int, int, int, int, str, int]]:
    return [(width, 128, 40, 12, precision, 1) for width, precision in cases]


def _ratio(
    device: str,
    width: int,
    batch_size: int,
    steps: int,
    turns: int,
    precision: Any,
    on_device: int,
    goal: str,
) -> Ratio:
    torch.manual_seed(0)
    count = (turns + _WARM_UP) * steps
    data = Noise(count * batch_size, batch_size=batch_size, on_device=bool(on_device))
    data.setup()
    loop = _plain_loop(_module(width), data, torch.device(device), precision == "bf16-mixed")
    watch = Turns(loop, steps, time.process_time if device == "cpu" else _when_done)
    trainer = Trainer(
        max_epochs=1,
        accelerator="gpu" if device == "cuda" else "cpu",
        devices=1,
        precision=precision,
        callbacks=[watch],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    trainer.fit(_module(width), datamodule=data)
    where = (
        torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} thread(s)"
    )
    how = f"{precision}, on_device" if on_device else precision
    title = f"fit, ResNet20 width {width}, {batch_size} images, {how}, {where}"
    pairs = watch.ours[_WARM_UP - 1 :], watch.theirs[_WARM_UP - 1 :]
    return of_pairs(title, *pairs, f"{steps} step(s) of a plain loop", goal)


def _when_done() -> float:
    torch.cuda.synchronize()
    return time.perf_counter()


def _module(width: int) -> LightningModule:
    return ImageClassifier(num_classes=100, model_kwargs={"width": width}, optimizer=_optimizer)


def _optimizer(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.01, momentum=0.9, nesterov=True)


def _plain_loop(module: Any, data: Noise, device: torch.device, half: bool) -> Callable[[], None]:
    network = module.network.to(device).train()
    source = data.train_set.source
    assert isinstance(source.images, Tensor)
    images, targets = source.images.to(device), source.targets.to(device)
    optimizer = _optimizer(network.parameters())
    mean, std = (
        torch.tensor(values, device=device).view(-1, 1, 1)
        for values in (data.normalisation.mean, data.normalisation.std)
    )
    parts = iter(torch.randperm(len(images), device=device).split(data.batch_size))

    def step() -> None:
        chosen = next(parts)
        x = random_flip(random_crop(images[chosen], 4)).float().div_(255).sub_(mean).div_(std)
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            loss = F.cross_entropy(
                network(x.contiguous(memory_format=torch.channels_last)), targets[chosen]
            )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step
