import copy

import pytest
import torch
from strangers import image_batches, randomise, small_network
from torch import nn
from torch.optim.swa_utils import update_bn

from lightning_merge.errors import DataError
from lightning_merge.recalibrate import reset_batchnorm


def statistics(model):
    return {name: value.clone() for name, value in model.named_buffers()}


def test_the_statistics_are_those_of_torch():
    ours = randomise(small_network(), 1)
    theirs = copy.deepcopy(ours)
    before = statistics(ours)
    assert reset_batchnorm(ours, image_batches()) == 2
    theirs.train()
    update_bn(image_batches(), theirs)
    for name, value in statistics(theirs).items():
        assert torch.equal(statistics(ours)[name], value)
        assert not torch.equal(before[name], value)


def test_one_layer_by_hand():
    layer = randomise(nn.BatchNorm2d(3), 2)
    batches = [torch.randn(8, 3, 4, 4) * 3 + 1 for _ in range(3)]
    reset_batchnorm(layer, batches)
    means = torch.stack([batch.mean((0, 2, 3)) for batch in batches]).mean(0)
    variances = torch.stack([batch.var((0, 2, 3)) for batch in batches]).mean(0)
    assert torch.allclose(layer.running_mean, means, atol=1e-6)
    assert torch.allclose(layer.running_var, variances, atol=1e-5)


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
    assert all(torch.equal(before[name], value) for name, value in statistics(model).items())
