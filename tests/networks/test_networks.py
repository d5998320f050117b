from itertools import pairwise

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

import lightning_merge.networks  # noqa: F401  (registers the names)
from lightning_merge.errors import ConfigError
from lightning_merge.networks.resnet_cifar import PadShortcut

NAMES = ["resnet20_cifar", "vgg11_cifar", "vgg11_bn_cifar", "linear_classifier"]


def build(name, size=32, **kwargs):
    if name == "linear_classifier":
        kwargs["img_size"] = size
    return timm.create_model(name, **kwargs)


def count(network):
    return sum(parameter.numel() for parameter in network.parameters())


def conv(inputs, outputs, kernel=3):
    """A convolution without bias, and its BatchNorm's scale and shift."""
    return inputs * outputs * kernel**2 + 2 * outputs


def resnet20(width, in_chans, classes, shortcut):
    a, b, c = 16 * width, 32 * width, 64 * width
    body = conv(in_chans, a) + 6 * conv(a, a)
    body += conv(a, b) + 5 * conv(b, b) + conv(b, c) + 5 * conv(c, c)
    if shortcut == "conv":
        body += conv(a, b, 1) + conv(b, c, 1)
    return body + (c + 1) * classes


@pytest.mark.parametrize("name", NAMES)
def test_names_are_timms(name):
    assert timm.is_model(name)
    network = timm.create_model(name)
    assert network.default_cfg["input_size"] == (3, 32, 32)
    assert network.default_cfg["num_classes"] == network.num_classes == 10
    modules = dict(network.named_modules())
    assert modules[network.default_cfg["classifier"]] is network.get_classifier()
    if network.default_cfg["first_conv"] is not None:
        assert modules[network.default_cfg["first_conv"]].in_channels == 3


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("size", "in_chans"), [(8, 1), (28, 3), (32, 3)])
def test_shapes(name, size, in_chans):
    network = build(name, size, num_classes=7, in_chans=in_chans).eval()
    images = torch.randn(2, in_chans, size, size)
    features = network.forward_features(images)
    pooled = network.forward_head(features, pre_logits=True)
    assert features.shape[1] == network.num_features
    assert pooled.shape == (2, network.num_features)
    logits = network(images)
    assert logits.shape == (2, 7)
    assert torch.equal(network.forward_head(features), logits)
    torch.testing.assert_close(network.get_classifier()(pooled), logits)


def test_resnet20_parameters_by_hand():
    assert count(timm.create_model("resnet20_cifar")) == 272_474
    assert count(timm.create_model("resnet20_cifar", shortcut="pad")) == 269_722
    assert resnet20(1, 3, 10, "conv") == 272_474
    wide = timm.create_model("resnet20_cifar", width=4, num_classes=100, in_chans=1)
    assert count(wide) == resnet20(4, 1, 100, "conv")
    assert wide.num_features == 256


def test_vgg11_parameters_by_hand():
    channels = [3, 64, 128, 256, 256, 512, 512, 512, 512]
    pairs = list(pairwise(channels))
    plain = sum(9 * a * b + b for a, b in pairs) + 513 * 10
    assert count(timm.create_model("vgg11_cifar")) == plain
    normed = sum(conv(a, b) for a, b in pairs) + 513 * 10
    assert count(timm.create_model("vgg11_bn_cifar")) == normed
    narrow = timm.create_model("vgg11_bn_cifar", width=2)
    assert [m.out_channels for m in narrow.modules() if isinstance(m, nn.Conv2d)] == [
        2 * channel for channel in channels[1:]
    ]
    names = [type(module).__name__ for module in timm.create_model("vgg11_cifar").features]
    assert names.count("MaxPool2d") == 5
    assert "BatchNorm2d" not in names


def test_linear_classifier_is_one_matrix():
    network = timm.create_model("linear_classifier", img_size=(4, 6), in_chans=2, num_classes=3)
    assert count(network) == 2 * 4 * 6 * 3 + 3
    images = torch.randn(5, 2, 4, 6)
    weight, bias = network.head.weight, network.head.bias
    direct = torch.einsum("nchw,kchw->nk", images, weight.view(3, 2, 4, 6)) + bias
    torch.testing.assert_close(network(images), direct)


def test_pad_shortcut_against_a_loop():
    images = torch.randn(2, 3, 6, 8)
    expected = torch.zeros(2, 8, 3, 4)
    for channel in range(3):
        for row in range(3):
            for column in range(4):
                expected[:, channel, row, column] = images[:, channel, 2 * row, 2 * column]
    assert torch.equal(PadShortcut(channels=5, stride=2)(images), expected)


