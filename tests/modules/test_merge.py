import copy
import pickle
from functools import partial

import pytest
import torch
from lightning.pytorch import Callback
from strangers import (
    ByHand,
    Regression,
    Stranger,
    Tied,
    image_batches,
    quiet_trainer,
    randomise,
)
from torch.utils.data import DataLoader, TensorDataset

from lightning_merge.align import ActivationMatching, PermutationSpec
from lightning_merge.errors import ArchitectureMismatchError, CheckpointError, ConfigError
from lightning_merge.modules import MergeModule


def state(seed, **arguments):
    module = randomise(Stranger(**arguments), seed)
    return {name: value.clone() for name, value in module.state_dict().items()}


def merge(**arguments):
    return MergeModule(Stranger(), [state(1), state(2)], **arguments)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_only_the_alphas_are_trainable_and_start_at_one_half():
    module = merge()
    trainable = [name for name, value in module.named_parameters() if value.requires_grad]
    assert trainable == ["alpha_logits"]
    assert all(
        torch.equal(alpha, torch.full_like(alpha, 0.5)) for alpha in module.alphas().values()
    )
    a, b = state(1), state(2)
    for name, value in module.ingredients()[0].items():
        merged = module.get_parameter(name)
        assert torch.allclose(merged, (a[name] + b[name]) / 2, atol=1e-7)
        assert torch.equal(value, a[name])
        assert module.alphas()[name].shape == a[name].shape


def test_it_is_the_users_module():
    module = merge()
    assert isinstance(module, Stranger)
    assert isinstance(module, MergeModule)
    assert module.hparams == {"channels": 6, "classes": 4, "lr": 0.1}
    assert module.state_dict().keys() == Stranger().state_dict().keys()


def test_statistics_are_averaged_and_counters_are_the_firsts():
    module, a, b = merge(), state(1), state(2)
    name = "net.1.running_var"
    assert torch.allclose(module.state_dict()[name], (a[name] + b[name]) / 2)
    counter = "net.1.num_batches_tracked"
    assert a[counter] != b[counter]
    assert module.state_dict()[counter] == a[counter]


def test_the_gradient_is_that_of_the_whole_formula():
    module = merge()
    with torch.no_grad():
        module.alpha_logits.normal_()
    batch = next(iter(image_batches()))
    module.train()
    module.log = lambda *args, **kwargs: None
    module.training_step(batch, 0).backward()

    plain = Stranger().train()
    plain.log = lambda *args, **kwargs: None
    a, b = state(1), state(2)
    logits = {name: torch.logit(alpha).requires_grad_() for name, alpha in module.alphas().items()}
    weights = {
        name: torch.sigmoid(logit) * a[name] + (1 - torch.sigmoid(logit)) * b[name]
        for name, logit in logits.items()
    }
    logits_out = torch.func.functional_call(plain, weights, (batch[0],))
    torch.nn.functional.cross_entropy(logits_out, batch[1]).backward()
    ours = module._learned.flat.layout.named_views(module.alpha_logits.grad)
    for name, logit in logits.items():
        assert torch.allclose(ours[name], logit.grad, rtol=1e-3, atol=1e-6)
    assert module.alpha_logits.grad.abs().max() > 1e-3


@pytest.mark.parametrize("granularity", ["model", "layer", "channel", "parameter"])
def test_training_moves_the_alphas_alone(granularity):
    module = merge(granularity=granularity)
    quiet_trainer(max_epochs=2).fit(module, image_batches())
    a, b = module.ingredients()
    assert same(a, {name: state(1)[name] for name in a})
    assert same(b, {name: state(2)[name] for name in b})
    alphas, merged = module.alphas(), module.state_dict()
    for name, alpha in alphas.items():
        assert torch.allclose(merged[name], alpha * a[name] + (1 - alpha) * b[name], atol=1e-6)
    distinct = {name: len(alpha.unique()) for name, alpha in alphas.items()}
    if granularity == "model":
        assert len(torch.cat([alpha.flatten() for alpha in alphas.values()]).unique()) == 1
    elif granularity == "layer":
        assert set(distinct.values()) == {1}
        assert len({float(alpha.flatten()[0]) for alpha in alphas.values()}) > 1
    elif granularity == "channel":
        weight = alphas["net.3.weight"]
        assert all(len(row.unique()) == 1 for row in weight)
        assert 1 < len(weight.unique()) <= 12
    else:
        assert distinct["net.3.weight"] > 12
    assert not torch.equal(module.alpha_logits, torch.zeros_like(module.alpha_logits))


