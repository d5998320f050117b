"""Settings of the Trainer and habits of strangers under which the same alphas are learned."""

import copy
import shutil
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.demos import LightningTransformer
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from strangers import Stranger, image_batches, quiet_trainer, randomise
from torch import nn
from torch.utils.data import DataLoader

from lightning_merge.align import ActivationMatching, PermutationSpec
from lightning_merge.callbacks import BatchNormReset
from lightning_merge.errors import ConfigError
from lightning_merge.modules import MergeModule


def states(kind=Stranger, *arguments):
    made = [randomise(kind(*arguments), seed).state_dict() for seed in (1, 2)]
    return [copy.deepcopy(one) for one in made]


def learned(module=None, batches=None, **settings):
    """The alphas after two epochs, and the module."""
    module = module or Stranger()
    merged = MergeModule(module, states(), optimizer=lambda p: torch.optim.SGD(p, lr=2.0))
    quiet_trainer(**{"max_epochs": 2, **settings}).fit(merged, batches or image_batches())
    return torch.sigmoid(merged.alpha_logits.detach().float()), merged


@pytest.fixture(scope="module")
def plain():
    torch.manual_seed(0)
    alphas, _ = learned()
    assert (alphas - 0.5).abs().max() > 0.05
    return alphas


def moved_alike(ours, theirs, tolerance):
    # Relative to how far training moved them: alphas that stayed would be close to any.
    distance = (ours - theirs).norm() / (theirs - 0.5).norm()
    assert distance < tolerance, f"{distance:.3g}"


@pytest.mark.parametrize(
    ("precision", "tolerance"),
    [("bf16-mixed", 0.1), ("bf16-true", 0.2), ("16-true", 0.05), ("64-true", 1e-3)],
)
def test_precisions(plain, precision, tolerance):
    alphas, merged = learned(precision=precision)
    moved_alike(alphas, plain, tolerance)
    # What an optimizer's small steps add up to wants more bits than the weights do.
    wide = torch.float64 if precision == "64-true" else torch.float32
    assert merged.alpha_logits.dtype == wide


def test_scaled_losses(plain):
    # On a CPU Lightning scales none of its own accord.
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    alphas, _ = learned(plugins=[MixedPrecision("16-mixed", "cpu", scaler)])
    moved_alike(alphas, plain, 0.02)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_a_compiled_network(plain):
    module = Stranger()
    module.net.compile(backend="inductor")
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    alphas, _ = learned(module)
    assert torch._dynamo.utils.counters["inductor"]
    moved_alike(alphas, plain, 1e-3)


def test_channels_last(plain):
    module = Stranger()
    module.net.to(memory_format=torch.channels_last)
    alphas, merged = learned(module)
    assert merged.net[3].weight.is_contiguous(memory_format=torch.channels_last)
    assert not merged.net[3].weight.is_contiguous()
    named = merged._learned.flat.layout.named_views(alphas)
    _, other = learned()
    for name, alpha in other.alphas().items():
        assert torch.allclose(named[name], alpha, atol=1e-4)


def test_accumulated_batches_are_one_batch():
    # Without BatchNorm, which sees every part alone.
    def run(size, accumulate):
        torch.manual_seed(0)
        made = [randomise(Flat(), seed).state_dict() for seed in (1, 2)]
        module = MergeModule(Flat(), made, optimizer=lambda p: torch.optim.SGD(p, lr=2.0))
        data = DataLoader(image_batches().dataset, batch_size=size)
        quiet_trainer(max_epochs=2, accumulate_grad_batches=accumulate).fit(module, data)
        return torch.sigmoid(module.alpha_logits.detach())

    whole = run(32, 1)
    assert (whole - 0.5).abs().max() > 0.01
    moved_alike(run(8, 4), whole, 1e-4)


class Flat(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(192, 4)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.layer(batch[0].flatten(1)), batch[1])


