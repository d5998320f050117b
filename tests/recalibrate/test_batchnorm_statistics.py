"""BatchNorm reset against statistics of all values at once, and against torch's own."""

import copy

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from strangers import image_batches, randomise, small_network
from torch import nn
from torch.optim.swa_utils import update_bn
from torch.utils.data import DataLoader, TensorDataset

from lightning_merge.errors import ConfigError, DataError, NonFiniteError
from lightning_merge.recalibrate import reset_batchnorm


def statistics(model):
    return {name: value.clone() for name, value in model.named_buffers()}


def close(found, wanted, **tolerance):
    return all(
        torch.allclose(found[name].double(), value.double(), **tolerance)
        for name, value in wanted.items()
    )


@settings(deadline=None, max_examples=60)
@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=8), far=st.sampled_from([0, 1e4]))
@example(sizes=[1, 1], far=0)
def test_however_examples_are_divided_the_statistics_are_those_of_all(sizes, far):
    generator = torch.Generator().manual_seed(sum(sizes))
    data = torch.randn(sum(sizes), 3, generator=generator, dtype=torch.float64)
    data = data * torch.tensor([1, 5, 0.01]) + torch.arange(len(data))[:, None] / 9 + far
    layer = nn.BatchNorm1d(3).double()
    if len(data) == 1:
        with pytest.raises(DataError, match="no variance"):
            reset_batchnorm(layer, [data])
        return
    assert reset_batchnorm(layer, data.split(sizes)) == 1
    torch.testing.assert_close(layer.running_mean, data.mean(0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(layer.running_var, data.var(0), rtol=1e-10, atol=1e-12)


def test_each_layer_is_given_what_its_batch_normalises_to():
    """By hand: two layers, three batches of different sizes."""
    first, second = nn.BatchNorm2d(3), nn.BatchNorm2d(4)
    convolution = nn.Conv2d(3, 4, 3)
    model = randomise(nn.Sequential(first, convolution, second), 2).double()
    batches = [torch.randn(size, 3, 5, 5).double() * 3 + size for size in (8, 3, 5)]
    behind = []
    for batch in batches:
        mean, var = batch.mean((0, 2, 3)), batch.var((0, 2, 3), correction=0)
        plain = (batch - mean[:, None, None]) / (var[:, None, None] + first.eps).sqrt()
        scaled = plain * first.weight[:, None, None] + first.bias[:, None, None]
        behind.append(convolution(scaled).detach())
    assert reset_batchnorm(model, batches) == 2
    for layer, values in ((first, torch.cat(batches)), (second, torch.cat(behind))):
        torch.testing.assert_close(layer.running_mean, values.mean((0, 2, 3)))
        torch.testing.assert_close(layer.running_var, values.var((0, 2, 3)))
        assert layer.num_batches_tracked == 3


def test_torchs_way_gives_each_batch_the_same_weight():
    ours = randomise(small_network(), 1)
    theirs = copy.deepcopy(ours)
    batches = [batch[0] for batch in image_batches()]
    batches[-1] = batches[-1][:5]
    assert reset_batchnorm(ours, batches, weighting="batches") == 2
    theirs.train()
    update_bn(batches, theirs)
    assert close(statistics(ours), statistics(theirs), rtol=1e-5, atol=1e-6)
    reset_batchnorm(ours, batches)
    assert not close(statistics(ours), statistics(theirs), rtol=1e-3)
    with pytest.raises(DataError, match="one value per channel"):
        reset_batchnorm(
            nn.BatchNorm1d(2), [torch.randn(4, 2), torch.randn(1, 2)], weighting="batches"
        )
    with pytest.raises(ConfigError, match="'examples' or 'batches'"):
        reset_batchnorm(ours, batches, weighting="equal")


def sorted_set(count=40):
    """Images whose brightness is their class, all of one class after the other."""
    generator = torch.Generator().manual_seed(4)
    classes = torch.arange(4).repeat_interleave(count)
    images = torch.randn(len(classes), 3, 8, 8, generator=generator) * 0.3
    return TensorDataset(images + classes[:, None, None, None], classes)


@pytest.mark.parametrize("sampling", ["in order", "shuffled"])
def test_a_set_sorted_by_class_is_read_at_random(sampling):
    data = sorted_set()
    network = randomise(small_network(), 5)
    found, wanted, spoiled = (copy.deepcopy(network) for _ in range(3))
    reset_batchnorm(found, DataLoader(data, 20, shuffle=sampling == "shuffled"))
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(9))
    reset_batchnorm(wanted, data.tensors[0][order].split(20))
    reset_batchnorm(spoiled, data.tensors[0].split(20))
    ratio = found[4].running_var / wanted[4].running_var
    assert ratio.log().abs().max() < 0.15
    assert (spoiled[4].running_var / wanted[4].running_var).log().abs().max() > 0.5


def test_the_seed_is_all_that_the_order_depends_on():
    data = sorted_set()

    def after(seed, **loader):
        network = randomise(small_network(), 5)
        reset_batchnorm(network, DataLoader(data, 20, **loader), seed=seed)
        return network[4].running_var

    assert torch.equal(after(0), after(0, shuffle=True))
    assert torch.equal(after(3, drop_last=True), after(3))
    assert not torch.equal(after(0), after(1))


def test_batches_that_a_loader_would_drop_are_read():
    data = torch.randn(33, 2)
    layer = nn.BatchNorm1d(2)
    reset_batchnorm(layer, DataLoader(TensorDataset(data), 16, drop_last=True))
    torch.testing.assert_close(layer.running_mean, data.mean(0))
    assert layer.num_batches_tracked == 2


def test_random_numbers_are_those_that_would_have_been_drawn():
    own = torch.Generator().manual_seed(8)
    loader = DataLoader(sorted_set(), 20, shuffle=True, generator=own)
    before = own.get_state()
    for batches in (loader, list(loader), (torch.randn(4, 3, 8, 8) for _ in range(3))):
        torch.manual_seed(3)
        own.set_state(before)
        reset_batchnorm(small_network(), batches)
        assert torch.equal(own.get_state(), before)
        drawn = torch.rand(3)
        torch.manual_seed(3)
        small_network()
        assert torch.equal(torch.rand(3), drawn)


class Dropping(nn.Module):
    def __init__(self):
        super().__init__()
        self.drop, self.norm = nn.Dropout(0.5), nn.BatchNorm1d(4)

    def forward(self, x):
        return self.norm(self.drop(x))


def test_dropout_stays_off_and_everything_is_put_back():
    model = Dropping().train()
    model.drop.eval()
    model.norm.momentum = 0.3
    batch = torch.randn(64, 4)
    modes = [module.training for module in model.modules()]
    reset_batchnorm(model, [batch])
    assert torch.allclose(model.norm.running_mean, batch.mean(0), atol=1e-6)
    assert [module.training for module in model.modules()] == modes
    assert model.norm.momentum == 0.3
    assert "forward" not in model.norm.__dict__


def test_modes_come_back_after_an_error():
    model = Dropping().eval()

    def failing():
        yield torch.randn(8, 4)
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        reset_batchnorm(model, failing())
    assert not any(module.training for module in model.modules())
    assert model.norm.momentum == 0.1


@pytest.mark.parametrize(
    "wrap", [lambda x: x, lambda x: (x, 0), lambda x: [x], lambda x: {"image": x, "label": 0}]
)
def test_any_kind_of_batch(wrap):
    batch = torch.randn(16, 4)
    model = nn.Sequential(nn.BatchNorm1d(4))
    assert reset_batchnorm(model, [wrap(batch)]) == 1
    assert torch.allclose(model[0].running_mean, batch.mean(0), atol=1e-6)


def test_without_batchnorm_the_data_is_not_read():
    def unread():
        raise AssertionError("read")
        yield

    assert reset_batchnorm(nn.Linear(2, 2), unread()) == 0
    assert reset_batchnorm(nn.BatchNorm1d(2, track_running_stats=False), unread()) == 0


def test_gradients_are_not_recorded():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    reset_batchnorm(model, [torch.randn(8, 4)])
    assert all(parameter.grad is None for parameter in model.parameters())


def test_no_batches_and_errors_leave_the_statistics_as_they_were():
    model = randomise(small_network(), 1)
    before = statistics(model)
    with pytest.raises(DataError, match="no batches"):
        reset_batchnorm(model, iter([]))
    with pytest.raises(RuntimeError, match="channels"):
        reset_batchnorm(model, [torch.randn(4, 3, 8, 8), torch.randn(4, 5, 8, 8)])
    with pytest.raises(DataError, match="one value per channel"):
        reset_batchnorm(nn.Sequential(model, nn.BatchNorm1d(4)), [torch.randn(1, 3, 8, 8)])
    assert all(torch.equal(before[name], value) for name, value in statistics(model).items())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
@pytest.mark.parametrize("weighting", ["examples", "batches"])
def test_images_that_are_not_finite_leave_the_statistics_as_they_were(value, weighting):
    network = randomise(small_network(), 1)
    before = copy.deepcopy(network.state_dict())
    images = torch.randn(12, 3, 8, 8)
    images[7, 1, 2, 3] = value
    with pytest.raises(NonFiniteError, match="norm '1' was given NaN or infinity"):
        reset_batchnorm(network, images.split(4), weighting=weighting)
    assert all(torch.equal(before[key], one) for key, one in network.state_dict().items())


def test_single_images_of_several_pixels_are_batches():
    images = torch.randn(5, 3, 8, 8)
    layer = nn.BatchNorm2d(3)
    reset_batchnorm(layer, images[:1].split(1))
    torch.testing.assert_close(layer.running_var, images[:1].var((0, 2, 3)))


def test_a_batch_without_examples_changes_nothing():
    data = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    norm = nn.Sequential(nn.BatchNorm1d(3))
    reset_batchnorm(norm, [data[:0], data[:12], data[:0], data[12:]])
    assert torch.allclose(norm[0].running_mean, data.mean(0), atol=1e-6)
    assert norm[0].num_batches_tracked == 2
