"""BatchNorm layers and networks that are not plain."""

import copy

import pytest
import torch
from strangers import randomise, small_network
from torch import nn
from torch.nn import functional as F

from lightning_merge.data.decode import UnreadableImageError
from lightning_merge.errors import ConfigError, DataError
from lightning_merge.recalibrate import LeastSquares, reset_batchnorm

timm = pytest.importorskip("timm.layers")


def two_norms(norm):
    return randomise(nn.Sequential(nn.Conv2d(3, 8, 3), norm(8), nn.Conv2d(8, 6, 3), norm(6)), 3)


def assert_same_statistics(model, other):
    for index in (1, 3):
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            found, wanted = getattr(model[index], name), getattr(other[index], name)
            torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


def images(sizes=(16, 7)):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(size, 3, 12, 12, generator=generator) + size for size in sizes]


class Written(nn.BatchNorm2d):
    """Computes by hand, and forgets how torch does it."""

    def forward(self, x):
        mean, var = self.running_mean, self.running_var
        if self.training:
            mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
            self.running_mean.mul_(0.9).add_(0.1 * mean)
        shape = (1, -1, 1, 1)
        normal = (x - mean.view(shape)) / (var.view(shape) + self.eps).sqrt()
        return normal * self.weight.view(shape) + self.bias.view(shape)


class Activated(nn.BatchNorm2d):
    def forward(self, x):
        return F.relu(super().forward(x))


@pytest.mark.parametrize(
    ("plain", "other"),
    [
        (nn.BatchNorm2d, nn.SyncBatchNorm),
        (nn.BatchNorm2d, Written),
        (Activated, timm.BatchNormAct2d),
    ],
)
def test_other_norms_have_the_statistics_of_plain_ones(plain, other):
    one, two = two_norms(plain), two_norms(other)
    before = [buffer.clone() for buffer in two.buffers()]
    assert reset_batchnorm(one, images()) == reset_batchnorm(two, images()) == 2
    assert_same_statistics(two, one)
    assert not any(torch.equal(*pair) for pair in zip(before, two.buffers(), strict=True))
    assert one[1].num_batches_tracked == 2


@pytest.mark.parametrize("drop", [None, nn.Dropout])
def test_norms_that_timm_synchronises_keep_their_activation(drop):
    plain = two_norms(lambda channels: timm.BatchNormAct2d(channels, drop_layer=drop))
    synchronised = timm.convert_sync_batchnorm(copy.deepcopy(plain))
    assert isinstance(synchronised[1], nn.SyncBatchNorm)
    for model in (plain, synchronised):
        model.train()
        assert reset_batchnorm(model, images()) == 2
        # A dropout behind the norm would have thinned what the next layer reads.
        assert all(layer.training for layer in model.modules())
    assert_same_statistics(synchronised, plain)
    assert_same_statistics(two_norms_after_reset(), plain)


def two_norms_after_reset():
    model = two_norms(Activated)
    reset_batchnorm(model, images())
    return model


class Routes(nn.Module):
    """One norm that is used twice, and one that is never used."""

    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.BatchNorm1d(4), nn.BatchNorm1d(4)

    def forward(self, x):
        return self.used(x) + self.used(2 * x + 3)


def test_a_norm_that_never_runs_stays_and_one_that_runs_twice_pools_both():
    model = randomise(Routes(), 2)
    before = copy.deepcopy(model.unused.state_dict())
    x = torch.randn(20, 4)
    assert reset_batchnorm(model, [x[:13], x[13:]]) == 1
    assert all(torch.equal(before[k], v) for k, v in model.unused.state_dict().items())
    both = torch.cat([x, 2 * x + 3])
    torch.testing.assert_close(model.used.running_mean, both.mean(0))
    torch.testing.assert_close(model.used.running_var, both.var(0))
    assert model.used.num_batches_tracked == 4