def test_each_alpha_finds_the_ingredient_that_is_right():
    # Every weight of the target is A's or B's: a planted answer for every alpha.
    a, b = ({"layer.weight": torch.randn(5, 8)} for _ in range(2))
    from_a = torch.rand(5, 8) < 0.5
    target = torch.where(from_a, a["layer.weight"], b["layer.weight"])
    inputs = torch.randn(256, 8)
    data = DataLoader(TensorDataset(inputs, inputs @ target.T), batch_size=64)
    optimizer = partial(torch.optim.Adam, lr=0.3)
    module = MergeModule(Regression(), [a, b], optimizer=optimizer)
    quiet_trainer(max_epochs=60).fit(module, data)
    apart = (a["layer.weight"] - b["layer.weight"]).abs() > 0.2
    found = module.alphas()["layer.weight"]
    assert apart.sum() > 25
    assert torch.equal((found > 0.5)[apart], from_a[apart])
    assert torch.allclose(module.state_dict()["layer.weight"], target, atol=0.1)


def test_the_users_hooks_and_logs_run_in_order():
    module = merge()
    trainer = quiet_trainer(max_epochs=1)
    trainer.fit(module, image_batches(), image_batches(seed=8))
    assert module.hooks == ["after_backward"] * 6 + ["train_epoch_end"]
    assert {"loss_in_step", "acc", "in_hook"} <= trainer.callback_metrics.keys()
    assert module.calls == 6


def test_validation_sees_the_newest_alphas():
    module = merge(optimizer=lambda logits: torch.optim.SGD(logits, lr=50.0))
    seen = []

    class Watch(Callback):
        def on_validation_start(self, trainer, pl_module):
            seen.append(pl_module.net[0].weight.detach().clone())

    quiet_trainer(max_epochs=1, callbacks=[Watch()]).fit(module, image_batches(), image_batches())
    a, b = module.ingredients()
    alpha = module.alphas()["net.0.weight"]
    name = "net.0.weight"
    assert torch.allclose(seen[0], alpha * a[name] + (1 - alpha) * b[name], atol=1e-6)
    assert not torch.allclose(seen[0], (a[name] + b[name]) / 2, atol=1e-4)


def test_its_checkpoint_is_the_users(tmp_path):
    module = merge()
    trainer = quiet_trainer(max_epochs=1)
    trainer.fit(module, image_batches())
    printed = trainer.test(module, image_batches(seed=9), verbose=False)
    trainer.save_checkpoint(tmp_path / "merged.ckpt")
    loaded = Stranger.load_from_checkpoint(tmp_path / "merged.ckpt")
    assert type(loaded) is Stranger
    again = quiet_trainer().test(loaded, image_batches(seed=9), verbose=False)
    assert again == printed
    torch.load(tmp_path / "merged.ckpt", weights_only=True)


def loaders():
    # Shuffled from torch's generator, as users' loaders are.
    data = image_batches().dataset
    return DataLoader(data, batch_size=16, shuffle=True), image_batches(seed=8)


def test_a_resumed_run_gives_the_same_alphas_bit_for_bit(tmp_path):
    torch.manual_seed(5)
    whole = merge()
    quiet_trainer(max_epochs=4).fit(whole, *loaders())

    torch.manual_seed(5)
    first = merge()
    trainer = quiet_trainer(max_epochs=2)
    trainer.fit(first, *loaders())
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    torch.manual_seed(99)
    second = merge()
    quiet_trainer(max_epochs=4).fit(second, *loaders(), ckpt_path=tmp_path / "half.ckpt")
    assert torch.equal(second.alpha_logits, whole.alpha_logits)
    assert same(second.state_dict(), whole.state_dict())
    assert not torch.equal(first.alpha_logits, whole.alpha_logits)


