"""More than two ingredients, and parts that are kept from one."""

from functools import partial

import pytest
import torch
from strangers import Regression, Stranger, Tied, image_batches, quiet_trainer, randomise
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_merge.aggregate import learned_soup
from lightning_merge.aggregate.flat import FlatLayout
from lightning_merge.aggregate.learned_soup import combine_flat_, merged_weights
from lightning_merge.align import ActivationMatching, MergeMany, PermutationSpec
from lightning_merge.errors import ArchitectureMismatchError, CheckpointError, ConfigError
from lightning_merge.modules import MergeModule
from lightning_merge.modules.merging.successive_pairs import merge_in_pairs, successive_pairs

HEAD = r"net\.8\..*"


def state(seed, **arguments):
    module = randomise(Stranger(**arguments), seed)
    return {name: value.clone() for name, value in module.state_dict().items()}


def quick(parameters):
    return torch.optim.Adam(parameters, lr=0.3)


@pytest.mark.parametrize("block", [1 << 18, 7])
@pytest.mark.parametrize("large", [1, 1 << 14])
def test_joint_weights_and_gradients_are_those_of_plain_autograd(monkeypatch, block, large):
    monkeypatch.setattr(learned_soup, "_CPU_BLOCK", block)
    monkeypatch.setattr(learned_soup, "_LARGE", large)
    shapes = {"w": torch.randn(6, 5).double(), "unused": torch.randn(3).double()}
    layout = FlatLayout(shapes)
    ingredients = [torch.randn(layout.size).double() for _ in range(4)]
    logits = torch.randn(4, layout.size, dtype=torch.float64, requires_grad=True)
    ours = merged_weights(logits, ingredients, torch.empty_like(ingredients[0]), layout)
    (grad,) = torch.autograd.grad(ours[0].sin().sum(), logits)
    theirs = layout.views((torch.softmax(logits, 0) * torch.stack(ingredients)).sum(0))
    (expected,) = torch.autograd.grad(theirs[0].sin().sum(), logits)
    assert all(torch.allclose(a, b, rtol=1e-12) for a, b in zip(ours, theirs, strict=True))
    assert torch.allclose(grad, expected, rtol=1e-10, atol=1e-12)
    assert grad.abs().max() > 0.01
    sure = torch.full((4, layout.size), -500.0).double()
    sure[2] = 0
    assert torch.equal(combine_flat_(torch.empty_like(ingredients[0]), sure, ingredients),
                       ingredients[2])  # fmt: skip


@pytest.mark.parametrize("granularity", ["model", "layer", "channel", "parameter"])
def test_three_are_merged_jointly(granularity):
    states = [state(1), state(2), state(3)]
    module = MergeModule(Stranger(), states, granularity=granularity)
    name = "net.3.weight"
    mean = sum(one[name] for one in states) / 3
    assert torch.allclose(module.get_parameter(name), mean, atol=1e-6)
    quiet_trainer(max_epochs=1).fit(module, image_batches())
    alphas, parts = module.alphas(), module.ingredients()
    for key, alpha in alphas.items():
        assert alpha.shape == (3, *states[0][key].shape)
        assert torch.allclose(alpha.sum(0), torch.ones(()), atol=1e-6)
        expected = sum(a * one[key] for a, one in zip(alpha, parts, strict=True))
        assert torch.allclose(module.state_dict()[key], expected, atol=1e-6)
    assert (alphas[name] - 1 / 3).abs().max() > 1e-3


