import copy

import numpy as np
import pytest
import torch
from torch import nn

from lightning_merge.aggregate import average, diagonal_fisher, fisher_average
from lightning_merge.errors import ConfigError, NonFiniteError


def convolutional(seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(inplace=True), nn.Flatten(), nn.Dropout(0.5),
        nn.Linear(27, 4),
    )  # fmt: skip
    model(torch.randn(6, 2, 5, 5))
    return model


def fisher_one_by_one(model, inputs):
    """The definition: examples and classes in two loops, gradients by autograd."""
    model.eval()
    total = {name: torch.zeros_like(p).double() for name, p in model.named_parameters()}
    for one in inputs:
        log_probabilities = model(one[None])[0].log_softmax(dim=0)
        for log_probability in log_probabilities:
            model.zero_grad()
            log_probability.backward(retain_graph=True)
            for name, p in model.named_parameters():
                total[name] += log_probability.exp().item() * p.grad.double() ** 2
    model.zero_grad()
    return {name: value / len(inputs) for name, value in total.items()}


def test_exact_fisher_against_the_definition():
    model, inputs = convolutional(), torch.randn(7, 2, 5, 5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = diagonal_fisher(model, [(inputs[:5], 0), {"x": inputs[5:]}], chunk=2)
    assert model.training
    assert model[1].training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    torch.testing.assert_close(found, fisher_one_by_one(model, inputs), rtol=1e-4, atol=1e-8)


def test_fisher_of_a_logistic_regression_in_closed_form():
    model, x = nn.Linear(3, 2, bias=False), torch.randn(50, 3)
    p = model(x).softmax(dim=1).double()
    # d log p_y / d w_c = (1[y = c] - p_c) x, whose expected square is p_c (1 - p_c) x^2.
    expected = ((p * (1 - p)).T @ x.double().square()) / 50
    torch.testing.assert_close(diagonal_fisher(model, [x])["weight"], expected, rtol=1e-5, atol=0)


def bernoulli_fisher(model, inputs):
    """Every label is a yes or no of its own: p (1 - p) (d logit / d parameter)^2, added."""
    total = {name: torch.zeros_like(p).double() for name, p in model.named_parameters()}
    for one in inputs:
        for logit in model(one[None])[0]:
            model.zero_grad()
            logit.backward(retain_graph=True)
            p = logit.sigmoid().item()
            for name, value in model.named_parameters():
                total[name] += p * (1 - p) * value.grad.double() ** 2 / len(inputs)
    model.zero_grad()
    return total


@pytest.mark.parametrize("count", [1, 3])
def test_fisher_of_answers_of_yes_and_no(count):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, count)), torch.randn(40, 3)
    expected = bernoulli_fisher(model, x)
    # A single logit can be nothing else.
    found = diagonal_fisher(model, [x], independent=count > 1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-8)
    generator = torch.Generator().manual_seed(0)
    drawn = diagonal_fisher(model, [x], 200, generator, chunk=40, independent=count > 1)
    torch.testing.assert_close(drawn, expected, rtol=0.2, atol=0.01)


def test_drawn_labels_converge_to_the_expectation_and_repeat_with_the_seed():
    torch.manual_seed(0)
    model, x = nn.Linear(3, 3), torch.randn(40, 3)
    exact = diagonal_fisher(model, [x])["weight"]

    def drawn(seed):
        generator = torch.Generator().manual_seed(seed)
        return diagonal_fisher(model, [x], 50, generator, chunk=40)["weight"]

    torch.testing.assert_close(drawn(0), exact, rtol=0.15, atol=0.01)
    assert torch.equal(drawn(0), drawn(0))
    assert not torch.equal(drawn(0), drawn(1))


def test_tied_parameters_have_one_fisher_under_both_names():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = nn.Linear(4, 4)
            self.two = nn.Linear(4, 4)
            self.two.weight = self.one.weight

        def forward(self, x):
            return self.two(self.one(x).relu())

    model, inputs = Tied(), torch.randn(5, 4)
    found = diagonal_fisher(model, [inputs])
    assert set(found) == set(model.state_dict())
    assert torch.equal(found["one.weight"], found["two.weight"])
    expected = fisher_one_by_one(model, inputs)
    torch.testing.assert_close(found["one.weight"], expected["one.weight"], rtol=1e-4, atol=1e-8)


def test_a_network_of_float64_may_have_parameters_that_it_does_not_use():
    model, inputs = nn.Linear(3, 2), torch.randn(5, 3)
    model.register_parameter("unused", nn.Parameter(torch.ones(4)))
    expected = diagonal_fisher(model, [inputs], None)
    found = diagonal_fisher(model.double(), [inputs.double()], None)
    assert not found["unused"].any()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-9)


def test_average_by_hand():
    states = [{"w": torch.tensor([0.0, 2.0, 4.0])}, {"w": torch.tensor([4.0, 6.0, 8.0])}]
    fishers = [{"w": torch.tensor([1.0, 0.0, 0.0])}, {"w": torch.tensor([3.0, 5.0, 0.0])}]
    plain = {"normalize": False}
    assert fisher_average(states, fishers, **plain)["w"].tolist() == [3.0, 6.0, 6.0]
    assert fisher_average(states, fishers, [3, 1], **plain)["w"].tolist() == [2.0, 6.0, 5.0]
    by_name = {"w": [3, 1]}
    assert fisher_average(states, fishers, by_name, **plain)["w"].tolist() == [2.0, 6.0, 5.0]