def test_resuming_from_something_else_is_refused(tmp_path):
    module = merge()
    trainer = quiet_trainer(max_epochs=1)
    trainer.fit(module, image_batches())
    path = tmp_path / "a.ckpt"
    trainer.save_checkpoint(path)
    others = MergeModule(Stranger(), [state(1), state(3)])
    with pytest.raises(CheckpointError, match="other ingredients"):
        quiet_trainer(max_epochs=2).fit(others, image_batches(), ckpt_path=path)
    coarse = merge(granularity="layer")
    with pytest.raises(CheckpointError, match="granularity"):
        quiet_trainer(max_epochs=2).fit(coarse, image_batches(), ckpt_path=path)
    plain = quiet_trainer(max_epochs=1)
    plain.fit(Stranger(), image_batches())
    plain.save_checkpoint(tmp_path / "plain.ckpt")
    with pytest.raises(CheckpointError, match="no alphas"):
        quiet_trainer(max_epochs=2).fit(merge(), image_batches(), ckpt_path=tmp_path / "plain.ckpt")


def test_a_planted_permutation_is_found_when_training_starts():
    a = state(1)
    spec = PermutationSpec.from_model(Stranger().eval(), torch.randn(2, 3, 8, 8))
    permutation = spec.random(generator=torch.Generator().manual_seed(3))
    b = spec.apply(a, permutation)
    assert not same(a, b)
    module = MergeModule(Stranger(), [a, b], matching=ActivationMatching())
    quiet_trainer(max_epochs=1).fit(module, image_batches())
    first, second = module.ingredients()
    assert same(first, second)
    # A merge of A with itself is A whatever the alphas are.
    assert all(torch.equal(module.state_dict()[name], a[name]) for name in first)


def test_an_aligned_run_resumes_without_aligning_again(tmp_path):
    torch.manual_seed(5)
    module = merge(matching=ActivationMatching())
    trainer = quiet_trainer(max_epochs=1)
    trainer.fit(module, image_batches())
    trainer.save_checkpoint(tmp_path / "a.ckpt")

    class Never(ActivationMatching):
        def align(self, *args, **kwargs):
            raise AssertionError("aligned twice")

    resumed = merge(matching=Never())
    quiet_trainer(max_epochs=2).fit(resumed, image_batches(), ckpt_path=tmp_path / "a.ckpt")
    assert same(resumed.ingredients()[1], module.ingredients()[1])


def test_it_can_be_copied_and_pickled():
    module = merge()
    with torch.no_grad():
        module.alpha_logits.normal_()
    twin = copy.deepcopy(module)
    assert type(twin) is type(module)
    assert same(twin.state_dict(), module.state_dict())
    with torch.no_grad():
        twin.alpha_logits.fill_(30.0)
    assert torch.equal(twin.eval().net[0].weight, twin.ingredients()[0]["net.0.weight"])
    assert not torch.equal(module.eval().net[0].weight, twin.net[0].weight)

    loaded = pickle.loads(pickle.dumps(module))
    assert type(loaded) is type(module)
    assert same(loaded.state_dict(), module.state_dict())
    assert loaded.configure_optimizers().defaults["lr"] == 0.01


def test_moving_it_keeps_the_parameters_in_one_buffer():
    module = merge().double().float()
    with torch.no_grad():
        module.alpha_logits.fill_(-30.0)
    module.refresh()
    assert torch.equal(module.net[0].weight, module.ingredients()[1]["net.0.weight"])


def test_tied_weights_stay_tied():
    torch.manual_seed(0)
    states = [randomise(Tied(), seed).state_dict() for seed in (1, 2)]
    module = MergeModule(Tied(), [copy.deepcopy(one) for one in states])
    assert len(module.alphas()) == 1
    data = DataLoader(TensorDataset(torch.randn(32, 12)), batch_size=8)
    quiet_trainer(max_epochs=2).fit(module, data)
    assert module.encoder.weight is module.decoder.weight
    assert not torch.equal(module.alpha_logits, torch.zeros_like(module.alpha_logits))
    saved = module.state_dict()
    assert torch.equal(saved["encoder.weight"], saved["decoder.weight"])


