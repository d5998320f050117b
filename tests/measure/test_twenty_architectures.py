"""The 20 architectures of "Rethinking Weight-Averaged Model-merging" (Table 9): each is built,
trains one step and is merged, at the smallest images that it accepts."""

import gc

import pytest
import torch
from lightning.pytorch import LightningDataModule
from strangers import quiet_trainer
from torch.utils.data import DataLoader, TensorDataset

from lightning_merge import Average, Context, ImageClassifier, Recipe, average
from lightning_merge.measure.outcome import run_recipe
from lightning_merge.recipe.recalibration import keeps_statistics

# Millions of parameters for 1,000 classes, as Table 9 has them.
MILLIONS = {
    "resnet18": 11.7,
    "resnet34": 21.8,
    "resnet50": 25.6,
    "resnet101": 44.5,
    "resnet152": 60.2,
    "densenet121": 8.0,
    "densenet161": 28.7,
    "densenet169": 14.3,
    "densenet201": 20.0,
    "vgg11": 132.9,
    "vgg11_bn": 132.9,
    "vgg13": 133.0,
    "vgg13_bn": 133.0,
    "vgg16": 138.4,
    "vgg16_bn": 138.4,
    "vgg19": 143.7,
    "vgg19_bn": 143.7,
    "deit_tiny_patch16_224": 5.7,
    "vit_tiny_patch16_224": 5.7,
    "vit_base_patch16_224": 86.4,
}
FAST = ("resnet18", "densenet121", "deit_tiny_patch16_224", "vit_tiny_patch16_224")
# A residual network pads: one pixel is enough. The others halve without rounding up (three
# times after a stem that divides by four, or five times), or need one whole patch.
SMALLEST = {"resnet": 1, "densenet": 29, "vgg": 32, "deit": 16, "vit": 16}
CLASSES = 4


@pytest.fixture(autouse=True)
def _given_back():
    """A Trainer and its module hold each other: half a gigabyte each time, for VGG."""
    yield
    gc.collect()


def smallest(name):
    return next(size for family, size in SMALLEST.items() if name.startswith(family))


def build(name, size, classes=CLASSES):
    sized = {"img_size": size} if "vit" in name or "deit" in name else {}
    return ImageClassifier(
        name,
        num_classes=classes,
        model_kwargs=sized,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1e-3),
    )


class Images(LightningDataModule):
    def __init__(self, size):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(4, 3, size, size, generator=generator)
        self.examples = TensorDataset(images, torch.arange(4) % CLASSES)

    def train_dataloader(self):
        return DataLoader(self.examples, batch_size=4)

    def test_dataloader(self):
        return DataLoader(self.examples, batch_size=4)


@pytest.mark.parametrize("name", MILLIONS)
def test_each_is_the_papers(name):
    with torch.device("meta"):
        network = build(name, 224, classes=1000).network
    count = sum(parameter.numel() for parameter in network.parameters())
    # The paper's DenseNet169 has 1% more than everyone else's.
    assert count / 1e6 == pytest.approx(MILLIONS[name], rel=0.011, abs=0.06)


@pytest.mark.parametrize(
    "name",
    [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in MILLIONS],
)
def test_each_trains_a_step_and_is_merged(name):
    size = smallest(name)
    data, states = Images(size), []
    for seed in range(2):
        torch.manual_seed(seed)
        module = build(name, size)
        parameters = list(module.named_parameters())
        # Not all of them: a residual block's last norm may start at zero, and hides the others.
        ends = {key: value.detach().clone() for key, value in (parameters[0], parameters[-1])}
        quiet_trainer(max_steps=1).fit(module, datamodule=data)
        module.zero_grad()
        after = module.state_dict()
        assert not any(after[key].equal(value) for key, value in ends.items())
        states.append(after)
        del module, after
        gc.collect()
    context = Context(build(name, size), states, ["a", "b"], data, quiet_trainer, progress=False)
    kind = "batchnorm" if keeps_statistics(context.module) else None
    outcome = run_recipe(Recipe("soup", Average(), recalibrate=kind), context)
    merged = outcome.content["state_dict"]
    for key, value in average(states).items():
        if not key.endswith(("running_mean", "running_var", "num_batches_tracked")):
            assert torch.equal(merged[key], value), key
    assert all(bool(value.isfinite().all()) for value in merged.values())
    row = outcome.measurement.row()
    assert row["test_examples"] == 4
    assert row["accuracy"] is not None
    assert row["flops"] > 0


@pytest.mark.parametrize("name", ["densenet121", pytest.param("vgg11", marks=pytest.mark.slow)])
def test_one_pixel_less_is_too_little(name):
    network = build(name, 0).eval()
    with torch.no_grad():
        network(torch.zeros(1, 3, smallest(name), smallest(name)))
        with pytest.raises(RuntimeError):
            network(torch.zeros(1, 3, smallest(name) - 1, smallest(name) - 1))
