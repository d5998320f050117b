"""The reset of norms that are not torch's."""

import copy
import warnings

import pytest
import torch
from torch import nn

from lightning_merge.errors import NonFiniteError
from lightning_merge.recalibrate import reset_batchnorm
from lightning_merge.recipe.recalibration import keeps_statistics

SIZES = (5, 9, 2)


class ByHand(nn.Module):
    """Keeps most of what it had, as Keras counts momentum, in tensors of its own."""

    share = 0.1

    def __init__(self):
        super().__init__()
        self.register_buffer("moving_mean", torch.randn(1, 3, 1, 1))
        self.register_buffer("moving_var", torch.rand(1, 3, 1, 1) + 1)

    def forward(self, x):
        if not self.training:
            return (x - self.moving_mean) / (self.moving_var + 1e-5).sqrt()
        mean, variance = x.mean((0, 2, 3), True), x.var((0, 2, 3), correction=0, keepdim=True)
        self.moving_mean = (1 - self.share) * self.moving_mean + self.share * mean
        self.moving_var = (1 - self.share) * self.moving_var + self.share * variance
        return (x - mean) / (variance + 1e-5).sqrt()


class Largest(nn.Module):
    """Keeps the largest value ever seen."""

    def __init__(self):
        super().__init__()
        self.register_buffer("running_var", torch.ones(3))

    def forward(self, x):
        if self.training:
            torch.maximum(self.running_var, x.amax((0, 2, 3)), out=self.running_var)
        return x / self.running_var[:, None, None]


class Cumulative(nn.Module):
    """Counts its batches and keeps their plain mean."""

    def __init__(self):
        super().__init__()
        self.register_buffer("running_mean", torch.randn(3))
        self.register_buffer("num_batches_tracked", torch.tensor(6))

    def forward(self, x):
        if self.training:
            self.num_batches_tracked += 1
            change = x.mean((0, 2, 3)) - self.running_mean
            self.running_mean += change / self.num_batches_tracked
        return x - self.running_mean[:, None, None]


class Odd(Cumulative):
    """Keeps the last mean of small batches, and of large ones the largest."""

    def forward(self, x):
        if self.training and len(x) < 8:
            self.running_mean.copy_(x.mean((0, 2, 3)))
        elif self.training:
            self.running_mean.copy_(torch.maximum(self.running_mean, x.mean((0, 2, 3))))
        return x


class FrozenBatchNorm2d(ByHand):
    def forward(self, x):
        return (x - self.moving_mean) / (self.moving_var + 1e-5).sqrt()


class Still(FrozenBatchNorm2d):
    """Updates nothing, and is not called frozen."""


def images():
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(n, 3, 6, 6, generator=generator) * n + n for n in SIZES]


def by_examples(rows):
    weights = torch.tensor(SIZES) / sum(SIZES)
    return torch.einsum("b,bc->c", weights, torch.stack(rows))


def test_a_norm_written_by_hand_gets_the_means_over_batches():
    model = nn.Sequential(ByHand(), nn.BatchNorm2d(3))
    assert keeps_statistics(model[0])
    given = images()
    assert reset_batchnorm(model, given) == 2
    torch.testing.assert_close(
        model[0].moving_mean.flatten(), by_examples([x.mean((0, 2, 3)) for x in given])
    )
    variances = [x.var((0, 2, 3), correction=0) for x in given]
    torch.testing.assert_close(model[0].moving_var.flatten(), by_examples(variances))
    # What is behind it is given batches that their own statistics normalised.
    torch.testing.assert_close(model[1].running_mean, torch.zeros(3), atol=1e-5, rtol=0)
    assert model[0].training


@pytest.mark.parametrize(
    ("share", "dtype", "near"),
    [
        (1.0, torch.float32, 1e-5),
        (1e-3, torch.float32, 1e-4),
        (1e-4, torch.float64, 1e-6),
        (0.1, torch.float16, 0.02),
        (0.1, torch.bfloat16, 0.1),
    ],
)
def test_batches_may_have_a_small_share_and_a_narrow_type(share, dtype, near):
    model = ByHand().to(dtype)
    model.share = share
    given = [x.to(dtype) for x in images()]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert reset_batchnorm(model, given) == 1
    wide = [x.double() for x in given]
    means = by_examples([x.mean((0, 2, 3)).float() for x in wide])
    variances = by_examples([x.var((0, 2, 3), correction=0).float() for x in wide])
    for found, wanted in ((model.moving_mean, means), (model.moving_var, variances)):
        torch.testing.assert_close(found.flatten().float(), wanted, rtol=near, atol=near)


def test_a_network_of_one_batch_computes_as_in_training():
    model = nn.Sequential(ByHand(), nn.ReLU(), nn.Conv2d(3, 3, 3), ByHand())
    (x, *_) = images()
    wanted = copy.deepcopy(model).train()(x)
    reset_batchnorm(model, [x])
    torch.testing.assert_close(model.eval()(x), wanted, atol=1e-4, rtol=1e-4)


def test_batches_may_count_once():
    model = ByHand()
    reset_batchnorm(model, images(), weighting="batches")
    means = torch.stack([x.mean((0, 2, 3)) for x in images()]).mean(0)
    torch.testing.assert_close(model.moving_mean.flatten(), means)


def test_evonorm_of_timm():
    norm = pytest.importorskip("timm.layers").EvoNorm2dB0(3)
    norm.running_var.fill_(40)
    assert reset_batchnorm(norm, images()) == 1
    wanted = by_examples([x.var((0, 2, 3)) for x in images()])
    torch.testing.assert_close(norm.running_var, wanted)


def test_a_plain_mean_over_batches_is_known_by_its_counter():
    model = Cumulative()
    assert reset_batchnorm(model, images()) == 1
    torch.testing.assert_close(
        model.running_mean, by_examples([x.mean((0, 2, 3)) for x in images()])
    )
    assert model.num_batches_tracked == 6


@pytest.mark.parametrize("kind", [FrozenBatchNorm2d, Still])
def test_what_is_never_updated_stays_in_silence(kind):
    model = kind()
    before = copy.deepcopy(model.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert reset_batchnorm(model, images()) == 0
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert keeps_statistics(model) == (kind is Still)


def test_an_update_of_another_form_stays_with_a_warning():
    model = nn.Sequential(nn.BatchNorm2d(3), Largest())
    before = model[1].running_var.clone()
    with pytest.warns(UserWarning, match=r"running_var of '1' \(Largest\) stay as they are"):
        assert reset_batchnorm(model, images()) == 1
    assert torch.equal(before, model[1].running_var)


def test_updates_that_some_batches_show_to_be_of_another_form_are_not_kept():
    model = Odd()
    before = model.running_mean.clone()
    with pytest.warns(UserWarning, match=r"running_mean of '' \(Odd\) stay as they are"):
        assert reset_batchnorm(model, images()) == 0
    assert torch.equal(before, model.running_mean)


def test_statistics_of_nan_are_refused_and_nothing_is_changed():
    model = nn.Sequential(ByHand())
    before = copy.deepcopy(model.state_dict())
    given = images()
    given[1][0, 0, 0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match="norm '0' was given NaN"):
        reset_batchnorm(model, given)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
