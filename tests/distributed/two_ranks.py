"""What each of two ranks does in test_two_ranks.py."""

import os
from pathlib import Path

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from strangers import Stranger, image_batches, quiet_trainer, randomise, small_network
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from lightning_merge.align import ActivationMatching, PermutationSpec
from lightning_merge.align.matching.moments import Moments
from lightning_merge.align.matching.observe import correlations
from lightning_merge.callbacks import BatchNormReset, GreedySoup
from lightning_merge.distributed import Share, gather_over_ranks, ranks
from lightning_merge.modules import ImageClassifier, LearnedMatchingModule, MergeModule
from lightning_merge.modules.metrics import classification_metrics
from lightning_merge.orders import share_of
from lightning_merge.recalibrate import Repair, reset_batchnorm

VALIDATION = 37


def batchnorm_batches():
    """Five batches, the last one smaller: three for one rank and two for the other."""
    return DataLoader(image_batches(5).dataset, batch_size=18)


def reset(batches, weighting="examples", synchronised=False):
    network = randomise(small_network(), 1)
    if synchronised:
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    reset_batchnorm(network, batches, weighting=weighting)
    return network.state_dict()


def sorted_data():
    """Images of four classes, one class after the other, for batches of one class each."""
    draw = torch.Generator().manual_seed(3)
    classes = torch.arange(4).repeat_interleave(16)
    return TensorDataset(torch.randn(64, 3, 8, 8, generator=draw) + classes[:, None, None, None])


def few_batches():
    """One batch, for two ranks."""
    return DataLoader(image_batches(1).dataset, batch_size=16)


def repaired(share):
    parents, batches = perceptrons()
    merged = perceptrons()[0][0]
    for own, other in zip(merged.parameters(), parents[1].parameters(), strict=True):
        own.data = (own.data + other.data) / 2
    Repair(parents, share(batches))(merged)
    return merged.state_dict()


def observations(count):
    """Pairs of observations; b's units lie far from zero, and farther on than those that follow."""
    generator = torch.Generator().manual_seed(5)
    pairs = []
    for number in range(count):
        a = torch.randn(6, 4, 3, generator=generator)
        b = a.flip(1) + 0.1 * torch.randn(6, 4, 3, generator=generator) + 50 + number
        pairs.append((a, b))
    return pairs


def moments(pairs):
    found = Moments(own=True)
    for a, b in pairs:
        found.update(a, b)
    return found


def perceptrons():
    networks = [
        randomise(nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)), seed)
        for seed in (1, 2)
    ]
    images = torch.randn(40, 5, generator=torch.Generator().manual_seed(6))
    return networks, DataLoader(TensorDataset(images), batch_size=8)


def matched(share):
    networks, batches = perceptrons()
    spec = PermutationSpec.from_model(networks[0], torch.randn(2, 5))
    return correlations(spec, *networks, share(batches))


