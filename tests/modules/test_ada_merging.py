"""AdaMerging: coefficients of task vectors, learned from entropy alone."""

import copy

import pytest
import torch
from strangers import quiet_trainer, randomise
from tiny_contexts import CLASSES, Perceptron, Points, trained
from torch import nn
from torch.utils.data import DataLoader

from lightning_merge.errors import ConfigError
from lightning_merge.modules.merging.ada_merging_module import AdaMergingModule, mean_entropy


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
    """Against plain autograd through P + sum_k c_k (W_k - P)."""
    start, *tuned = networks(4)
    # Three of them: the coefficients may well add up to more than one.
    module = AdaMergingModule(
        Perceptron(),
        start,
        tuned,
        granularity,
        coefficient=0.4,
        optimizer=lambda p: torch.optim.SGD(p, lr=0.01),
    )
    before = module.alpha_logits.detach().clone()
    x = Points().statistics_dataloader().dataset.tensors[0][:32]
    quiet_trainer(max_steps=1, limit_val_batches=0).fit(module, DataLoader(x, batch_size=32))
    step = (before - module.alpha_logits.detach()) / 0.01

    groups = len(start) if granularity == "layer" else 1
    coefficients = torch.full((3, groups), 0.4, requires_grad=True)
    merged = {
        name: start[name]
        + sum(
            coefficients[k, i % groups] * (one[name] - start[name]) for k, one in enumerate(tuned)
        )
        for i, name in enumerate(start)
    }
    output = torch.func.functional_call(Perceptron(), merged, (x,))
    mean_entropy(output).backward()
    assert step.shape == coefficients.grad.shape
    torch.testing.assert_close(step, coefficients.grad, rtol=1e-3, atol=1e-5)
    assert float(step.abs().max()) > 1e-3


def test_a_coefficient_stays_within_its_bounds_and_comes_back():
    start, *tuned = networks(3)
    module = AdaMergingModule(Perceptron(), start, tuned, "model")
    with torch.no_grad():
        module.alpha_logits.copy_(torch.tensor([[1.7], [-0.2]]))
    module.refresh()
    for name, value in module.state_dict().items():
        torch.testing.assert_close(value, tuned[0][name])
    assert module.coefficients().tolist() == [[1.0], [0.0]]
    x = Points().statistics_dataloader().dataset.tensors[0][:32]
    module.log = lambda *_, **__: None
    module.train().training_step(x, 0).backward()
    module.on_after_backward()
    # At its bound a coefficient still has the gradient that may take it back.
    assert module.alpha_logits.grad.abs().min() > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_coefficients_by_name_make_the_merge(dtype):
    start, *tuned = networks(4)
    module = AdaMergingModule(Perceptron(), start, tuned, "layer").to(dtype)
    with torch.no_grad():
        module.alpha_logits.copy_(torch.rand(module.alpha_logits.shape))
    merged, coefficients = module.state_dict(), module.alphas()
    for i, (name, first) in enumerate(start.items()):
        first = first.to(dtype).double()
        expected = first + sum(
            c * (one[name].to(dtype).double() - first)
            for c, one in zip(module.coefficients()[:, i].double(), tuned, strict=True)
        )
        torch.testing.assert_close(merged[name], expected.to(dtype))
        assert coefficients[name].shape == (3, *first.shape)
        torch.testing.assert_close(
            coefficients[name].flatten(1)[:, 0], module.coefficients()[:, i].to(dtype)
        )


def test_entropy_falls_and_labels_do_not_matter():
    start, *tuned = networks(3)

    def learned(shuffled):
        data = Points()
        x, y = data.val_dataloader().dataset.tensors
        y = y.roll(1) if shuffled else y
        torch.manual_seed(0)
        module = AdaMergingModule(
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
    for given, coefficient in (({}, 0.3), ({"coefficient": 0.8}, 0.8)):
        module = AdaMergingModule(Perceptron(), start, tuned, "model", **given)
        for name, value in module.state_dict().items():
            expected = start[name] + sum(coefficient * (one[name] - start[name]) for one in tuned)
            torch.testing.assert_close(value, expected)


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
    module = AdaMergingModule(TwoHeads(), first.state_dict(), others, "model", keep_a="heads.*")
    batch = {"a": (torch.randn(4, 6), None), "b": (torch.randn(9, 6), None)}
    seen = []
    module.log = lambda name, value, **_: seen.append((name, float(value.detach())))
    loss = module.training_step(batch, 0)
    module.on_after_backward()
    with torch.no_grad():
        logits = module.eval()({task: part[0] for task, part in batch.items()})
    expected = mean_entropy(logits["a"]) + mean_entropy(logits["b"])
    torch.testing.assert_close(loss.detach(), expected)
    assert seen == [("train_entropy", pytest.approx(float(expected)))]
    for name, value in first.heads.state_dict().items():
        torch.testing.assert_close(module.state_dict()[f"heads.{name}"], value)


@pytest.mark.parametrize("kind", ["binary", "multilabel"])
def test_answers_of_yes_and_no_have_their_own_entropy(kind):
    logits = torch.randn(7, 1 if kind == "binary" else 3)
    expected = sum(
        torch.distributions.Bernoulli(logits=column).entropy().mean() for column in logits.T
    )
    torch.testing.assert_close(mean_entropy(logits, kind == "multilabel"), expected)
    states = [randomise(Perceptron(), seed).state_dict() for seed in range(3)]
    network = Perceptron()
    network.task = kind
    module = AdaMergingModule(network, states[0], states[1:])
    module.log = lambda *_, **__: None
    module.net.register_forward_hook(lambda *_: logits)
    torch.testing.assert_close(module.training_step((torch.randn(7, 6), None), 0), expected)
    module.on_after_backward()

    heads = TwoHeads()
    heads.independent = {"b"}
    module = AdaMergingModule(heads, heads.state_dict(), [heads.state_dict()])
    module.log = lambda *_, **__: None
    module.heads["b"].register_forward_hook(lambda *_: logits)
    batch = {"a": (torch.randn(4, 6), None), "b": (torch.randn(7, 6), None)}
    loss = module.training_step(batch, 0)
    module.on_after_backward()
    other = mean_entropy(module.eval()({"a": batch["a"][0]})["a"])
    torch.testing.assert_close(loss, expected + other)


@pytest.mark.parametrize("coefficient", [0.0, 1.0, -0.1])
def test_what_it_cannot_begin_with_is_refused(coefficient):
    states = [randomise(Perceptron(), seed).state_dict() for seed in range(3)]
    with pytest.raises(ConfigError, match=r"coefficient is .* between 0 and 1"):
        AdaMergingModule(Perceptron(), states[0], states[1:], coefficient=coefficient)
    with pytest.raises(ConfigError, match="choose model or layer"):
        AdaMergingModule(Perceptron(), states[0], states[1:], "parameter")
