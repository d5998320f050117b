"""InMerge against its rule, kernel by kernel."""

import pytest
import torch
from lightning.pytorch import LightningModule
from strangers import quiet_trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_merge.callbacks import InModelMerging
from lightning_merge.errors import ConfigError


class Convolutional(LightningModule):
    """Three convolutions, whose weights are kept as each step's forward pass sees them."""

    def __init__(self, lr=0.0):
        super().__init__()
        torch.manual_seed(5)
        layers = [nn.Conv2d(2, 5, 3), nn.Conv2d(5, 6, 1), nn.Conv2d(6, 40, 1)]
        self.layers, self.lr, self.seen = nn.Sequential(*layers), lr, []

    def training_step(self, batch, batch_idx):
        self.seen.append([layer.weight.detach().clone() for layer in self.layers])
        return self.layers(batch[0]).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)


def fit(callbacks, lr=0.0, module=None, **options):
    module = module or Convolutional(lr)
    images = torch.randn(8, 2, 5, 5, generator=torch.Generator().manual_seed(1))
    data = DataLoader(TensorDataset(images), batch_size=2)
    quiet_trainer(max_epochs=1, callbacks=callbacks, **options).fit(module, data)
    return module


def partners_of(old, new, share, threshold):
    """For each kernel the partners that the rule allows for what became of it."""
    old, new = old.flatten(1).double(), new.flatten(1).double()
    units = old / old.norm(dim=1, keepdim=True)
    allowed = []
    for i in range(len(old)):
        fits = {
            j
            for j in range(len(old))
            if j != i
            and units[i] @ units[j] > threshold
            and torch.allclose(new[i], share * old[i] + (1 - share) * old[j], atol=1e-6)
        }
        allowed.append(fits if not torch.allclose(new[i], old[i], atol=1e-7) else {None})
    return allowed


def test_kernels_are_mixed_with_partners_that_are_alike_from_the_old_weights():
    callback = InModelMerging(1.0, 0.1, 0.7, skip=1)
    first, second, *_ = fit([callback]).seen
    start = Convolutional().layers
    assert torch.equal(first[0], start[0].weight)
    mixed = 0
    for index in (1, 2):
        for old, new in ((start[index].weight, first[index]), (first[index], second[index])):
            allowed = partners_of(old.detach(), new, 0.7, 0.1)
            assert all(allowed)
            mixed += sum(one != {None} for one in allowed)
    assert mixed > 10


def test_as_many_draw_as_the_probability_says_and_partners_differ():
    callback = InModelMerging(0.3, -1.0, 0.8, skip=2)
    fit([callback])
    # 4 steps of 40 kernels, each of which is merged if it draws.
    assert 0.2 < callback.merged / 160 < 0.4
    again = InModelMerging(0.3, -1.0, 0.8, skip=2, seed=1)
    fit([again])
    assert again.merged != callback.merged


def test_steps_of_several_batches_are_merged_once():
    callback = InModelMerging(1.0, -1.0, skip=2)
    fit([callback], accumulate_grad_batches=2)
    assert callback.merged == 2 * 40


def test_a_run_without_merging_is_another_run_bit_for_bit():
    torch.manual_seed(3)
    plain = fit([], lr=0.1).state_dict()
    drawn = torch.rand(3)
    torch.manual_seed(3)
    unused = fit([InModelMerging(0.0, skip=0)], lr=0.1).state_dict()
    assert all(torch.equal(unused[name], value) for name, value in plain.items())
    assert torch.equal(torch.rand(3), drawn)


def test_draws_go_on_from_a_state():
    callback, other = InModelMerging(0.5, -1.0, skip=1), InModelMerging(0.5, -1.0, skip=1)
    fit([callback])
    other.load_state_dict(callback.state_dict())
    assert other.merged == callback.merged
    seen = [fit([one]).seen[-1][2] for one in (callback, other)]
    assert torch.equal(*seen)


def test_layers_that_share_a_weight_merge_it_once():
    class Shared(Convolutional):
        def __init__(self):
            super().__init__()
            self.layers.insert(1, nn.Conv2d(5, 5, 1))
            self.layers.insert(2, nn.Conv2d(5, 5, 1))
            self.layers[2].weight = self.layers[1].weight

    callback = InModelMerging(1.0, -1.0, skip=1, layers="[12]$")
    fit([callback], module=Shared())
    assert callback.merged == 4 * 5


def test_frozen_layers_stay():
    class Frozen(Convolutional):
        def __init__(self, lr=0.0):
            super().__init__(lr)
            self.layers[1].requires_grad_(False)

    module = Frozen(0.1)
    before = module.layers[1].weight.clone()
    callback = InModelMerging(1.0, -1.0, skip=0)
    fit([callback], module=module)
    assert torch.equal(module.layers[1].weight, before)
    assert callback.merged == 4 * (5 + 40)


def test_what_leaves_no_layer_is_refused():
    with pytest.raises(ConfigError, match="of 3 convolutions none is left behind the first 10"):
        fit([InModelMerging()])
    with pytest.raises(ConfigError, match="'conv2' in its name"):
        fit([InModelMerging(skip=0, layers="conv2")])
    with pytest.raises(ConfigError, match="out of range"):
        InModelMerging(probability=2)
    with pytest.raises(ConfigError, match=r"layers: .* is no regular expression"):
        InModelMerging(layers="(")
