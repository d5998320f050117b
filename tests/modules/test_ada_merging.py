"""AdaMerging: coefficients of task vectors, learned from entropy alone."""

import copy

import pytest
import torch
from strangers import quiet_trainer, randomise
from tiny_pools import CLASSES, Perceptron, Points, trained
from torch import nn
from torch.utils.data import DataLoader

from lightning_merge.errors import ConfigError
from lightning_merge.modules.ada_merging import AdaMerging, mean_entropy


def networks(count):
    return [trained(seed, steps=20).state_dict() for seed in range(count)]


def test_entropy_is_that_of_the_definition():
    logits = torch.tensor([[0.0, 0.0], [2.0, -1.0]])
    p = torch.softmax(logits, 1)
    expected = -(p * p.log()).sum(1).mean()
    torch.testing.assert_close(mean_entropy(logits), expected)
    torch.testing.assert_close(mean_entropy(torch.zeros(3, 5)), torch.tensor(5.0).log())


@pytest.mark.parametrize("granularity", ["model", "layer"])
def test_one_step_is_the_gradient_of_the_entropy_by_the_coefficients(granularity):
    """Against plain autograd through P + sum_k c_k (W_k - P), a softmax giving the c."""
    start, *tuned = networks(3)
    module = AdaMerging(
        Perceptron(), start, tuned, granularity, optimizer=lambda p: torch.optim.SGD(p, lr=1.0)
    )
    before = module.alpha_logits.detach().clone()
    x = Points().statistics_dataloader().dataset.tensors[0][:32]
    quiet_trainer(max_steps=1, limit_val_batches=0).fit(module, DataLoader(x, batch_size=32))
    step = before - module.alpha_logits.detach()

    groups = len(start) if granularity == "layer" else 1
    logits = torch.zeros(3, groups, requires_grad=True)
    shares = logits.softmax(0)
    merged = {
        name: start[name]
        + sum(shares[k + 1, i % groups] * (one[name] - start[name]) for k, one in enumerate(tuned))
        for i, name in enumerate(start)
    }
    output = torch.func.functional_call(Perceptron(), merged, (x,))
    mean_entropy(output).backward()
    assert step.shape == logits.grad.shape
    torch.testing.assert_close(step, logits.grad, rtol=1e-4, atol=1e-6)
    assert float(step.abs().max()) > 0


def test_entropy_falls_and_labels_do_not_matter():
    start, *tuned = networks(3)

    def learned(shuffled):
        data = Points()
        x, y = data.val_dataloader().dataset.tensors
        y = y.roll(1) if shuffled else y
        torch.manual_seed(0)
        module = AdaMerging(
            Perceptron(), start, tuned, optimizer=lambda p: torch.optim.Adam(p, lr=0.05)
        )
        with torch.no_grad():
            before = float(mean_entropy(module.eval()(x)))
        pairs = torch.utils.data.TensorDataset(x, y)
        trainer = quiet_trainer(max_epochs=5, limit_val_batches=0)
        trainer.fit(module, DataLoader(pairs, batch_size=35))
        with torch.no_grad():
            return module, before, float(mean_entropy(module.eval()(x)))

    module, before, after = learned(shuffled=False)
    assert after < before
    other, _, _ = learned(shuffled=True)
    torch.testing.assert_close(module.alpha_logits, other.alpha_logits, rtol=0, atol=0)


def test_coefficients_start_where_they_are_told():
    start, *tuned = networks(4)
    module = AdaMerging(Perceptron(), start, tuned, "model", coefficient=0.2)
    name = next(iter(start))
    expected = start[name] + sum(0.2 * (one[name] - start[name]) for one in tuned)
    torch.testing.assert_close(module.state_dict()[name], expected)


class TwoHeads(Perceptron):
    """One body, two heads; a batch by task."""

    def __init__(self) -> None:
        super().__init__()
        self.net = self.net[:-1]
        self.heads = nn.ModuleDict({"a": nn.Linear(12, CLASSES), "b": nn.Linear(12, 7)})

    def forward(self, inputs):
        return {task: self.heads[task](self.net(x)) for task, x in inputs.items()}


def test_several_heads_add_their_entropies():
    first = randomise(TwoHeads(), 0)
    others = []
    for seed in (1, 2):
        other = randomise(TwoHeads(), seed)
        other.heads = copy.deepcopy(first.heads)
        others.append(other.state_dict())
    module = AdaMerging(TwoHeads(), first.state_dict(), others, "model", keep_a="heads.*")
    batch = {"a": (torch.randn(4, 6), None), "b": (torch.randn(9, 6), None)}
    seen = []
    module.log = lambda name, value, **_: seen.append((name, float(value)))
    loss = module.training_step(batch, 0)
    module.on_after_backward()
    with torch.no_grad():
        logits = module.eval()({task: part[0] for task, part in batch.items()})
    expected = mean_entropy(logits["a"]) + mean_entropy(logits["b"])
    torch.testing.assert_close(loss.detach(), expected)
    assert seen == [("train_entropy", pytest.approx(float(expected)))]
    for name, value in first.heads.state_dict().items():
        torch.testing.assert_close(module.state_dict()[f"heads.{name}"], value)


@pytest.mark.parametrize("coefficient", [0.0, 0.5, 0.6])
def test_a_coefficient_that_leaves_nothing_is_refused_by_its_name(coefficient):
    states = [randomise(Perceptron(), seed).state_dict() for seed in range(3)]
    with pytest.raises(ConfigError, match=r"coefficient is .* below 1 / 2"):
        AdaMerging(Perceptron(), states[0], states[1:], coefficient=coefficient)