def test_each_alpha_finds_the_one_of_three_that_is_right():
    states = [{"layer.weight": torch.randn(5, 8)} for _ in range(3)]
    right = torch.randint(0, 3, (5, 8))
    stacked = torch.stack([one["layer.weight"] for one in states])
    target = stacked.gather(0, right[None])[0]
    inputs = torch.randn(256, 8)
    data = DataLoader(TensorDataset(inputs, inputs @ target.T), batch_size=128)
    module = MergeModule(Regression(), states, optimizer=quick)
    quiet_trainer(max_epochs=60).fit(module, data)
    # The middle one of three can be had of the others as well.
    outer = (stacked.argmin(0) == right) | (stacked.argmax(0) == right)
    apart = (stacked - target).abs().sort(0).values[1] > 0.3
    assert (outer & apart).sum() > 12
    found = module.alphas()["layer.weight"].argmax(0)
    assert torch.equal(found[outer & apart], right[outer & apart])
    assert torch.allclose(module.state_dict()["layer.weight"], target, atol=0.15)


def test_the_initial_share_is_that_of_the_first():
    module = MergeModule(Stranger(), [state(1), state(2), state(3)], alpha=0.5)
    assert torch.allclose(module.alphas()["net.0.bias"][:, 0], torch.tensor([0.5, 0.25, 0.25]))


def test_all_the_others_are_aligned_and_come_back(tmp_path):
    a = state(1)
    spec = PermutationSpec.from_model(Stranger().eval(), torch.randn(2, 3, 8, 8))
    permuted = [
        spec.apply(a, spec.random(generator=torch.Generator().manual_seed(number)))
        for number in (3, 4)
    ]
    module = MergeModule(Stranger(), [a, *permuted], matching=ActivationMatching())
    trainer = quiet_trainer(max_epochs=1)
    trainer.fit(module, image_batches())
    for other in module.ingredients()[1:]:
        assert all(torch.equal(other[name], a[name]) for name in other)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    again = MergeModule(Stranger(), [a, *permuted], matching=ActivationMatching())
    quiet_trainer(max_epochs=1).fit(again, image_batches(), ckpt_path=tmp_path / "a.ckpt")
    assert torch.equal(again.alpha_logits, module.alpha_logits)
    assert all(torch.equal(again.ingredients()[2][name], a[name]) for name in other)


def test_a_head_is_kept_from_either():
    states = [state(1), state(2)]
    for option, index in (("keep_a", 0), ("keep_b", 1)):
        module = MergeModule(Stranger(), states, **{option: HEAD}, optimizer=quick)
        assert not any(name.startswith("net.8") for name in module.alphas())
        quiet_trainer(max_epochs=1).fit(module, image_batches())
        final = module.state_dict()
        assert torch.equal(final["net.8.weight"], states[index]["net.8.weight"])
        assert not torch.equal(final["net.0.weight"], states[index]["net.0.weight"])
        assert module.alpha_logits.numel() == sum(v.numel() for v in module.alphas().values())


def test_statistics_can_be_kept():
    states = [state(1), state(2)]
    module = MergeModule(Stranger(), states, keep_b=r"net\.1\.running_.*")
    final = module.state_dict()
    assert torch.equal(final["net.1.running_var"], states[1]["net.1.running_var"])
    mean = (states[0]["net.4.running_var"] + states[1]["net.4.running_var"]) / 2
    assert torch.allclose(final["net.4.running_var"], mean)


@pytest.mark.parametrize("kept", ["keep_a", "keep_b"])
def test_heads_of_other_shapes_may_be_kept_and_follow_the_alignment(kept):
    small, large = state(1), {**state(1), **{
        "net.8.weight": torch.randn(9, 12), "net.8.bias": torch.randn(9)}}  # fmt: skip
    spec = PermutationSpec.from_model(Stranger(classes=9).eval(), torch.randn(2, 3, 8, 8))
    moved = spec.apply(large, spec.random(generator=torch.Generator().manual_seed(3)))
    classes = 4 if kept == "keep_a" else 9
    states = [small, moved]
    module = MergeModule(
        Stranger(classes=classes), states, **{kept: HEAD}, matching=ActivationMatching()
    )
    quiet_trainer(max_epochs=1).fit(module, image_batches())
    final, head = module.state_dict(), small if kept == "keep_a" else large
    assert torch.equal(final["net.3.weight"], small["net.3.weight"])
    assert torch.equal(final["net.8.weight"], head["net.8.weight"])


