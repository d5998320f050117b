"""Merges and soups of modules whose files or state are not simply parameters and buffers."""

import logging
import re
from functools import partial

import pytest
import torch
from foreign_modules import (
    BuiltLate,
    Distilled,
    DistilledByHook,
    Lazy,
    Masked,
    MeanTeacher,
    Plain,
    Remembering,
    Smoothed,
    numbers,
)
from strangers import quiet_trainer
from torch import nn
from torch.nn.utils import parameters_to_vector
from torch.utils.checkpoint import checkpoint

from lightning_merge.align import ActivationMatching
from lightning_merge.callbacks import GreedySoup, LastEpochsSoup
from lightning_merge.checkpoint import read_checkpoint
from lightning_merge.errors import ArchitectureMismatchError, ConfigError, NonFiniteError
from lightning_merge.modules import EnsembleModule, MergeModule, merge_in_pairs

KINDS = [
    Distilled,
    DistilledByHook,
    BuiltLate,
    Lazy,
    Masked,
    partial(Masked, parameter=True),
    Remembering,
    partial(Remembering, tensor=True),
]
NAMES = ["own", "hook", "late", "lazy", "mask", "parameter", "extra", "tensor"]
every_kind = pytest.mark.parametrize("kind", KINDS, ids=NAMES)


def trained(kind, folder, count=2):
    """Checkpoints as Lightning writes them."""
    paths = []
    for seed in range(count):
        torch.manual_seed(seed)
        module, trainer = kind(), quiet_trainer(max_epochs=1)
        trainer.fit(module, numbers(), numbers())
        paths.append(folder / f"{seed}.ckpt")
        trainer.save_checkpoint(paths[-1])
    return paths


def user(kind):
    return getattr(kind, "func", kind)


@every_kind
@pytest.mark.parametrize("matching", [None, ActivationMatching()], ids=["plain", "aligned"])
def test_it_is_merged_trained_and_loaded_by_its_own_class(kind, matching, tmp_path):
    paths = trained(kind, tmp_path)
    first, second = (read_checkpoint(path).state_dict for path in paths)
    quick = partial(torch.optim.SGD, lr=9)
    module = MergeModule(kind(), paths, matching=matching, optimizer=quick)
    assert isinstance(module, user(kind))
    mean = (first["net.0.weight"] + second["net.0.weight"]) / 2
    assert torch.allclose(module.net[0].weight, mean, atol=1e-7)
    trainer = quiet_trainer(max_epochs=1)
    trainer.fit(module, numbers(), numbers())
    assert module.alpha_logits.abs().max() > 0
    trainer.save_checkpoint(tmp_path / "merged.ckpt")
    merged = read_checkpoint(tmp_path / "merged.ckpt").state_dict
    assert merged.keys() == first.keys()
    assert torch.equal(merged["net.0.weight"], module.net[0].weight)
    again = MergeModule(kind(), paths, matching=matching, optimizer=quick)
    quiet_trainer(max_epochs=2).fit(again, numbers(), ckpt_path=tmp_path / "merged.ckpt")
    assert not torch.equal(again.alpha_logits, module.alpha_logits)
    loaded = kind()
    loaded.configure_model()
    content = torch.load(tmp_path / "merged.ckpt", weights_only=False)
    loaded.load_state_dict(content["state_dict"], strict=loaded.strict_loading)
    x = next(iter(numbers()))[0]
    assert torch.equal(loaded.eval()(x), module.eval()(x))
    assert loaded.eval()(x).isfinite().all()


