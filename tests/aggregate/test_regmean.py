import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from lightning_merge.aggregate import average, gram_matrices, regmean
from lightning_merge.errors import ConfigError


def test_linear_layer_against_least_squares():
    torch.manual_seed(0)
    layers = [nn.Linear(6, 4).double() for _ in range(3)]
    inputs = [torch.randn(50, 6, dtype=torch.float64) * torch.arange(1, 7) for _ in layers]
    states = [layer.state_dict() for layer in layers]
    grams = [gram_matrices(layer, [x]) for layer, x in zip(layers, inputs, strict=True)]
    merged = regmean(states, grams, scaling=1.0)
    targets = [x @ s["weight"].T for x, s in zip(inputs, states, strict=True)]
    expected = torch.linalg.lstsq(torch.cat(inputs), torch.cat(targets)).solution.T
    torch.testing.assert_close(merged["weight"], expected, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(merged["bias"], average(states)["bias"])


CONVOLUTIONS = {
    "plain": {"kernel_size": 3},
    "rectangular": {"kernel_size": (3, 2), "padding": (2, 1), "stride": (2, 1)},
    "dilated": {"kernel_size": 3, "dilation": 2, "padding": 2},
    "same": {"kernel_size": (2, 4), "padding": "same"},
    "valid": {"kernel_size": 2, "padding": "valid"},
    "reflected": {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
    "circular": {"kernel_size": 4, "padding": "same", "padding_mode": "circular"},
    "grouped": {"kernel_size": 3, "groups": 2},
    "depthwise": {"kernel_size": 3, "groups": 4, "padding": 1},
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_convolution_minimises_the_distance_of_the_outputs(name):
    torch.manual_seed(0)
    layers = [nn.Conv2d(4, 8, bias=False, **CONVOLUTIONS[name]).double() for _ in range(2)]
    inputs = [torch.randn(9, 4, 7, 6, dtype=torch.float64) for _ in layers]
    grams = [gram_matrices(layer, [x]) for layer, x in zip(layers, inputs, strict=True)]
    merged = regmean([layer.state_dict() for layer in layers], grams, scaling=1.0)
    probe = nn.Conv2d(4, 8, bias=False, **CONVOLUTIONS[name]).double()
    probe.load_state_dict(merged)
    loss = sum(
        F.mse_loss(probe(x), layer(x).detach()) for layer, x in zip(layers, inputs, strict=True)
    )
    loss.backward()
    assert probe.weight.grad.abs().max() < 1e-8
    # Not vacuous: away from the optimum, at the plain average, there is a gradient.
    probe.load_state_dict(average([layer.state_dict() for layer in layers]))
    probe.zero_grad()
    sum(
        F.mse_loss(probe(x), layer(x).detach()) for layer, x in zip(layers, inputs, strict=True)
    ).backward()
    assert probe.weight.grad.abs().max() > 1e-5


def test_off_diagonal_scaling_by_hand():
    states = [{"w": torch.tensor([[1.0, 0.0]])}, {"w": torch.tensor([[0.0, 1.0]])}]
    grams = [{"w": torch.tensor([[[2.0, 1.0], [1.0, 2.0]]])}, {"w": torch.eye(2)[None]}]
    # Scaled to 0 the inputs count one by one: (2 * 1 + 1 * 0) / 3, (2 * 0 + 1 * 1) / 3.
    diagonal = regmean(states, grams, scaling=0.0)["w"]
    torch.testing.assert_close(diagonal, torch.tensor([[2 / 3, 1 / 3]]))
    # (G1 + G2)^-1 (G1 w1 + G2 w2) with [[3, .5], [.5, 3]] and [2, 1.5]
    half = regmean(states, grams, scaling=0.5)["w"]
    torch.testing.assert_close(half, torch.tensor([[5.25, 3.5]]) / 8.75)


def test_directions_without_input_keep_the_average():
    states = [{"w": torch.tensor([[1.0, 5.0, 2.0]])}, {"w": torch.tensor([[3.0, 7.0, 4.0]])}]
    one, other = torch.diag(torch.tensor([4.0, 0, 0])), torch.diag(torch.tensor([0, 0.0, 1]))
    merged = regmean(states, [{"w": one[None]}, {"w": other[None]}])["w"]
    torch.testing.assert_close(merged, torch.tensor([[1.0, 6.0, 4.0]]))
    none = torch.zeros(1, 3, 3)
    merged = regmean(states, [{"w": none}, {"w": none}])["w"]
    torch.testing.assert_close(merged, torch.tensor([[2.0, 6.0, 3.0]]))


def test_equal_networks_stay_and_batches_add_up():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5),
        nn.Linear(64, 3),
    )  # fmt: skip
    x = torch.randn(12, 2, 4, 4)
    model(x)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    whole = gram_matrices(model, [x])
    parts = gram_matrices(model, [(x[:5], 1), {"image": x[5:]}])
    assert set(whole) == {"0.weight", "5.weight"}
    torch.testing.assert_close(whole, parts)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert model.training
    assert not any(layer._forward_pre_hooks for layer in model)
    merged = regmean([model.state_dict()] * 2, [whole, parts])
    for name, value in merged.items():
        torch.testing.assert_close(value, before[name], rtol=1e-4, atol=1e-5)


def test_batchnorm_counters_and_types():
    states, grams = [], []
    for seed in range(3):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(36, 3))
        for _ in range(seed + 1):
            model(torch.randn(8, 2, 5, 5))
        states.append(model.state_dict())
        grams.append(gram_matrices(model, [torch.randn(20, 2, 5, 5)]))
    merged, plain = regmean(states, grams), average(states)
    for name, value in merged.items():
        assert value.dtype == plain[name].dtype
        if name not in ("0.weight", "3.weight"):
            torch.testing.assert_close(value, plain[name])
        else:
            assert not torch.allclose(value, plain[name])
    assert merged["1.num_batches_tracked"].item() == 1
    model.load_state_dict(merged)