def test_clipping_is_of_the_alphas_gradient():
    merged = MergeModule(Stranger(), states(), optimizer=lambda p: torch.optim.SGD(p, lr=1.0))
    settings = {"max_steps": 1, "gradient_clip_val": 1e-3}
    quiet_trainer(**settings).fit(merged, image_batches())
    free = MergeModule(Stranger(), states(), optimizer=lambda p: torch.optim.SGD(p, lr=1.0))
    quiet_trainer(max_steps=1).fit(free, image_batches())
    step, whole = merged.alpha_logits.detach(), free.alpha_logits.detach()
    assert whole.norm() > 0.01
    assert torch.allclose(step.norm(), torch.tensor(1e-3), rtol=1e-3)
    assert torch.allclose(step / step.norm(), whole / whole.norm(), atol=1e-4)


@pytest.mark.parametrize("stage", ["fit", "validate"])
@pytest.mark.parametrize("kind", [FSDPStrategy, ModelParallelStrategy])
def test_strategies_that_split_parameters_are_refused(kind, stage):
    module = MergeModule(Stranger(), states())
    module._trainer = SimpleNamespace(strategy=kind.__new__(kind))
    with pytest.raises(ConfigError, match=f"{kind.__name__} splits the parameters"):
        module.setup(stage)


def test_averages_of_weights_that_have_no_alphas_are_refused():
    trainer = quiet_trainer(max_steps=1, callbacks=[EMAWeightAveraging()])
    with pytest.raises(ConfigError, match="EMAWeightAveraging averages weights"):
        trainer.fit(MergeModule(Stranger(), states()), image_batches())


def test_parameters_of_two_types_are_refused():
    module = Stranger()
    module.net[8].double()
    with pytest.raises(ConfigError, match=r"float32, torch\.float64"):
        MergeModule(module, states())


# --- strangers


class OwnText(LightningTransformer):
    """Lightning's demo, without the text that it downloads."""

    def prepare_data(self):
        pass


def test_a_transformer_on_text():
    vocabulary = 12
    made = states(OwnText, vocabulary)
    module = MergeModule(OwnText(vocabulary), copy.deepcopy(made))
    tokens = torch.randint(0, vocabulary, (24, 9))
    data = DataLoader([(row[:-1], row[1:]) for row in tokens], batch_size=8)
    quiet_trainer(max_epochs=1).fit(module, data)
    final = module.state_dict()
    for name, alpha in module.alphas().items():
        assert torch.allclose(final[name], alpha * made[0][name] + (1 - alpha) * made[1][name],
                              atol=1e-5)  # fmt: skip
    moved = [(alpha - 0.5).abs().max() > 1e-3 for alpha in module.alphas().values()]
    assert sum(moved) > len(moved) // 2