@every_kind
def test_soups_are_made_of_it(kind, tmp_path, caplog):
    greedy, last = GreedySoup("acc", dirpath=tmp_path / "g"), LastEpochsSoup(2, tmp_path / "l")
    torch.manual_seed(0)
    trainer = quiet_trainer(max_epochs=3, callbacks=[greedy, last])
    with caplog.at_level(logging.INFO), caplog.at_level(logging.INFO, "lightning.pytorch"):
        trainer.fit(kind(), numbers(), numbers())
    for soup in (greedy, last):
        loaded = kind()
        loaded.configure_model()
        content = torch.load(soup.best_path, weights_only=False)
        loaded.load_state_dict(content["state_dict"], strict=loaded.strict_loading)
        (found,) = quiet_trainer().validate(loaded, numbers(), verbose=False)
        if soup is greedy:
            assert found["acc"] == pytest.approx(greedy.best_score)
    (line,) = [one for one in caplog.messages if one.startswith("GreedySoup")]
    count, names, score = re.search(r"averaged (\d) \((.*?)\): acc (\S+) ", line).groups()
    assert int(count) == len(names.split(", ")) == len(greedy.best_ingredients)
    assert float(score) == pytest.approx(greedy.best_score, abs=1e-3)
    if kind is Lazy:
        return
    # Searched again, in files that the Trainer wrote.
    paths = trained(kind, tmp_path)
    late = GreedySoup("acc", checkpoints=paths, dirpath=tmp_path / "v")
    caplog.clear()
    with caplog.at_level(logging.INFO), caplog.at_level(logging.INFO, "lightning.pytorch"):
        quiet_trainer(callbacks=[late]).validate(kind(), numbers(), verbose=False)
    assert len([one for one in caplog.messages if one.startswith("GreedySoup: averaged")]) == 1
    written, before = (read_checkpoint(soup.best_path).state_dict for soup in (late, greedy))
    assert written.keys() == before.keys()


def test_a_lazy_module_that_never_ran_is_refused_in_a_line(tmp_path):
    late = GreedySoup("acc", checkpoints=trained(Lazy, tmp_path), dirpath=tmp_path / "v")
    with pytest.raises(ConfigError, match=r"Lazy cannot be copied.*run lazy layers once"):
        quiet_trainer(callbacks=[late]).validate(Lazy(), numbers(), verbose=False)


@pytest.mark.parametrize("kind", [Distilled, DistilledByHook])
def test_what_is_in_no_file_stays_as_the_module_has_it(kind, tmp_path):
    module = MergeModule(kind(), trained(kind, tmp_path))
    assert torch.equal(module.teacher.weight, torch.ones(3, 8))
    assert not any("teacher" in name for name in module.alphas())
    if kind is DistilledByHook:
        kept = MergeModule(kind(), trained(kind, tmp_path), keep_b="teacher.*")
        assert torch.equal(kept.teacher.weight, torch.ones(3, 8))


def test_a_part_that_one_file_lacks_is_an_error(tmp_path):
    whole = DistilledByHook().state_dict()
    part = {name: value for name, value in whole.items() if "teacher" not in name}
    with pytest.raises(ArchitectureMismatchError, match=r"teacher\.\w+' is .* absent"):
        MergeModule(DistilledByHook(), [whole, part])
    strict = DistilledByHook()
    strict.strict_loading = True
    with pytest.raises(ArchitectureMismatchError, match="does not fit the network"):
        MergeModule(strict, [part, part])


def test_a_module_whose_state_dict_names_nothing_is_refused():
    class Renamed(Distilled):
        def state_dict(self, *args, **kwargs):
            return {f"ema/{n}": v for n, v in super().state_dict(*args, **kwargs).items()}

    with pytest.raises(ConfigError, match="Renamed has no parameter to merge"):
        MergeModule(Renamed(), [Renamed().state_dict()] * 2)


def test_infinities_that_differ_are_an_error():
    one, other = Masked().state_dict(), Masked().state_dict()
    other["mask"] = -other["mask"].nan_to_num(neginf=float("-inf"))
    with pytest.raises(NonFiniteError, match="'mask' holds NaN or infinity"):
        MergeModule(Masked(), [one, other])
    one["mask"] = other["mask"] = torch.full((8, 8), float("nan"))
    with pytest.raises(NonFiniteError, match="'mask' holds NaN"):
        MergeModule(Masked(), [one, other])


@pytest.mark.parametrize("parameter", [False, True])
def test_a_mask_stays_as_it_is(parameter):
    states = [Masked(parameter).state_dict() for _ in range(3)]
    for count in (2, 3):
        module = MergeModule(Masked(parameter), states[:count])
        assert torch.equal(module.mask, Masked().mask)
        assert "mask" not in module.alphas()


@pytest.mark.parametrize("files", [False, True])
@pytest.mark.parametrize("tensor", [False, True])
def test_extra_state_is_that_of_the_first(tensor, files, tmp_path):
    states = [Remembering(tensor, temperature).state_dict() for temperature in (1.5, 2.5)]
    for number, state in enumerate(states):
        torch.save({"state_dict": state}, tmp_path / f"{number}.ckpt")
    given = [tmp_path / "0.ckpt", tmp_path / "1.ckpt"] if files else states
    module = MergeModule(Remembering(tensor), given)
    assert module.temperature == 1.5
    loaded = Remembering(tensor)
    loaded.load_state_dict(module.state_dict())
    assert loaded.temperature == 1.5


