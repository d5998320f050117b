import pytest
import torch
from strangers import Stranger, randomise

from lightning_merge.aggregate import average
from lightning_merge.aggregate.heads import share_head
from lightning_merge.errors import ArchitectureMismatchError, ConfigError


def networks():
    return [
        randomise(Stranger(classes=classes), seed).state_dict()
        for seed, classes in enumerate([4, 9, 2])
    ]


def test_bodies_are_averaged_and_the_first_head_is_kept():
    states = networks()
    shared, kept = share_head(states, ["a", "b", "c"])
    assert kept == ["net.8.weight", "net.8.bias"]
    soup = average(shared)
    for name, value in soup.items():
        if name in kept:
            assert torch.equal(value, states[0][name])
        elif value.is_floating_point():
            torch.testing.assert_close(value, sum(state[name] for state in states) / 3)
    assert states[1]["net.8.weight"].shape == (9, 12)


def test_an_expression_keeps_what_it_finds():
    states = [randomise(Stranger(), seed).state_dict() for seed in range(2)]
    shared, kept = share_head(states, ["a", "b"], r"^net\.(4|8)\.")
    assert kept == [name for name in states[0] if name.startswith(("net.4.", "net.8."))]
    assert all(torch.equal(shared[1][name], states[0][name]) for name in kept)
    assert torch.equal(shared[1]["net.0.weight"], states[1]["net.0.weight"])


def test_what_only_another_head_has_goes_with_it():
    a, b = (randomise(Stranger(), seed).state_dict() for seed in range(2))
    b["net.8.extra"] = torch.ones(3)
    shared, _ = share_head([a, b], ["a", "b"], r"net\.8")
    assert shared[1].keys() == a.keys()


def test_what_is_refused():
    a, b, _ = networks()
    with pytest.raises(ConfigError, match="none does"):
        share_head([a, a], ["a", "b"])
    with pytest.raises(ConfigError, match="found in no tensor's name"):
        share_head([a, b], ["a", "b"], "classifier")
    with pytest.raises(ConfigError, match="no regular expression"):
        share_head([a, b], ["a", "b"], "net.(8")
    wider = randomise(Stranger(channels=7), 0).state_dict()
    with pytest.raises(ArchitectureMismatchError, match=r"a and w .*'net\.0\.weight'.*'net\.1\."):
        share_head([a, wider], ["a", "w"])