@pytest.mark.parametrize("scale", [200.0, 1e-170, 1e-310, 1e200])
def test_by_default_the_scale_of_a_networks_information_does_not_count(scale):
    states = [
        {"w": torch.tensor([0.0, 2.0]), "v": torch.zeros(1)},
        {"w": torch.tensor([4.0, 6.0]), "v": torch.ones(1)},
    ]
    fisher = {"w": torch.tensor([3.0, 0.0]).double(), "v": torch.tensor([4.0]).double()}
    fishers = [fisher, {name: value * scale for name, value in fisher.items()}]
    # Divided by their norms they are equal: the plain mean, and the mean where there is none.
    merged = fisher_average(states, fishers)
    torch.testing.assert_close(merged["w"], torch.tensor([2.0, 4.0]))
    torch.testing.assert_close(merged["v"], torch.tensor([0.5]))
    without = fisher_average(states, fishers, normalize=False)["w"][0].item()
    assert without == pytest.approx(4 * scale / (1 + scale))


def test_information_is_divided_by_its_norm_over_tensors_of_all_sizes():
    drawn = np.random.default_rng(0)
    shapes = {"a": (2, 3), "b": (), "c": (50,), "none": (0, 2)}
    states = [{name: drawn.random(shape) for name, shape in shapes.items()} for _ in range(3)]
    # The third network is sure of everything, and has no part.
    fishers = [
        {name: drawn.random(shape) * size for name, shape in shapes.items()}
        for size in (1e-3, 1.0, 0.0)
    ]
    merged = fisher_average(
        *(
            [{k: torch.tensor(v) for k, v in one.items()} for one in some]
            for some in (states, fishers)
        )
    )
    for one in fishers[:2]:
        norm = np.linalg.norm(np.concatenate([value.ravel() for value in one.values()]))
        one.update({name: value / norm for name, value in one.items()})
    for name, found in merged.items():
        values, weights = (np.stack([one[name] for one in some]) for some in (states, fishers))
        expected = (values * weights).sum(0) / weights.sum(0)
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_squares_of_small_gradients_are_not_lost_in_half_precision(dtype):
    torch.manual_seed(0)
    model = nn.Linear(3, 2).to(dtype)
    x = (1e-3 * torch.randn(20, 3)).to(dtype)
    expected = diagonal_fisher(copy.deepcopy(model).double(), [x.double()])
    found = diagonal_fisher(model, [x])
    assert found["weight"].max() < 1e-6
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0)


def test_the_average_minimises_the_weighted_quadratic():
    states = [{"w": torch.randn(9, dtype=torch.float64)} for _ in range(3)]
    fishers = [{"w": torch.rand(9, dtype=torch.float64)} for _ in range(3)]
    merged = fisher_average(states, fishers, normalize=False)["w"].requires_grad_()
    loss = sum(
        (f["w"] * (merged - s["w"]) ** 2).sum() for f, s in zip(fishers, states, strict=True)
    )
    (gradient,) = torch.autograd.grad(loss, merged)
    assert gradient.abs().max() < 1e-12


def test_batchnorm_and_counters():
    models = [convolutional(seed) for seed in range(3)]
    states = [model.state_dict() for model in models]
    states[1]["1.num_batches_tracked"] += 5
    fishers = [diagonal_fisher(model, [torch.randn(4, 2, 5, 5)]) for model in models]
    merged, plain = fisher_average(states, fishers), average(states)
    for name in ("1.running_mean", "1.running_var", "1.num_batches_tracked"):
        torch.testing.assert_close(merged[name], plain[name])
    assert not torch.allclose(merged["0.weight"], plain["0.weight"])
    assert {n: v.dtype for n, v in merged.items()} == {n: v.dtype for n, v in states[0].items()}
    convolutional(3).load_state_dict(merged)
    equal = [{name: torch.ones_like(v) for name, v in f.items()} for f in fishers]
    torch.testing.assert_close(fisher_average(states, equal), plain)


def test_what_is_refused():
    one = {"w": torch.ones(2)}
    with pytest.raises(ConfigError, match="2 states, 1 Fishers"):
        fisher_average([one, one], [one])
    with pytest.raises(ConfigError, match="'v'"):
        fisher_average([one, one], [one, {**one, "v": torch.ones(1)}])
    with pytest.raises(ConfigError, match="negative information"):
        fisher_average([one], [{"w": torch.tensor([1.0, -1.0])}])
    with pytest.raises(ConfigError, match=r"'w' is \(3,\) and the tensor \(2,\)"):
        fisher_average([one], [{"w": torch.ones(3)}])
    with pytest.raises(ConfigError, match="weights"):
        fisher_average([one, one], [one, one], [2, -1])
    with pytest.raises(ConfigError, match="no examples"):
        diagonal_fisher(nn.Linear(2, 2), [])
    with pytest.raises(NonFiniteError, match="that of 'weight' is NaN"):
        diagonal_fisher(nn.Linear(2, 2), [torch.full((1, 2), torch.nan)])
    with pytest.raises(ConfigError, match=r"\(B, C\)"):
        diagonal_fisher(nn.Conv2d(1, 1, 1), [torch.ones(1, 1, 2, 2)])