class BatchAlone(Stranger):
    def training_step(self, batch):
        return super().training_step(batch, 0)


class OwnBatches(Stranger):
    # Such a module has to say how large its batches are wherever it logs.
    def on_train_epoch_end(self):
        pass

    def training_step(self, dataloader_iter):
        self.calls += 1
        (images, targets), _, _ = next(dataloader_iter)
        return torch.nn.functional.cross_entropy(self(images), targets)


@pytest.mark.parametrize("kind", [BatchAlone, OwnBatches])
def test_a_step_gets_what_it_declares(kind):
    ours, plain = MergeModule(kind(), [state(1), state(2)]), merge()
    for module in (ours, plain):
        quiet_trainer(max_epochs=1).fit(module, image_batches())
    assert ours.calls == 6
    assert torch.equal(ours.alpha_logits, plain.alpha_logits)


def test_the_modules_own_callbacks_take_part():
    class Own(Stranger):
        def configure_callbacks(self):
            return [Count()]

    class Count(Callback):
        batches = 0

        def on_train_batch_end(self, trainer, pl_module, *rest):
            assert pl_module is module
            Count.batches += 1

    module = MergeModule(Own(), [state(1), state(2)])
    quiet_trainer(max_epochs=1).fit(module, image_batches())
    assert Count.batches == 6


def test_the_schedule_is_stepped_once_an_epoch():
    schedule = partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.1)
    trainer = quiet_trainer(max_epochs=2)
    trainer.fit(merge(lr_scheduler=schedule), image_batches())
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.01 * 0.1**2)


def test_what_cannot_be_merged_is_refused():
    with pytest.raises(ConfigError, match=r"Linear is no LightningModule of lightning\.pytorch"):
        MergeModule(torch.nn.Linear(2, 2), [state(1), state(2)])
    with pytest.raises(ConfigError, match="ByHand optimizes manually"):
        MergeModule(ByHand(), [state(1), state(2)])
    with pytest.raises(CheckpointError, match="at least two"):
        MergeModule(Stranger(), [state(1)])
    with pytest.raises(ConfigError, match="alpha is 1"):
        merge(alpha=1.0)
    with pytest.raises(ArchitectureMismatchError, match=r"net\.0\.weight"):
        MergeModule(Stranger(), [state(1), state(2, channels=5)])
    with pytest.raises(ArchitectureMismatchError, match="does not fit the network"):
        MergeModule(Stranger(channels=5), [state(1), state(2)])


class Failing(Stranger):
    def training_step(self, batch, batch_idx):
        raise RuntimeError("the user's own error")


def test_the_users_error_is_what_the_user_sees():
    module = MergeModule(Failing(), [state(1), state(2)])
    with pytest.raises(RuntimeError, match="the user's own error"):
        quiet_trainer(max_epochs=1).fit(module, image_batches())
    assert isinstance(module.net[0].weight, torch.nn.Parameter)


def test_a_copy_trains_as_the_original_does():
    module = merge()
    twin = copy.deepcopy(module)
    for one in (module, twin):
        quiet_trainer(max_epochs=1).fit(one, image_batches())
    assert torch.equal(module.alpha_logits, twin.alpha_logits)
    assert not torch.equal(module.alpha_logits, torch.zeros_like(module.alpha_logits))


def test_bare_parts_and_prefixed_states_are_merged_together():
    bare = {name.removeprefix("net."): value for name, value in state(1).items()}
    bare.pop("calls")
    net_only = Stranger()
    del net_only.calls
    prefixed = {name: value for name, value in state(2).items() if name != "calls"}
    module = MergeModule(net_only, [bare, prefixed])
    assert same(module.ingredients()[0], {n: state(1)[n] for n in module.ingredients()[0]})


def test_a_strategy_that_would_lose_the_alphas_is_refused():
    trainer = quiet_trainer(max_epochs=1, strategy="ddp_fork", devices=2)
    with pytest.raises(Exception, match="cannot hand the alphas back"):
        trainer.fit(merge(), image_batches())