class WithoutBatchNorm(LightningModule):
    """Whose gradients are means over examples, however those are divided."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Flatten(), nn.Linear(192, 10), nn.LayerNorm(10), nn.GELU(), nn.Linear(10, 4)
        )

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def alphas(devices):
    states = [randomise(WithoutBatchNorm(), seed).state_dict() for seed in (1, 2)]
    module = MergeModule(WithoutBatchNorm(), states)
    data = image_batches(4, 16).dataset
    # Not shuffled: examples 2k and 2k + 1 are the k-th of the one rank and of the other.
    sampler = DistributedSampler(data, devices, ranks()[0], shuffle=False)
    quiet_trainer(
        max_epochs=2,
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        use_distributed_sampler=False,
    ).fit(module, DataLoader(data, batch_size=16 // devices, sampler=sampler))
    return module.alphas()


class Watched(ActivationMatching):
    """Notes how large the batches are that it is given."""

    def align(self, spec, model_a, model_b, batches, **options):
        self.sizes = [len(batch[0]) for batch in batches]
        return super().align(spec, model_a, model_b, batches, **options)


def aligned(devices, chosen=slice(None)):
    """The second ingredient as the first training step finds it, and the batches' sizes.

    The batches differ from each other, so that each has its own best permutation; the last
    one is smaller, and one rank has more of them than the other.
    """
    draw = torch.Generator().manual_seed(11)
    images = torch.randn(5, 12, 3, 8, 8, generator=draw)
    images *= torch.randn(5, 1, 3, 8, 8, generator=draw).exp()
    parts = [*images[:4].unbind(), images[4, :7]][chosen]
    inputs = torch.cat(parts)
    data = TensorDataset(inputs, torch.arange(len(inputs)) % 4)
    states = [randomise(Stranger(), seed).state_dict() for seed in (1, 2)]
    matching = Watched()
    module = MergeModule(Stranger(), states, matching=matching)
    quiet_trainer(max_steps=1, devices=devices, strategy="ddp" if devices > 1 else "auto").fit(
        module, DataLoader(data, batch_size=12, shuffle=True)
    )
    return {"ingredient": module.ingredients()[1], "sizes": matching.sizes}


class Dropping(Stranger):
    """Draws random numbers in every step."""

    def __init__(self) -> None:
        super().__init__()
        self.net.insert(8, nn.Dropout(0.5))


def run_in_steps(folder, resume=None):
    """Logits of a run of ten steps on each rank, which is saved after each of them."""
    torch.manual_seed(ranks()[0] + (5 if resume is None else 50))
    states = [randomise(Dropping(), seed).state_dict() for seed in (1, 2)]
    module = MergeModule(Dropping(), states, optimizer=lambda p: torch.optim.Adam(p, lr=0.1))
    save = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    trainer = quiet_trainer(
        max_epochs=2, devices=2, strategy="ddp", callbacks=[save], enable_checkpointing=True
    )
    data = DataLoader(image_batches(5, 8).dataset, batch_size=4, shuffle=True)
    trainer.fit(module, data, ckpt_path=resume)
    # Each rank would write to a place of its own.
    trainer.save_checkpoint(folder / f"by_rank_{ranks()[0]}.ckpt")
    return module.alpha_logits.detach().clone()


def resumed(folder):
    """The logits of a whole run, and of two that go on with it within an epoch."""
    whole = run_in_steps(folder / "whole")
    again = {
        step: run_in_steps(folder / f"from{step}", folder / "whole" / f"step={step}.ckpt")
        for step in (3, 7)
    }
    return {"whole": whole, "again": again}


class Counting(Stranger):
    """Counts validation examples, and logs a loss without asking for a reduction."""

    def __init__(self) -> None:
        super().__init__(lr=0.3)

    def validation_step(self, batch, batch_idx):
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.log("loss", loss)
        self.log("seen", float(len(batch[1])), reduce_fx="sum")


def training_data():
    return image_batches(5, 12)


def validation_data():
    images, targets = image_batches(4, seed=8).dataset.tensors
    return DataLoader(TensorDataset(images[:VALIDATION], targets[:VALIDATION]), batch_size=8)


def soup(folder):
    """A greedy soup, and how many files each rank wrote."""
    written = []
    replace = os.replace
    os.replace = lambda *paths: (written.append(paths), replace(*paths))
    greedy = GreedySoup("loss", "min", top_k=None, dirpath=folder / "soup")
    counted = GreedySoup("seen", dirpath=folder / "counted")
    module = randomise(Counting(), 1)
    trainer = quiet_trainer(
        max_epochs=3, devices=2, strategy="ddp", callbacks=[BatchNormReset(), greedy, counted]
    )
    trainer.fit(module, training_data(), validation_data())
    os.replace = replace
    return {
        "rows": greedy.rows(),
        "score": greedy.best_score,
        "seen": counted.best_score,
        "logged": float(trainer.callback_metrics["loss_soup"]),
        "written": len(written),
        "weights": {name: value.clone() for name, value in module.state_dict().items()},
    }


TASKS = (("binary", 1), ("multilabel", 3), ("multiclass", 4))


def scores(share):
    """A classifier's metrics of a share of 91 examples, by task."""
    found = {}
    for task, classes in TASKS:
        generator = torch.Generator().manual_seed(9)
        shape = (91,) if task == "binary" else (91, classes)
        logits = torch.randn(shape, generator=generator)
        noisy = logits + torch.randn(shape, generator=generator)
        targets = noisy.argmax(1) if task == "multiclass" else (noisy > 0).long()
        metrics = classification_metrics(task, classes, ["accuracy", "auroc", "medical"])
        for batch in torch.arange(91)[share].split(17):
            metrics.update(logits[batch], targets[batch])
        found[task] = {name: float(value) for name, value in metrics.compute().items()}
    return found


