"""CLIPClassifier against open_clip itself: logits, heads, training, merging, checkpoints."""

import logging
import sys

import pytest
import torch
from strangers import quiet_trainer
from tiny_clip import IMAGE_SIZE, TINY, tiny_clip, write_clip
from torch.utils.data import DataLoader, TensorDataset

from lightning_merge import CLIPClassifier, ImageClassifier, average, task_arithmetic, task_vector
from lightning_merge.aggregate import ties
from lightning_merge.checkpoint import read_checkpoint
from lightning_merge.errors import ConfigError
from lightning_merge.modules.last_layer import last_layer
from lightning_merge.recipe.described_module import module_of

open_clip = pytest.importorskip("open_clip")

NAMES = ["cat", "small dog", "traffic light"]
PROMPTS = ["a photo of a {}.", "one {}", "the {} over there, seen from afar"]
HEAD = "network.head.weight"


def classifier(path, **changes):
    settings = {"pretrained": str(path), "class_names": NAMES, "prompts": PROMPTS}
    return CLIPClassifier(**{"model_kwargs": TINY, **settings, **changes})


@pytest.fixture
def file(tmp_path):
    write_clip(tmp_path / "clip.pt")
    return tmp_path / "clip.pt"


def images(count=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, IMAGE_SIZE, IMAGE_SIZE, generator=generator)


def loader(seed=0):
    x = images(24, seed)
    return DataLoader(TensorDataset(x, torch.arange(24) % len(NAMES)), batch_size=8)


def tuned(path, seed):
    module = classifier(path, optimizer=lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.5))
    quiet_trainer(max_epochs=2).fit(module, loader(seed))
    return module


@torch.no_grad()
def test_the_head_is_the_mean_of_the_normalised_texts(file):
    clip = tiny_clip()
    tokenizer = open_clip.get_tokenizer("ViT-B-32", context_length=24)
    head = classifier(file).network.head
    assert head.bias is None
    expected = open_clip.build_zero_shot_classifier(clip, tokenizer, NAMES, PROMPTS).T
    torch.testing.assert_close(head.weight, expected * clip.logit_scale.exp())
    for name, row in zip(NAMES, head.weight, strict=True):
        units = []
        for prompt in PROMPTS:
            text = clip.encode_text(tokenizer(prompt.replace("{}", name)))[0]
            units.append(text / text.norm())
        mean = sum(units) / len(units)
        torch.testing.assert_close(row, mean / mean.norm() * torch.exp(torch.tensor(3.0)))
    spread = head.weight / head.weight.norm(dim=1, keepdim=True)
    assert (spread @ spread.T).triu(1).max() < 0.999


@torch.no_grad()
def test_zero_shot_logits_are_those_of_clip(file):
    clip = tiny_clip()
    tokenizer = open_clip.get_tokenizer("ViT-B-32", context_length=24)
    module = classifier(file, prompts=PROMPTS[:1]).eval()
    text = tokenizer([PROMPTS[0].format(name) for name in NAMES])
    expected, _ = clip.get_logits(images(), text)
    torch.testing.assert_close(module(images()), expected)
    assert expected.std(0).min() > 0.01
    usual = classifier(file, prompts=None).eval()
    torch.testing.assert_close(usual(images()), module(images()))


@torch.no_grad()
def test_a_shift_of_the_logits_is_kept():
    changes = {**TINY, "init_logit_bias": -2.5, "init_logit_scale": 1.5}
    torch.manual_seed(3)
    module = CLIPClassifier(class_names=NAMES, prompts=["a {}"], model_kwargs=changes).eval()
    torch.manual_seed(3)
    clip = open_clip.create_model("ViT-B-32", **changes).eval()
    text = open_clip.get_tokenizer("ViT-B-32", context_length=24)([f"a {name}" for name in NAMES])
    expected, _ = clip.get_logits(images(), text)
    torch.testing.assert_close(module(images()), expected)
    again = CLIPClassifier(**{k: v for k, v in module.hparams.items() if k[0] != "_"}).eval()
    again.load_state_dict(module.state_dict())
    torch.testing.assert_close(again(images()), expected)


def test_it_is_what_the_data_are_to_be_given(file):
    module = classifier(file)
    assert module.image_size == IMAGE_SIZE
    assert module.image_mean == open_clip.OPENAI_DATASET_MEAN
    assert module.image_std == open_clip.OPENAI_DATASET_STD
    assert last_layer(module, images(2)) == "network.head"
    assert not [name for name in module.state_dict() if "visual" not in name and name != HEAD]
    assert not any(
        "text" in name or "token_embedding" in name for name, _ in module.named_modules()
    )
    whole = sum(parameter.numel() for parameter in tiny_clip().visual.parameters())
    assert sum(parameter.numel() for parameter in module.parameters()) == whole + 3 * 16


def test_training_moves_the_body_and_not_the_head(file):
    start, module = classifier(file).state_dict(), tuned(file, 0)
    still = {name for name, value in module.state_dict().items() if value.equal(start[name])}
    assert still == {HEAD}
    free = classifier(file, train_head=True)
    quiet_trainer(max_epochs=1).fit(free, loader())
    assert not free.state_dict()[HEAD].equal(start[HEAD])


