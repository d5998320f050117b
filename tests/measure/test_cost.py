import pytest
import torch
from strangers import Stranger, randomise
from tiny_contexts import Learner, Points, trained
from torch import nn

from lightning_merge import Average, Recipe, average, merge
from lightning_merge.measure.cost import flops, parameters_at_inference
from lightning_merge.modules import EnsembleModule, FeatureEnsembleModule, ImageClassifier

CONV = 2 * (3 * 3 * 3) * 6 * 8 * 8
CONV2 = 2 * (6 * 3 * 3) * 12 * 4 * 4
LINEAR = 2 * 12 * 4


def test_a_convolution_and_a_linear_layer_by_hand():
    images = torch.randn(5, 3, 8, 8)
    strided = nn.Conv2d(3, 6, 3, stride=2, padding=1)
    assert flops(strided, images) == 2 * (3 * 3 * 3) * 6 * 4 * 4
    grouped = nn.Conv2d(4, 8, 3, groups=2)
    assert flops(grouped, torch.randn(1, 4, 8, 8)) == 2 * (2 * 3 * 3) * 8 * 6 * 6
    assert flops(nn.Linear(12, 4), torch.randn(7, 12)) == LINEAR
    assert flops(Stranger(), images) == CONV + CONV2 + LINEAR


def test_attention_counts_whatever_kernel_the_device_has():
    torch.manual_seed(0)
    network = ImageClassifier(
        "vit_tiny_patch16_224", model_kwargs={"img_size": 32, "depth": 1, "embed_dim": 24}
    )
    tokens, width = 2 * 2 + 1, 24
    patches = 2 * (3 * 16 * 16) * width * 4
    block = 2 * tokens * width * (3 * width + width + 4 * width + 4 * width)
    attention = 2 * (2 * tokens * tokens * width)
    head = 2 * width * 10
    assert flops(network, torch.randn(1, 3, 32, 32)) == patches + block + attention + head


def test_an_ensemble_costs_the_sum_of_what_it_runs():
    def members():
        return [randomise(Stranger(), seed) for seed in range(3)]

    images = torch.randn(2, 3, 8, 8)
    body = CONV + CONV2
    one = parameters_at_inference(Stranger())
    head = 12 * 4 + 4
    logits = EnsembleModule(members())
    assert (flops(logits, images), parameters_at_inference(logits)) == (
        3 * (body + LINEAR),
        3 * one,
    )
    features = FeatureEnsembleModule(members(), images)
    assert flops(features, images) == 3 * body + LINEAR
    assert parameters_at_inference(features) == 3 * one - 2 * head
    assert flops(EnsembleModule(members(), batched=True), images) == 3 * (body + LINEAR)


def test_counting_leaves_the_module_as_it_was():
    module = randomise(Stranger(), 0).train()
    module.net[1].eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    flops(module, torch.randn(2, 3, 8, 8))
    assert module.training
    assert not module.net[1].training
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


class OfWholeBatches(Learner):
    """Its `forward` unpacks input and target."""

    def forward(self, batch):
        images, _ = batch
        return self.net(images)

    def _log(self, batch, part):
        self.log(f"{part}_acc", (self(batch).argmax(1) == batch[1]).float().mean())


def test_a_module_that_takes_whole_batches_is_measured_without_its_operations():
    states = [trained(seed).state_dict() for seed in range(2)]
    recipe = Recipe("Mean", Average())
    (row,) = merge(states, recipe, Points(), model=OfWholeBatches(), progress=False).rows
    network = Learner()
    network.load_state_dict(average(states))
    points, classes = Points().test_dataloader().dataset.tensors
    right = (network(points).argmax(1) == classes).float().mean()
    assert row.accuracy == pytest.approx(float(right))
    assert row.flops is None


@pytest.mark.parametrize(
    ("name", "giga"), [("resnet18", 1.82), ("vgg11", 7.63), ("densenet121", 2.88)]
)
def test_the_papers_table_9_counts_a_multiply_add_once(name, giga):
    import timm

    with torch.device("meta"):
        network = timm.create_model(name, num_classes=1000)
        images = torch.randn(1, 3, 224, 224)
    assert flops(network, images) / 2e9 == pytest.approx(giga, rel=0.02)