class Everything(LightningModule):
    """Dict batches of several loaders, frozen parts, and buffers that are no statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(6, 6)
        self.frozen.requires_grad_(False)
        self.head = nn.Linear(6, 2)
        self.register_buffer("scale", torch.tensor([1.0, 2.0]))
        self.register_buffer("table", torch.arange(4))
        self.register_buffer("scratch", torch.zeros(3), persistent=False)
        self.sizes: list[int] = []

    def _loss(self, batch):
        logits = self.head(torch.tanh(self.frozen(batch["x"]))) * self.scale
        return nn.functional.cross_entropy(logits, batch["y"])

    def training_step(self, batch, batch_idx):
        self.sizes += [len(batch["small"]["x"]), len(batch["large"]["x"])]
        return self._loss(batch["small"]) + self._loss(batch["large"])

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self.log("loss", self._loss(batch))

    def predict_step(self, batch, batch_idx):
        return self.head(torch.tanh(self.frozen(batch["x"]))).argmax(1)

    def configure_optimizers(self):
        first = torch.optim.SGD(self.head.parameters(), lr=0.1)
        return [first], [torch.optim.lr_scheduler.StepLR(first, 1)]


def dicts(size):
    x = torch.randn(24, 6)
    y = (x[:, 0] > 0).long()
    return DataLoader([{"x": a, "y": b} for a, b in zip(x, y, strict=True)], batch_size=size)


def test_dicts_loaders_frozen_parts_and_buffers():
    made = states(Everything)
    made[1]["scale"], made[1]["table"] = torch.tensor([3.0, 4.0]), torch.arange(4) + 10
    module = MergeModule(Everything(), made)
    trainer = quiet_trainer(max_epochs=1)
    trainer.fit(module, {"small": dicts(4), "large": dicts(8)}, [dicts(4), dicts(8)])
    assert set(module.sizes) == {4, 8}
    assert {"loss/dataloader_idx_0", "loss/dataloader_idx_1"} <= trainer.callback_metrics.keys()
    assert torch.equal(module.scale, torch.tensor([2.0, 3.0]))
    assert torch.equal(module.table, torch.arange(4))
    # What the module had frozen is mixed like the rest: it differs between ingredients.
    assert (module.alphas()["frozen.weight"] - 0.5).abs().max() > 1e-3
    plain, data = Everything(), dicts(8)
    plain.load_state_dict(module.state_dict())
    ours, theirs = (torch.cat(quiet_trainer().predict(one, data)) for one in (module, plain))
    assert torch.equal(ours, theirs)


class OfTwoLoaders(Stranger):
    def training_step(self, batch, batch_idx):
        return super().training_step(batch["few"], batch_idx) + super().training_step(
            batch["many"], batch_idx
        )


def test_statistics_are_those_of_all_loaders():
    # The planted order of b's units is found on both loaders' batches.
    a = states(OfTwoLoaders)[0]
    spec = PermutationSpec.from_model(Stranger().eval(), torch.randn(2, 3, 8, 8))
    b = spec.apply(a, spec.random(generator=torch.Generator().manual_seed(3)))
    module = MergeModule(OfTwoLoaders(), [a, b], matching=ActivationMatching())
    few, many = image_batches(2), image_batches(4, seed=8)
    trainer = quiet_trainer(max_epochs=1, callbacks=[BatchNormReset()])
    trainer.fit(module, {"few": few, "many": many})
    assert all(torch.equal(b, a[name]) for name, b in module.ingredients()[1].items())
    images = torch.cat([loader.dataset.tensors[0] for loader in (few, many)])
    mean = module.net[0](images).mean((0, 2, 3))
    assert torch.allclose(module.net[1].running_mean, mean, atol=1e-4)


class TwoOptimizers(Stranger):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def configure_optimizers(self):
        return [torch.optim.SGD(part.parameters(), lr=0.1) for part in (self.net[0], self.net[8])]


def test_two_optimizers_are_refused_by_name():
    # Lightning has them with manual optimization alone.
    with pytest.raises(ConfigError, match="TwoOptimizers optimizes manually"):
        MergeModule(TwoOptimizers(), states())


class Recorder(Callback):
    """Reads the weights as any callback would."""

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.seen.append({n: v.detach().clone() for n, v in pl_module.net.named_parameters()})


@pytest.mark.parametrize("count", [2, 3])
def test_a_callback_sees_the_weights_after_every_step(count):
    made = [randomise(Stranger(), seed).state_dict() for seed in range(count)]

    def trained(steps, *callbacks):
        module = MergeModule(Stranger(), made, optimizer=partial(torch.optim.SGD, lr=1.0))
        quiet_trainer(max_steps=steps, callbacks=[*callbacks]).fit(module, image_batches())
        return module

    recorder = Recorder()
    trained(3, recorder)
    for steps, seen in enumerate(recorder.seen, start=1):
        module = trained(steps)
        assert all(torch.equal(seen[n], v) for n, v in module.net.named_parameters())
    assert not torch.equal(recorder.seen[0]["0.weight"], recorder.seen[1]["0.weight"])


@pytest.mark.parametrize("hook", ["on_train_batch_end", "on_before_zero_grad"])
def test_a_callback_sees_the_gradient_of_the_last_step(hook):
    seen = []

    def look(self, trainer, module, *_):
        gradient = module.alpha_logits.grad
        seen.append(
            (module.alpha_logits.detach().clone(), None if gradient is None else gradient.clone())
        )

    callback = type("Looks", (Callback,), {hook: look})()
    start = MergeModule(Stranger(), states(), optimizer=partial(torch.optim.SGD, lr=1.0))
    seen.append((start.alpha_logits.detach().clone(), None))
    quiet_trainer(max_steps=3, callbacks=[callback]).fit(start, image_batches())
    steps = [one for one in seen if one[1] is not None]
    before = [seen[0][0], *(logits for logits, _ in steps)]
    assert len(steps) >= 2
    for (logits, gradient), earlier in zip(steps, before, strict=False):
        assert gradient.abs().max() > 0
        torch.testing.assert_close(earlier - logits, gradient, rtol=1e-3, atol=1e-6)
