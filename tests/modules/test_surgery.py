"""Representation surgery: by hand, and under a Trainer."""

import copy

import pytest
import torch
from strangers import quiet_trainer
from tiny_tasks import Points, made_bodies, network
from torch import nn

from lightning_merge import SurgeryModule, average
from lightning_merge.errors import ConfigError

X = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def pair():
    """The mean body of three tasks under the head of `a`, and the network of `a`."""
    _, states = made_bodies()
    own = network("a")
    own.load_state_dict(states["a"])
    bodies = [{n: v for n, v in states[t].items() if not n.startswith("net.6")} for t in "abc"]
    merged = copy.deepcopy(own)
    merged.load_state_dict({**states["a"], **average(bodies)})
    return merged.eval(), own.eval()


def features(module, x):
    return module.net[:6](x)


def test_it_starts_as_the_merge_and_then_subtracts_a_bottleneck(pair):
    module = SurgeryModule(*pair, X, rank=4).eval()
    assert isinstance(module, type(pair[0]))
    torch.testing.assert_close(module(X), pair[0](X))
    surgery = module.net[6]
    with torch.no_grad():
        surgery.up.weight.normal_()
    h = features(pair[0], X)
    corrected = h - torch.relu(h @ surgery.down.weight.T) @ surgery.up.weight.T
    torch.testing.assert_close(module(X), pair[0].net[6](corrected))


def test_a_step_is_the_gradient_of_the_distance_of_features(pair):
    module = SurgeryModule(*pair, X, rank=4)
    with torch.no_grad():
        module.net[6].up.weight.normal_(generator=torch.Generator().manual_seed(1))
    down, up = (
        w.detach().clone().requires_grad_()
        for w in (module.net[6].down.weight, module.net[6].up.weight)
    )
    h = features(pair[0], X).detach()
    expected = (h - torch.relu(h @ down.T) @ up.T - features(pair[1], X).detach()).abs().mean()
    expected.backward()
    module.log = lambda *_, **__: None
    loss = module.training_step((X, None), 0)
    loss.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(module.net[6].down.weight.grad, down.grad)
    torch.testing.assert_close(module.net[6].up.weight.grad, up.grad)
    assert all(
        p.grad is None
        for n, p in module.named_parameters()
        if "net.6.d" not in n and "net.6.u" not in n
    )


def test_a_trainer_brings_features_closer_and_changes_nothing_else(pair):
    module = SurgeryModule(*pair, X, optimizer=lambda p: torch.optim.Adam(p, lr=0.01))
    before = copy.deepcopy(module.state_dict())
    quiet_trainer(max_epochs=8).fit(module, Points("a").train_dataloader())
    x = Points("a").val_dataloader().dataset.tensors[0]
    with torch.no_grad():
        wanted, h = features(pair[1], x), features(pair[0], x)
        module.eval()
        corrected = h - module.net[6].up(torch.relu(module.net[6].down(h)))
    assert (corrected - wanted).abs().mean() < 0.9 * (h - wanted).abs().mean()
    for name, value in module.state_dict().items():
        if not name.startswith(("net.6.down", "net.6.up")):
            assert torch.equal(value, before[name]), name
    (scores,) = quiet_trainer().test(module, Points("a", testable=True), verbose=False)
    assert 0 <= scores["test_acc"] <= 1


def test_what_does_not_fit_is_refused(pair):
    with pytest.raises(ConfigError, match="rank is 0"):
        SurgeryModule(*pair, X, rank=0)
    wide = copy.deepcopy(pair[1])
    wide.net[3], wide.net[4] = nn.Linear(12, 9), nn.BatchNorm1d(9)
    wide.net[6] = nn.Linear(9, 3)
    with pytest.raises(ConfigError, match="features of 12 and of 9"):
        SurgeryModule(pair[0], wide, X)