@every_kind
def test_pairs_of_it_are_merged(kind, tmp_path):
    paths = trained(kind, tmp_path, 3)
    first = read_checkpoint(paths[0]).state_dict
    final = merge_in_pairs(kind, paths, lambda module: None)
    assert final.keys() == first.keys()
    assert not torch.equal(final["net.0.weight"], first["net.0.weight"])
    given = [kind().state_dict() for _ in range(2)] if kind is KINDS[-2] else paths
    assert merge_in_pairs(kind, given, lambda module: None).keys() == first.keys()


def test_an_ensemble_of_networks_that_were_built_late(tmp_path):
    modules = [BuiltLate.load_from_checkpoint(path).eval() for path in trained(BuiltLate, tmp_path)]
    x = next(iter(numbers()))[0]
    wanted = sum(module(x) for module in modules) / 2
    assert torch.allclose(EnsembleModule(modules).eval()(x), wanted, atol=1e-6)


def test_names_of_ours_are_free_for_the_module():
    class Crowded(Masked):
        def __init__(self):
            super().__init__()
            self._flat, self._rest, self._run, self._kept = 1, 2, 3, nn.Linear(2, 2)

    module = MergeModule(Crowded(), [Crowded().state_dict()] * 2)
    quiet_trainer(max_epochs=1).fit(module, numbers())
    assert (module._flat, module._rest, module._run) == (1, 2, 3)
    assert "_kept.weight" in module.alphas()


def test_weights_that_a_step_changes_in_place_learn_as_others():
    class Bounded(Plain):
        """An embedding whose forward scales the rows that it reads, and a step that bounds."""

        def __init__(self):
            super().__init__()
            self.words = nn.Embedding(3, 8, max_norm=0.5)

        def training_step(self, batch, batch_idx):
            with torch.no_grad():
                self.net[3].bias.clamp_(-0.1, 0.1)
            x = batch[0] + self.words(batch[1])
            return nn.functional.cross_entropy(self.net(x), batch[1])

    a, b, plain = Bounded(), Bounded(), Bounded()
    module = MergeModule(Bounded(), [a, b], optimizer=partial(torch.optim.SGD, lr=1.0))
    plain.load_state_dict(module.state_dict())
    quiet_trainer(max_steps=1).fit(module, numbers(), numbers())
    plain.training_step(next(iter(numbers())), 0).backward()
    for name in ("words.weight", "net.3.bias"):
        first, other = a.get_parameter(name).detach(), b.get_parameter(name).detach()
        # The step down from logits of 0.
        logits = -plain.get_parameter(name).grad * (first - other) / 4
        expected = torch.lerp(other, first, logits.sigmoid())
        assert not torch.allclose(module.alphas()[name], torch.tensor(0.5), atol=1e-7)
        assert torch.allclose(module.state_dict()[name], expected, atol=1e-6)


def test_a_running_mean_of_the_network_follows_every_step(tmp_path):
    paths = trained(Smoothed, tmp_path)
    module = MergeModule(Smoothed(), paths, optimizer=partial(torch.optim.SGD, lr=5.0))
    stored = [read_checkpoint(path).state_dict for path in paths]
    name = "mean.module.0.weight"
    expected = (stored[0][name] + stored[1][name]) / 2
    assert torch.equal(module.state_dict()[name], expected)
    quiet_trainer(max_steps=2).fit(module, numbers())
    (tmp_path / "steps").mkdir()
    for steps in (1, 2):
        again = MergeModule(Smoothed(), paths, optimizer=partial(torch.optim.SGD, lr=5.0))
        trainer = quiet_trainer(max_steps=steps)
        trainer.fit(again, numbers())
        expected = (expected + again.net[0].weight) / 2
    assert torch.allclose(module.state_dict()[name], expected, atol=1e-6)
    trainer.save_checkpoint(tmp_path / "merged.ckpt")
    resumed = MergeModule(Smoothed(), paths)
    quiet_trainer(max_steps=2).fit(resumed, numbers(), ckpt_path=tmp_path / "merged.ckpt")
    assert torch.equal(resumed.state_dict()[name], module.state_dict()[name])
    loaded = Smoothed.load_from_checkpoint(tmp_path / "merged.ckpt")
    assert torch.equal(loaded.mean.module[0].weight, module.mean.module[0].weight)