def test_what_cannot_be_kept_is_refused():
    make = partial(MergeModule, Stranger(), [state(1), state(2)])
    with pytest.raises(ConfigError, match=r"keep_a 'header\\..\*' matches no parameter"):
        make(keep_a=r"header\..*")
    with pytest.raises(ConfigError, match=r"keep_b: .* is no regular expression"):
        make(keep_b="(")
    with pytest.raises(ConfigError, match=r"'net\.8\.weight' is matched by keep_a and by keep_b"):
        make(keep_a=HEAD, keep_b=r"net\.8\.weight")
    with pytest.raises(ConfigError, match="no parameter to merge"):
        make(keep_a=".*")
    with pytest.raises(ArchitectureMismatchError, match=r"net\.8\.weight"):
        MergeModule(Stranger(), [state(1), state(2, classes=5)])
    with pytest.raises(ArchitectureMismatchError, match=r"net\.8\.weight"):
        MergeModule(Stranger(), [state(1), state(2, classes=5)], keep_b=HEAD)


def test_a_tied_weight_is_kept_under_both_names():
    class Wider(Tied):
        def __init__(self):
            super().__init__()
            self.extra = nn.Parameter(torch.zeros(12))

    states = [randomise(Wider(), seed).state_dict() for seed in (1, 2)]
    module = MergeModule(Wider(), states, keep_b=r"decoder\.weight")
    assert list(module.alphas()) == ["extra"]
    assert torch.equal(module.encoder.weight, states[1]["encoder.weight"])


def test_pairs_are_merged_until_one_is_left():
    merged = []

    def pair(a, b):
        merged.append((a, b))
        return a + b

    everything = ["a", "b", "c", "d", "e"]
    last = successive_pairs(everything, pair, seed=3)
    assert sorted(last) == everything
    assert len(merged) == 4
    assert all(len(one) == 1 for both in merged[:2] for one in both)
    assert successive_pairs(everything, pair, seed=3) == last
    assert len({successive_pairs(everything, pair, seed=s) for s in range(20)}) > 5
    with pytest.raises(CheckpointError, match="at least two"):
        successive_pairs(["a"], pair)


def test_each_pair_is_aligned_anew(tmp_path):
    a = state(1)
    spec = PermutationSpec.from_model(Stranger().eval(), torch.randn(2, 3, 8, 8))
    permuted = [
        spec.apply(a, spec.random(generator=torch.Generator().manual_seed(number)))
        for number in (3, 4)
    ]
    torch.save({"state_dict": a}, tmp_path / "a.ckpt")
    final = merge_in_pairs(
        Stranger,
        [tmp_path / "a.ckpt", *permuted],
        lambda module: quiet_trainer(max_epochs=1).fit(module, image_batches(count=2)),
        matching=ActivationMatching(),
    )
    # One network in three orders: whatever the alphas, it is that network in one of them.
    images = torch.randn(4, 3, 8, 8)
    ours, theirs = Stranger().eval(), Stranger().eval()
    theirs.load_state_dict(a)
    ours.load_state_dict(final)
    for one in (ours, theirs):
        one.train()
    assert torch.allclose(ours(images), theirs(images), atol=1e-4)
    assert theirs(images).std() > 0.1


def test_a_joint_matching_aligns_all_at_once():
    a = state(1)
    spec = PermutationSpec.from_model(Stranger().eval(), torch.randn(2, 3, 8, 8))
    permuted = [spec.apply(a, spec.random(torch.Generator().manual_seed(k))) for k in (3, 4)]
    module = MergeModule(Stranger(), [a, *permuted], matching=MergeMany())
    quiet_trainer(max_epochs=1).fit(module, image_batches())
    for other in module.ingredients()[1:]:
        assert all(torch.equal(other[name], a[name]) for name in other)