@pytest.mark.parametrize("shortcut", ["conv", "pad"])
def test_block_is_the_papers(shortcut):
    network = timm.create_model("resnet20_cifar", shortcut=shortcut).double().eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
    block = network.layer2[0]
    images = torch.randn(2, 16, 8, 8, dtype=torch.float64)
    residual = F.conv2d(images, block.conv1.weight, stride=2, padding=1)
    residual = F.conv2d(block.bn1(residual).clamp(min=0), block.conv2.weight, padding=1)
    if shortcut == "conv":
        straight = block.shortcut[1](F.conv2d(images, block.shortcut[0].weight, stride=2))
    else:
        straight = torch.cat([images[..., ::2, ::2], torch.zeros_like(images[..., ::2, ::2])], 1)
    torch.testing.assert_close(block(images), (block.bn2(residual) + straight).clamp(min=0))
    assert isinstance(network.layer2[1].shortcut, nn.Identity)


@pytest.mark.parametrize("name", NAMES)
def test_reset_classifier(name):
    network = build(name, 8, in_chans=1)
    images = torch.randn(2, 1, 8, 8)
    network.reset_classifier(5)
    assert network.num_classes == 5
    assert network(images).shape == (2, 5)
    network.reset_classifier(0)
    assert network(images).shape == (2, network.num_features)
    assert build(name, 8, in_chans=1, num_classes=0)(images).shape == (2, network.num_features)


@pytest.mark.parametrize("name", ["resnet20_cifar", "vgg11_bn_cifar"])
def test_other_pooling(name):
    network = timm.create_model(name, global_pool="max").eval()
    images = torch.randn(2, 3, 64, 64)
    features = network.forward_features(images)
    pooled = network.forward_head(features, pre_logits=True)
    assert torch.equal(pooled, features.amax((2, 3)))
    network.reset_classifier(4, global_pool="avg")
    torch.testing.assert_close(network(images), network.head.fc(features.mean((2, 3))))


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_every_parameter(name):
    torch.manual_seed(0)
    network = build(name, 28, in_chans=1)
    F.cross_entropy(network(torch.randn(8, 1, 28, 28)), torch.arange(8)).backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.abs().max() > 0, key


@pytest.mark.parametrize("name", NAMES)
def test_torch_export_gives_the_same_function(name):
    network = build(name, 8, in_chans=1).eval()
    images = torch.randn(2, 1, 8, 8)
    exported = torch.export.export(network, (images,)).module()
    torch.testing.assert_close(exported(images), network(images))


def test_kaiming_keeps_the_scale_of_activations():
    # He's point: the second moment is the same after each convolution with ReLU.
    torch.manual_seed(0)
    network = timm.create_model("vgg11_cifar")
    x = torch.randn(16, 3, 32, 32)
    variances = []
    with torch.no_grad():
        for layer in network.features:
            if isinstance(layer, nn.MaxPool2d):
                x = torch.randn(16, x.shape[1], 16, 16).clamp(min=0)
                continue
            x = layer(x)
            if isinstance(layer, nn.Conv2d):
                variances.append(x[..., 2:-2, 2:-2].square().mean().item())
                assert not layer.bias.any()
    # The input's mean square is 1 for the first layer and 1/2 behind a ReLU.
    assert variances[0] == pytest.approx(2, rel=0.3)
    assert variances[1:] == pytest.approx([1] * 7, rel=0.8)
    head = network.head.fc
    assert head.weight.std().item() == pytest.approx(512**-0.5, rel=0.1)


def test_drop_rate_drops_before_the_classifier():
    for name in NAMES:
        network = build(name, 8, in_chans=1, drop_rate=0.9)
        pooled = network.train().forward_head(
            network.forward_features(torch.ones(4, 1, 8, 8)).abs() + 1, pre_logits=True
        )
        assert (pooled == 0).float().mean() > 0.5, name


@pytest.mark.parametrize(("name", "maps"), [("resnet20_cifar", 3), ("vgg11_bn_cifar", 5)])
def test_features_only(name, maps):
    network = timm.create_model(name, features_only=True)
    outputs = network(torch.randn(1, 3, 32, 32))
    channels, reductions = network.feature_info.channels(), network.feature_info.reduction()
    assert len(outputs) == maps
    for output, channel, reduction in zip(outputs, channels, reductions, strict=True):
        assert output.shape == (1, channel, 32 // reduction, 32 // reduction)


def test_bad_arguments_are_refused():
    with pytest.raises(ConfigError, match="shortcut 'none'"):
        timm.create_model("resnet20_cifar", shortcut="none")
    for name in ("resnet20_cifar", "vgg11_cifar"):
        with pytest.raises(ConfigError, match="width 0"):
            timm.create_model(name, width=0)
