import copy

import pytest
import torch
from strangers import Stranger, Tied, image_batches, quiet_trainer, randomise
from torch import nn

from lightning_merge.errors import ConfigError
from lightning_merge.modules import EnsembleModule, FeatureEnsembleModule, ImageClassifier
from lightning_merge.modules.batched_networks import BatchedNetworks, faster_batched
from lightning_merge.modules.last_layer import last_layer
from lightning_merge.recalibrate import reset_batchnorm


def members(count=3):
    return [randomise(Stranger(), seed).eval() for seed in range(count)]


def test_the_output_is_the_mean_of_the_members():
    modules = members()
    images = torch.randn(5, 3, 8, 8)
    mean = torch.stack([module(images) for module in modules]).mean(0)
    ensemble = EnsembleModule([copy.deepcopy(module) for module in modules]).eval()
    assert torch.allclose(ensemble(images), mean)
    assert isinstance(ensemble, Stranger)


def test_it_is_tested_by_the_members_own_steps():
    modules = members()
    data = image_batches(seed=4)
    logits = [torch.stack([module(images) for module in modules]).mean(0) for images, _ in data]
    right = sum(
        int((out.argmax(1) == targets).sum())
        for out, (_, targets) in zip(logits, data, strict=True)
    )
    (metrics,) = quiet_trainer().test(EnsembleModule(modules), data, verbose=False)
    assert metrics["test_acc"] == pytest.approx(right / len(data.dataset))


def test_it_costs_the_sum_of_its_members():
    count = sum(parameter.numel() for parameter in Stranger().parameters())
    ensemble = EnsembleModule(members(4))
    assert sum(parameter.numel() for parameter in ensemble.parameters()) == 4 * count


def test_what_cannot_be_an_ensemble_is_refused():
    with pytest.raises(ConfigError, match="at least one"):
        EnsembleModule([])
    with pytest.raises(ConfigError, match="Stranger, Tied"):
        EnsembleModule([Stranger(), Tied()])


class Roundabout(Stranger):
    def test_step(self, batch, batch_idx):
        self.metrics.update(self.net(batch[0]), batch[1])


def test_steps_that_go_round_the_ensemble_are_refused():
    ensemble = EnsembleModule([Roundabout(), Roundabout()])
    with pytest.raises(ConfigError, match=r"call self\(x\)"):
        quiet_trainer().test(ensemble, image_batches(), verbose=False)


# --- features


def body(module, images):
    return module.net[:-1](images)


def features_by_hand(modules, images):
    return torch.stack([body(module, images) for module in modules]).mean(0)


@pytest.mark.parametrize("batched", [False, True])
def test_features_through_the_merged_last_layer(batched):
    modules = members()
    images = torch.randn(5, 3, 8, 8)
    weight = torch.stack([module.net[-1].weight for module in modules]).mean(0)
    bias = torch.stack([module.net[-1].bias for module in modules]).mean(0)
    expected = features_by_hand(modules, images) @ weight.T + bias
    logits = torch.stack([module(images) for module in modules]).mean(0)
    assert not torch.allclose(expected, logits, atol=1e-2)
    ensemble = FeatureEnsembleModule(modules, images, batched=batched).eval()
    torch.testing.assert_close(ensemble(images), expected)


def test_features_through_the_first_last_layer_even_where_heads_differ():
    modules = [*members(2), randomise(Stranger(classes=9), 5).eval()]
    images = torch.randn(5, 3, 8, 8)
    expected = modules[0].net[-1](features_by_hand(modules, images))
    with pytest.raises(ConfigError, match=r"\(4, 12\), \(9, 12\).*head='first'"):
        FeatureEnsembleModule(copy.deepcopy(modules), images)
    ensemble = FeatureEnsembleModule(modules, images, head="first").eval()
    torch.testing.assert_close(ensemble(images), expected)


def test_a_feature_ensemble_is_tested_by_the_members_own_steps():
    modules = members()
    data = image_batches(seed=4)
    head = copy.deepcopy(modules[0].net[-1])
    right = sum(
        int((head(features_by_hand(modules, images)).argmax(1) == targets).sum())
        for images, targets in data
    )
    ensemble = FeatureEnsembleModule(modules, torch.randn(2, 3, 8, 8), head="first")
    (metrics,) = quiet_trainer().test(ensemble, data, verbose=False)
    assert metrics["test_acc"] == pytest.approx(right / len(data.dataset))


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("resnet20_cifar", "network.head.fc"),
        ("vit_tiny_patch16_224", "network.head"),
        ("linear_classifier", "network.head"),
        slow("resnet18", "network.fc"),
        slow("vgg11_cifar", "network.head.fc"),
        slow("vgg11_bn", "network.head.fc"),
        slow("densenet121", "network.classifier"),
    ],
)
def test_the_features_of_timm_networks_are_what_timm_says(name, layer):
    small = {"img_size": 32, "depth": 2} if "vit" in name else {}
    modules = [
        randomise(ImageClassifier(name, model_kwargs=small), seed).double().eval()
        for seed in range(2)
    ]
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    networks = [copy.deepcopy(module.network) for module in modules]
    with torch.no_grad():
        features = torch.stack(
            [net.forward_head(net.forward_features(images), pre_logits=True) for net in networks]
        ).mean(0)
        expected = networks[0].get_classifier()(features)
        assert last_layer(modules[0], images) == layer
        ensemble = FeatureEnsembleModule(modules, images, head="first").eval()
        torch.testing.assert_close(ensemble(images), expected)


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(3, 4), nn.Linear(3, 4)

    def forward(self, x):
        return (self.one(x) + self.two(x)) / 2