def test_the_schedule_goes_by_steps(file):
    module = classifier(
        file,
        optimizer=lambda p: torch.optim.SGD(p, lr=0.5),
        lr_scheduler=lambda o: torch.optim.lr_scheduler.StepLR(o, 1, gamma=0.1),
    )
    trainer = quiet_trainer(max_epochs=1)
    trainer.fit(module, loader())
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.5 * 0.1**3)


def test_merges_of_two_are_those_of_their_tensors(file):
    start = classifier(file).state_dict()
    a, b = (tuned(file, seed).state_dict() for seed in (0, 1))
    vectors = [task_vector(state, start) for state in (a, b)]
    merges = {
        "average": average([a, b]),
        "arithmetic": task_arithmetic(start, vectors, 0.3),
        "ties": ties(start, vectors, 0.5, 0.4),
    }
    for name, state in merges.items():
        module = classifier(file)
        module.load_state_dict(state)
        assert torch.isfinite(module.eval()(images())).all()
        torch.testing.assert_close(state[HEAD], start[HEAD])
        assert not state["network.visual.proj"].equal(start["network.visual.proj"]), name
    key = "network.visual.proj"
    torch.testing.assert_close(merges["average"][key], (a[key] + b[key]) / 2)
    expected = start[key] + 0.3 * (a[key] - start[key] + b[key] - start[key])
    torch.testing.assert_close(merges["arithmetic"][key], expected)


def test_a_checkpoint_loads_without_weights_text_or_download(file, tmp_path, monkeypatch):
    module = tuned(file, 0)
    trainer = quiet_trainer(max_epochs=1, limit_train_batches=1)
    trainer.fit(module, loader())
    trainer.save_checkpoint(tmp_path / "tuned.ckpt")
    file.unlink()
    for name in ("get_tokenizer", "download_pretrained", "load_checkpoint"):
        monkeypatch.setattr(f"open_clip.factory.{name}", lambda *_, **__: pytest.fail("called"))
        if hasattr(open_clip, name):
            monkeypatch.setattr(open_clip, name, lambda *_, **__: pytest.fail("called"))
    loaded = CLIPClassifier.load_from_checkpoint(tmp_path / "tuned.ckpt").eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(images()), module.eval()(images()), rtol=0, atol=0)
    assert loaded.hparams["made_from"]["class_names"] == NAMES
    assert loaded.hparams["made_from"]["prompts"] == PROMPTS
    assert not loaded.network.head.weight.requires_grad
    other = module_of(read_checkpoint(tmp_path / "tuned.ckpt"))
    assert isinstance(other, CLIPClassifier)
    assert other.state_dict().keys() == module.state_dict().keys()
    assert dict(other.hparams) == dict(loaded.hparams)


def test_steps_are_those_of_the_other_classifier(file):
    module = classifier(file, metrics=["accuracy", "auroc"])
    data = loader()
    (found,) = quiet_trainer().test(module, data, verbose=False)
    x, y = data.dataset.tensors
    with torch.no_grad():
        logits = module.eval()(x)
    assert found["test_accuracy"] == pytest.approx((logits.argmax(1) == y).float().mean().item())
    loss = torch.nn.functional.cross_entropy(logits, y).item()
    assert found["test_loss"] == pytest.approx(loss, rel=1e-5)
    assert found.keys() == {"test_accuracy", "test_auroc", "test_loss"}
    assert (module.monitor, module.mode) == (ImageClassifier.monitor, ImageClassifier.mode)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "ViT-B-3"}, "no CLIP 'ViT-B-3'; did you mean ViT-B-32"),
        ({"model": "coca_ViT-B-32"}, "no CLIP 'coca_ViT-B-32'"),
        ({"pretrained": "openai"}, "another activation: set model to ViT-B-32-quickgelu"),
        ({"pretrained": "none such"}, r"'none such' could not be made .*laion2b_s34b_b79k"),
        ({"num_classes": 4}, "num_classes is 4, class_names are 3"),
        ({"class_names": None}, "give the names of all classes"),
        ({"prompts": ["a photo"]}, "prompt 'a photo'"),
        ({"prompts": []}, "prompt None"),
    ],
)
def test_what_does_not_fit_is_said_in_a_line(file, changes, message):
    with pytest.raises(ConfigError, match=message) as raised:
        classifier(file, **changes)
    assert "\n" not in str(raised.value)


def test_the_activation_is_that_of_the_weights():
    made_from = {"pretrained": "openai"}
    module = CLIPClassifier("ViT-B-32-quickgelu", 2, model_kwargs=TINY, made_from=made_from)
    kinds = {type(layer).__name__ for layer in module.network.modules()}
    assert "QuickGELU" in kinds
    assert "GELU" not in kinds


def test_without_open_clip_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(ConfigError, match=r"pip install 'lightning-merge\[clip\]'"):
        CLIPClassifier(num_classes=2)


def test_the_root_logger_stays_as_it_was(file, capfd):
    root = logging.getLogger()
    before = list(root.handlers), list(root.filters)
    classifier(file)
    CLIPClassifier(num_classes=3, model_kwargs=TINY)
    assert (list(root.handlers), list(root.filters)) == before
    assert "initialized randomly" not in capfd.readouterr().err