def test_statistics_without_a_counter():
    norm = nn.BatchNorm2d(3)
    norm.num_batches_tracked = None
    assert reset_batchnorm(norm, images()) == 1
    torch.testing.assert_close(norm.running_mean, torch.cat(images()).mean((0, 2, 3)))


class OwnInstanceNorm(nn.InstanceNorm2d):
    def forward(self, x):
        kept = (self.running_mean[:, None, None], self.running_var[:, None, None])
        own = (x.mean((2, 3), True), x.var((2, 3), correction=0, keepdim=True))
        mean, variance = own if self.training else kept
        return (x - mean) * (variance + self.eps).rsqrt()


@pytest.mark.parametrize("kind", [nn.InstanceNorm2d, OwnInstanceNorm])
@pytest.mark.parametrize("weighting", ["examples", "batches"])
def test_an_instance_norm_gets_the_mean_of_its_instances(kind, weighting):
    model = nn.Sequential(kind(3, track_running_stats=True), nn.BatchNorm2d(3))
    given = [len(x) * x for x in images((7, 2, 5))]
    assert reset_batchnorm(model, given, weighting=weighting) == 2
    every = [(x.mean((2, 3)), x.var((2, 3))) for x in given]
    if weighting == "batches":
        every = [(mean.mean(0, True), variance.mean(0, True)) for mean, variance in every]
    mean, variance = (torch.cat(rows).mean(0) for rows in zip(*every, strict=True))
    torch.testing.assert_close(model[0].running_mean, mean)
    torch.testing.assert_close(model[0].running_var, variance)
    # The norm behind it is given what training would give it: each instance by its own.
    shown = [nn.functional.instance_norm(x) for x in given]
    means = torch.stack([x.mean((0, 2, 3)) for x in shown]).mean(0)
    torch.testing.assert_close(model[1].running_mean, means, atol=1e-6, rtol=0)
    if weighting == "examples":
        torch.testing.assert_close(model[1].running_var, torch.cat(shown).var((0, 2, 3)))


def test_instances_of_one_pixel_have_no_variance():
    with pytest.raises(DataError, match="use larger images"):
        reset_batchnorm(nn.InstanceNorm2d(3, track_running_stats=True), [torch.rand(4, 3, 1, 1)])


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float64])
def test_other_precisions(kind):
    norm = nn.BatchNorm2d(3).to(kind)
    given = [image.to(kind) for image in images()]
    assert reset_batchnorm(norm, given) == 1
    everything = torch.cat(given).double()
    assert norm.running_var.dtype == kind
    rtol = 1e-2 if kind == torch.bfloat16 else 1e-10
    torch.testing.assert_close(
        norm.running_var.double(), everything.var((0, 2, 3)), rtol=rtol, atol=0
    )


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, Written, nn.InstanceNorm2d])
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_statistics_of_half_precision_are_kept_in_single(norm, kind):
    layer = norm(3, track_running_stats=True)
    given = [image.to(kind) for image in images()]
    assert reset_batchnorm(layer, given) == 1
    everything = torch.cat(given).double()
    mean, variance = everything.mean((0, 2, 3)), everything.var((0, 2, 3))
    if norm is nn.InstanceNorm2d:
        variance = everything.var((2, 3)).mean(0)
    torch.testing.assert_close(layer.running_mean, mean.float(), rtol=1e-5, atol=0)
    torch.testing.assert_close(layer.running_var, variance.float(), rtol=1e-5, atol=0)


def test_a_compiled_network_is_reset_like_any_other():
    plain = two_norms(nn.BatchNorm2d)
    compiled = torch.compile(copy.deepcopy(plain), backend="eager")
    with torch.no_grad():
        compiled.eval()(images()[0])
    reset_batchnorm(plain, images())
    assert reset_batchnorm(compiled, images()) == 2
    assert_same_statistics(compiled._orig_mod, plain)
    with torch.no_grad():
        torch.testing.assert_close(compiled(images()[0]), plain.eval()(images()[0]))