def logged(devices, share=slice(None), size=8):
    """What a classifier logs of a share of 32 examples, in an epoch that learns nothing."""
    torch.manual_seed(4)
    classifier = ImageClassifier(
        "linear_classifier",
        num_classes=4,
        model_kwargs={"img_size": 8},
        optimizer=lambda weights: torch.optim.SGD(weights, lr=0.0),
    )
    trainer, data = fitted(classifier, devices, share, size)
    found = dict(trainer.callback_metrics)
    found |= trainer.test(classifier, data, verbose=False)[0]
    return {name: float(value) for name, value in found.items()}


def fitted(module, devices, share, size):
    """The Trainer of one epoch on a share of 32 examples, and the loader of those."""
    images, targets = image_batches(2).dataset[share]
    data = DataLoader(TensorDataset(images, targets), batch_size=size)
    trainer = quiet_trainer(
        max_epochs=1,
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        use_distributed_sampler=False,
    )
    trainer.fit(module, data, data)
    return trainer, data


class Perceptron(LightningModule):
    """Whose hidden units can be scaled."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Flatten(),
            nn.Linear(192, 10),
            nn.ReLU(),
            nn.Linear(10, 8),
            nn.ReLU(),
            nn.Linear(8, 4),
        )

    def forward(self, images):
        return self.net(images)


def distilled(devices, share=slice(None), size=8):
    """What a learned matching logs, likewise."""
    module = LearnedMatchingModule(
        Perceptron(),
        [randomise(Perceptron(), seed) for seed in (1, 2)],
        example_inputs=torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)),
        optimizer=lambda maps: torch.optim.SGD(maps, lr=0.0),
    )
    trainer, _ = fitted(module, devices, share, size)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def main(folder: Path) -> None:
    torch.distributed.init_process_group("gloo")
    rank, count = ranks()
    pairs = observations(5)
    joint = moments(pairs[:3] if rank == 0 else pairs[3:])
    joint.sum_over_ranks()
    result = {
        "ranks": gather_over_ranks((rank, count)),
        "share": [len(batch[0]) for batch in share_of(batchnorm_batches())],
        "reset": reset(share_of(batchnorm_batches())),
        "batches": reset(share_of(batchnorm_batches()), "batches"),
        "synchronised": reset(share_of(batchnorm_batches()), synchronised=True),
        "sorted": reset(share_of(DataLoader(sorted_data(), batch_size=16))),
        "few": reset(share_of(few_batches())),
        "own": reset(Share(list(batchnorm_batches())[rank::count])),
        "repaired": repaired(share_of),
        "covariances": joint.covariances(),
        "correlation": joint.correlation(),
        "matched": matched(share_of),
        "alphas": alphas(2),
        "aligned": aligned(2),
        "resumed": resumed(folder),
        "soup": soup(folder),
        "scores": scores(slice(0, 51) if rank == 0 else slice(51, 91)),
        # As many batches on both, since gradients meet in each.
        "logged": logged(2, slice(0, 20), 5) if rank == 0 else logged(2, slice(20, 32), 3),
        "distilled": distilled(2, slice(0, 20), 5) if rank == 0 else distilled(2, slice(20, 32), 3),
    }
    torch.save(result, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()