def test_a_part_that_the_module_writes_itself_is_not_merged_without_a_word():
    states = [MeanTeacher().state_dict() for _ in range(2)]
    with pytest.raises(ConfigError, match=r"'teacher\.0\.weight'.*keep_a='teacher\[\.\]\.\*'"):
        quiet_trainer(max_steps=2).fit(MergeModule(MeanTeacher(), states), numbers())
    module = MergeModule(MeanTeacher(), states, keep_a="teacher[.].*")
    quiet_trainer(max_steps=9).fit(module, numbers())
    # It has come from the first one's to where the network is.
    teacher, network = (
        parameters_to_vector(part.parameters()) for part in (module.teacher, module.net)
    )
    assert torch.allclose(teacher, network, atol=1e-2)
    assert not torch.allclose(states[0]["teacher.0.weight"], module.net[0].weight, atol=1e-2)


def test_a_penalty_over_all_parameters_is_on_those_of_the_module():
    class Decayed(Plain):
        def penalty(self):
            return sum(value.square().sum() for value in self.parameters())

        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) + self.penalty()

        def validation_step(self, batch, batch_idx):
            self.log("penalty", self.penalty())

    a, b, plain = Decayed(), Decayed(), Decayed()
    # Logits of 0 have no penalty.
    module = MergeModule(Decayed(), [a, b], alpha=0.2, optimizer=partial(torch.optim.SGD, lr=1.0))
    plain.load_state_dict(module.state_dict())
    trainer = quiet_trainer(max_steps=1)
    trainer.fit(module, numbers())
    plain.training_step(next(iter(numbers())), 0).backward()
    total = 0.0
    for name, value in plain.named_parameters():
        first, other = a.get_parameter(name).detach(), b.get_parameter(name).detach()
        logits = torch.logit(torch.tensor(0.2)) - value.grad * (first - other) * 0.2 * 0.8
        expected = torch.lerp(other, first, logits.sigmoid())
        assert torch.allclose(module.state_dict()[name], expected, atol=1e-6)
        total += float(expected.square().sum())
    (found,) = trainer.validate(module, numbers(), verbose=False)
    assert found["penalty"] == pytest.approx(total, rel=1e-5)
    assert module.alpha_logits in set(module.parameters())


def test_parameters_that_the_module_keeps_beside_are_not_taken_for_constants():
    class Keeping(Plain):
        def __init__(self):
            super().__init__()
            self.kept = [self.net[0].weight]

        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) + self.kept[0].square().sum()

    states = [Keeping().state_dict() for _ in range(2)]
    with pytest.raises(ConfigError, match=r"'net\.0\.weight' is read from a list or dict"):
        quiet_trainer(max_steps=1).fit(MergeModule(Keeping(), states), numbers())


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("granularity", ["layer", "parameter"])
def test_parts_that_are_computed_again_in_the_backward_pass_learn_as_others(granularity, count):
    class Checkpointed(Plain):
        def forward(self, x):
            again = partial(checkpoint, use_reentrant=True)
            return self.net[3](again(self.net[1:3], again(self.net[0], x.requires_grad_())))

    states = [Checkpointed().state_dict() for _ in range(count)]
    module = MergeModule(
        Checkpointed(), states, granularity, optimizer=partial(torch.optim.SGD, lr=1.0)
    )
    batch = next(iter(numbers()))
    quiet_trainer(max_steps=1).fit(module, numbers(), numbers())

    plain, expected = Plain(), {}
    for name, _ in plain.named_parameters():
        expected[name] = torch.zeros(count, *states[0][name].shape, requires_grad=True)
    weights = {
        name: sum(
            share * state[name] for share, state in zip(logits.softmax(0), states, strict=True)
        )
        for name, logits in expected.items()
    }
    logits = torch.func.functional_call(plain, weights, (batch[0],))
    nn.functional.cross_entropy(logits, batch[1]).backward()
    for name, logit in expected.items():
        step = -logit.grad
        if granularity == "layer":
            step = step.sum(tuple(range(1, step.dim())), keepdim=True).expand_as(step)
        # The gradient by the one logit of two is that by the first of the softmax.
        shares = step[0].sigmoid() if count == 2 else step.softmax(0)
        # A bias before BatchNorm has no gradient, and norms are alike at the start.
        assert step.dim() < 3 or float((shares - 1 / count).abs().max()) > 1e-4
        assert torch.allclose(module.alphas()[name], shares, atol=1e-6)