class WholeBatch(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(4)

    def forward(self, batch):
        return self.norm(batch["image"])


class NoForward(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.BatchNorm1d(4)


class Pair(WholeBatch):
    def forward(self, batch):
        x, _ = batch
        return self.norm(x)


@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence")  # A tensor in place of a dict.
@pytest.mark.parametrize("network", [WholeBatch, NoForward, Pair])
def test_networks_that_take_something_else_are_run_by_a_call(network):
    model = randomise(network(), 1)
    before = copy.deepcopy(model.state_dict())
    x = torch.randn(17, 4)
    batches = [{"image": part} for part in x.split(16)]
    if network is Pair:
        batches = [(part, 0) for part in x.split(16)]
    with pytest.raises(ConfigError, match=f"{network.__name__} does not run on .*call=lambda") as e:
        reset_batchnorm(model, batches)
    assert "\n" not in str(e.value)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())

    def call(model, batch):
        return model(batch) if network is not NoForward else model.body(batch["image"])

    assert reset_batchnorm(model, batches, call=call) == 1
    mean = next(value for name, value in model.named_buffers() if "mean" in name)
    torch.testing.assert_close(mean, x.mean(0))


def test_a_batch_without_an_input_wants_a_call():
    with pytest.raises(DataError, match=r"no input.*call"):
        reset_batchnorm(small_network(), [{"pixels": torch.randn(2, 3, 8, 8)}])


@pytest.mark.parametrize("weighting", ["examples", "batches"])
def test_an_error_of_the_loader_stays_the_loaders(weighting):
    def batches():
        yield images()[0]
        raise UnreadableImageError("scan.png is damaged")

    with pytest.raises(UnreadableImageError, match=r"^scan\.png is damaged$"):
        reset_batchnorm(two_norms(nn.BatchNorm2d), batches(), weighting=weighting)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning", "ignore::DeprecationWarning")
def test_a_program_of_torchscript_is_refused():
    network = nn.Sequential(torch.jit.script(two_norms(nn.BatchNorm2d)))
    for recalibrate in (
        lambda: reset_batchnorm(network, images()),
        lambda: LeastSquares([network], images()),
    ):
        with pytest.raises(ConfigError, match="is TorchScript, whose layers cannot be") as caught:
            recalibrate()
        assert "\n" not in str(caught.value)


class WrittenForRows(nn.BatchNorm1d):
    """Computes by hand."""

    def forward(self, x):
        mean, var = x.mean(0), x.var(0, correction=0)
        return (x - mean) / (var + self.eps).sqrt()


class Routed(nn.Module):
    """Its norm is given those examples of a batch that begin above 0."""

    def __init__(self, norm):
        super().__init__()
        self.norm = norm

    def forward(self, x):
        return self.norm(x[x[:, 0] > 0])


@pytest.mark.parametrize("norm", [nn.BatchNorm1d, WrittenForRows])
@pytest.mark.parametrize("weighting", ["examples", "batches"])
def test_batches_of_which_a_norm_is_given_nothing_count_for_nothing(norm, weighting):
    model = Routed(norm(3))
    parts = [torch.randn(size, 3).abs() for size in (5, 9)]
    none = -torch.ones(4, 3)
    reset_batchnorm(model, [none, parts[0], none, parts[1]], weighting=weighting)
    whole = [torch.cat(parts)] if weighting == "examples" else parts
    for name, wanted in (
        ("running_mean", torch.stack([one.mean(0) for one in whole])),
        ("running_var", torch.stack([one.var(0) for one in whole])),
    ):
        torch.testing.assert_close(getattr(model.norm, name), wanted.mean(0))


@pytest.mark.parametrize("norm", [nn.BatchNorm1d, WrittenForRows])
def test_a_batch_of_one_value_has_no_variance_to_average(norm):
    with pytest.raises(DataError, match="one value per channel"):
        reset_batchnorm(norm(3), [torch.randn(4, 3), torch.randn(1, 3)], weighting="batches")