@pytest.mark.parametrize(
    "network",
    [
        nn.Sequential(nn.Linear(3, 4), nn.Softmax(dim=1)),
        nn.Sequential(nn.Linear(3, 4), nn.ReLU()),
        nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True)),
        nn.Sequential(nn.Flatten()),
        TwoHeads(),
    ],
)
def test_what_does_not_end_in_one_linear_layer_is_refused(network):
    names = [name for name, _ in network.named_modules()]
    with pytest.raises(ConfigError, match="ensemble of logits"):
        last_layer(network, torch.randn(20, 3))
    assert [name for name, _ in network.named_modules()] == names


def test_a_head_of_zeros_is_not_taken_for_what_comes_after_it():
    network = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    nn.init.zeros_(network[0].weight)
    nn.init.zeros_(network[0].bias)
    with pytest.raises(ConfigError, match="ensemble of logits"):
        last_layer(network, torch.randn(20, 3))


def test_looking_for_the_last_layer_changes_nothing():
    module = randomise(Stranger(), 0).train()
    before = copy.deepcopy(module.state_dict())
    assert last_layer(module, torch.randn(4, 3, 8, 8)) == "net.8"
    assert module.training
    torch.testing.assert_close(dict(module.state_dict()), dict(before), rtol=0, atol=0)
    assert not any(layer._forward_hooks for layer in module.modules())


# --- as one computation


@pytest.mark.parametrize("name", ["resnet20_cifar", slow("vgg11_cifar"), "linear_classifier"])
def test_one_computation_gives_what_the_loop_gives(name):
    def build():
        return [randomise(ImageClassifier(name), seed).double().eval() for seed in range(3)]

    images = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    with torch.inference_mode():
        in_turn = EnsembleModule(build(), batched=False).eval()(images)
        ensemble = EnsembleModule(build(), batched=True).eval()
        at_once = ensemble(images)
    assert ensemble._stacked is not None
    torch.testing.assert_close(at_once, in_turn, rtol=1e-9, atol=0)


def test_networks_with_convolutions_or_few_weights_are_evaluated_in_turn_unless_batched_is_set():
    assert not faster_batched(Stranger())
    assert faster_batched(nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10)))
    assert not faster_batched(nn.Sequential(nn.Flatten(), nn.Linear(8 * 8, 10)))
    ensemble = EnsembleModule(members()).eval()
    ensemble(torch.randn(2, 3, 8, 8))
    assert ensemble._stacked is None


def test_stacked_networks_hold_nothing_twice_and_see_what_changes():
    networks = [randomise(Stranger(), seed).eval() for seed in range(3)]
    together = BatchedNetworks(networks)
    images = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        before = together(images)
        networks[1].net[0].weight.mul_(2)
        networks[2].net[1].running_mean.add_(1)
        after = together(images)
        for index, network in enumerate(networks):
            torch.testing.assert_close(after[index], network(images))
    torch.testing.assert_close(after[0], before[0], rtol=0, atol=0)
    assert not torch.allclose(after[1], before[1])
    weight = networks[1].net[0].weight
    assert weight.untyped_storage().data_ptr() == (
        together.state["net.0.weight"].untyped_storage().data_ptr()
    )


def test_batchnorm_is_reset_and_types_changed_between_two_questions():
    images = torch.randn(64, 3, 8, 8)
    plain, batched = (EnsembleModule(members(), batched=batched) for batched in (False, True))
    for ensemble in (plain, batched):
        ensemble.eval()(images)
        assert reset_batchnorm(ensemble, [images]) == 6
    with torch.no_grad():
        torch.testing.assert_close(batched.eval()(images), plain.eval()(images))
        assert batched._stacked is not None
        expected = plain.double()(images.double())
        torch.testing.assert_close(batched.double()(images.double()), expected)
    assert batched.state_dict().keys() == plain.state_dict().keys()


class LooksAtValues(Stranger):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 128))

    def forward(self, x):
        logits = self.net(x)
        return logits if logits.sum() > 0 else -logits


def test_what_cannot_be_batched_is_evaluated_in_turn():
    modules = [randomise(LooksAtValues(), seed).eval() for seed in range(3)]
    images = torch.randn(2, 3, 8, 8)
    expected = torch.stack([module(images) for module in modules]).mean(0)
    assert faster_batched(modules[0])
    torch.testing.assert_close(EnsembleModule(copy.deepcopy(modules)).eval()(images), expected)
    with pytest.raises(RuntimeError):
        EnsembleModule(modules, batched=True).eval()(images)


def test_prediction_by_one_computation():
    modules = members()
    data = image_batches(count=2)
    expected = [torch.stack([module(images) for module in modules]).mean(0) for images, _ in data]

    class Predicts(Stranger):
        def predict_step(self, batch, batch_idx):
            return self(batch[0])

    own = [Predicts() for _ in modules]
    for mine, theirs in zip(own, modules, strict=True):
        mine.load_state_dict(theirs.state_dict())
    found = quiet_trainer().predict(EnsembleModule(own, batched=True), data)
    torch.testing.assert_close(torch.cat(found), torch.cat(expected).detach())