def test_the_widest_type_is_kept_in_whatever_order():
    torch.manual_seed(1)
    layers = [nn.Linear(6, 4).half(), nn.Linear(6, 4)]
    states = [layer.state_dict() for layer in layers]
    grams = [gram_matrices(layer.float(), [torch.randn(40, 6)]) for layer in layers]
    merged, other = regmean(states, grams), regmean(states[::-1], grams[::-1])
    for name in states[0]:
        assert merged[name].dtype == other[name].dtype == torch.float32
        torch.testing.assert_close(merged[name], other[name])


def test_layers_with_a_forward_of_their_own_are_left_out_and_tied_ones_are_not():
    class Standardised(nn.Conv2d):
        def forward(self, x):
            return F.conv2d(x, self.weight - self.weight.mean(), self.bias)

    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(3, 3), nn.Linear(3, 3)
            self.two.weight = self.one.weight

        def forward(self, x):
            return self.two(self.one(x))

    model = nn.Sequential(Standardised(1, 3, 1), nn.Flatten(), Tied())
    x = torch.randn(5, 1, 1, 1)
    grams = gram_matrices(model, [x])
    assert set(grams) == {"2.one.weight", "2.two.weight"}
    first = model[1](model[0](x)).double()
    second = model[2].one(first.float()).double()
    both = torch.cat([first, second])
    torch.testing.assert_close(grams["2.one.weight"][0], both.T @ both / 10, rtol=1e-6, atol=1e-6)
    with pytest.raises(ConfigError, match="no linear"):
        gram_matrices(nn.ReLU(), [x])


def test_a_linear_layer_of_timm_is_a_linear_layer():
    torch.manual_seed(0)
    layer, x = timm.layers.Linear(4, 2), torch.randn(9, 4)
    gram = (x.T.double() @ x.double()) / 9
    torch.testing.assert_close(gram_matrices(layer, [x]), {"weight": gram[None]})


def test_what_is_refused():
    one, gram = {"w": torch.ones(2, 3)}, {"w": torch.eye(3)[None]}
    with pytest.raises(ConfigError, match="2 states and 1 sets"):
        regmean([one, one], [gram])
    with pytest.raises(ConfigError, match="scaling"):
        regmean([one], [gram], scaling=1.5)
    with pytest.raises(ConfigError, match="'w'"):
        regmean([one, one], [gram, {}])
    with pytest.raises(ConfigError, match="does not fit"):
        regmean([one], [{"w": torch.eye(4)[None]}])
