"""Learned matching under a Trainer."""

import copy

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import EMAWeightAveraging
from strangers import quiet_trainer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader

from lightning_merge.align import LearnedMatching, PermutationSpec
from lightning_merge.errors import CheckpointError, ConfigError
from lightning_merge.modules import LearnedMatchingModule


class Narrow(LightningModule):
    """A pre-norm block of width 8."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.norm, self.last = nn.Linear(5, 8), nn.LayerNorm(8), nn.LayerNorm(8)
        self.one, self.two, self.head = nn.Linear(8, 12), nn.Linear(12, 8), nn.Linear(8, 3)
        self.example_input_array = torch.zeros(2, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.into(x)
        return self.head(self.last(x + self.two(F.relu(self.one(self.norm(x))))))

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self(x), y)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters())


class Recomputed(Narrow):
    """The same, whose block is computed again in the backward pass."""

    def forward(self, x: Tensor) -> Tensor:
        def block(x: Tensor) -> Tensor:
            return x + self.two(F.relu(self.one(self.norm(x))))

        x = checkpoint(block, self.into(x), use_reentrant=False)
        return self.head(self.last(x))


def ingredients() -> list[dict[str, Tensor]]:
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        module = Narrow()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(0.3 * torch.randn(parameter.shape))
        found.append(module.state_dict())
    return found


def batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    return [
        (torch.randn(16, 5, generator=generator), torch.randint(3, (16,), generator=generator))
        for _ in range(4)
    ]


def loader() -> DataLoader:
    return DataLoader(batches(), batch_size=None)


def trained(epochs: int, path=None, **settings) -> LearnedMatchingModule:
    module = LearnedMatchingModule(Narrow(), ingredients(), **settings)
    trainer = quiet_trainer(max_epochs=epochs)
    trainer.fit(module, loader(), loader(), ckpt_path=path)
    return module


@pytest.mark.parametrize("settings", [{}, {"labels": True}, {"share": None}])
def test_training_lowers_the_loss_and_keeps_the_function(settings) -> None:
    module = LearnedMatchingModule(Narrow(), ingredients(), **settings)
    before = quiet_trainer().validate(module, loader(), verbose=False)[0]["val_loss"]
    trainer = quiet_trainer(max_epochs=8)
    trainer.fit(module, loader(), loader())
    assert float(trainer.callback_metrics["val_loss"]) < before
    b = Narrow()
    b.load_state_dict(ingredients()[1])
    same = Narrow()
    same.load_state_dict(module.aligned())
    x = batches()[0][0]
    torch.testing.assert_close(same(x), b(x), rtol=1e-4, atol=1e-4)


def test_a_checkpoint_is_the_merge_in_the_users_class_and_resumes(tmp_path) -> None:
    straight = trained(4)
    module = LearnedMatchingModule(Narrow(), ingredients())
    trainer = quiet_trainer(max_epochs=2)
    trainer.fit(module, loader(), loader())
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    own = Narrow()
    own.load_state_dict(torch.load(tmp_path / "half.ckpt", weights_only=True)["state_dict"])
    x = batches()[0][0]
    torch.testing.assert_close(own(x), module.eval()(x), rtol=1e-4, atol=1e-4)
    resumed = trained(4, tmp_path / "half.ckpt")
    for one, other in zip(straight.maps.values, resumed.maps.values, strict=True):
        torch.testing.assert_close(one, other)


def test_a_module_that_optimizes_manually_lends_its_network() -> None:
    class ByHand(Narrow):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            raise AssertionError("the maps have a step of their own")

    learned = []
    for kind in (Narrow, ByHand):
        torch.manual_seed(0)
        module = LearnedMatchingModule(kind(), ingredients())
        quiet_trainer(max_epochs=1).fit(module, loader())
        learned.append(module.merged())
    assert all(torch.equal(learned[1][name], value) for name, value in learned[0].items())


def test_what_does_not_fit_is_refused(tmp_path) -> None:
    a, b = ingredients()
    with pytest.raises(ConfigError, match="two networks, not 3"):
        LearnedMatchingModule(Narrow(), [a, b, a])
    with pytest.raises(ConfigError, match="between 0 and 1"):
        LearnedMatchingModule(Narrow(), [a, b], share=1.0)
    bare = Narrow()
    bare.example_input_array = None
    with pytest.raises(ConfigError, match="give example_inputs"):
        LearnedMatchingModule(bare, [a, b])
    module = LearnedMatchingModule(Narrow(), [a, b])
    trainer = quiet_trainer(max_epochs=1)
    trainer.fit(module, loader(), loader())
    trainer.save_checkpoint(tmp_path / "other.ckpt")
    other = LearnedMatchingModule(Narrow(), [b, a])
    with pytest.raises(CheckpointError, match="no maps of these ingredients"):
        quiet_trainer(max_epochs=2).fit(other, loader(), ckpt_path=tmp_path / "other.ckpt")


def test_averages_of_maps_are_refused() -> None:
    trainer = quiet_trainer(max_epochs=1, callbacks=[EMAWeightAveraging()])
    with pytest.raises(ConfigError, match="LearnedMatchingModule: EMAWeightAveraging averages"):
        trainer.fit(LearnedMatchingModule(Narrow(), ingredients()), loader())


def test_a_last_batch_of_one_example_does_not_end_validation() -> None:
    class Normed(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
            self.example_input_array = torch.zeros(2, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

    torch.manual_seed(0)
    module = LearnedMatchingModule(Normed(), [Normed().state_dict() for _ in range(2)])
    images = torch.randn(17, 5)
    losses = [
        quiet_trainer().validate(module, DataLoader(images[:count], 8), verbose=False)
        for count in (17, 16)
    ]
    assert losses[0] == losses[1]


def matched(kind: type[Narrow]) -> dict[str, Tensor]:
    models = [kind(), kind()]
    for model, state in zip(models, ingredients(), strict=True):
        model.load_state_dict(state)
    spec = PermutationSpec.from_model(Narrow(), batches()[0][0], symmetries="all")
    matching = LearnedMatching("weights", 5, 0.05)
    maps = matching.match(spec, *models, batches())
    return spec.transform(spec.canonical(models[1].state_dict()), maps)


def test_a_module_that_was_fitted_can_be_copied() -> None:
    module = LearnedMatchingModule(Narrow(), ingredients())
    quiet_trainer(max_steps=2).fit(module, loader())
    copied = copy.deepcopy(module).aligned()
    for name, value in module.aligned().items():
        assert torch.equal(copied[name], value)


def fitted(kind: type[Narrow]) -> dict[str, Tensor]:
    module = LearnedMatchingModule(kind(), ingredients())
    quiet_trainer(max_epochs=2).fit(module, loader(), loader())
    return module.aligned()


@pytest.mark.parametrize("learn", [matched, fitted])
def test_parts_that_are_computed_again_learn_as_others(learn) -> None:
    expected = learn(Narrow)
    for name, value in learn(Recomputed).items():
        torch.testing.assert_close(value, expected[name])
