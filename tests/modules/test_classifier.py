from functools import partial

import pytest
import torch
from sklearn.metrics import accuracy_score, roc_auc_score, top_k_accuracy_score
from strangers import quiet_trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_merge.callbacks.first_batch import check_batch
from lightning_merge.errors import ConfigError
from lightning_merge.modules import ImageClassifier

SMALL = {"model": "linear_classifier", "in_chans": 1, "model_kwargs": {"img_size": 8}}


def loader(targets, size=20):
    images = torch.randn(len(targets), 1, 8, 8)
    return DataLoader(TensorDataset(images, targets), batch_size=size)


def predictions(module, data):
    batches = quiet_trainer().predict(module, data)
    return torch.cat(batches).numpy()


def test_multiclass_metrics_are_those_of_scikit_learn():
    targets = torch.randint(0, 8, (60,))
    module = ImageClassifier(num_classes=8, metrics=["accuracy", "top5", "auroc"], **SMALL)
    data = loader(targets)
    (metrics,) = quiet_trainer().test(module, data, verbose=False)
    probabilities = predictions(module, data)
    assert probabilities.shape == (60, 8)
    truth = targets.numpy()
    assert metrics["test_accuracy"] == pytest.approx(accuracy_score(truth, probabilities.argmax(1)))
    assert metrics["test_top5"] == pytest.approx(
        top_k_accuracy_score(truth, probabilities, k=5, labels=range(8))
    )
    assert metrics["test_auroc"] == pytest.approx(
        roc_auc_score(truth, probabilities.astype("float64"), multi_class="ovr", labels=range(8)),
        abs=1e-4,
    )
    logits = module(data.dataset.tensors[0])
    loss = nn.functional.cross_entropy(logits, targets)
    assert metrics["test_loss"] == pytest.approx(loss.item(), abs=1e-5)


def test_multilabel_metrics_are_those_of_scikit_learn():
    targets = torch.randint(0, 2, (60, 3)).float()
    module = ImageClassifier(num_classes=3, task="multilabel", **SMALL)
    data = loader(targets)
    (metrics,) = quiet_trainer().test(module, data, verbose=False)
    probabilities = predictions(module, data)
    assert metrics["test_auroc"] == pytest.approx(
        roc_auc_score(targets.numpy(), probabilities), abs=1e-5
    )
    assert metrics["test_accuracy"] == pytest.approx(
        ((probabilities > 0.5) == targets.numpy()).mean()
    )


def test_batches_may_be_dicts_where_nothing_is_learned():
    images, module = torch.randn(6, 1, 8, 8), ImageClassifier(num_classes=3, **SMALL)
    batches = [{"image": images, "label": torch.tensor([0, 1, 2, 0, 1, 5])}]
    data = DataLoader(batches, batch_size=None)
    assert predictions(module, data) == pytest.approx(module(images).softmax(1).detach().numpy())
    with pytest.raises(ConfigError, match="num_classes 3, and the data has a class 5"):
        check_batch(module, None, batches[0])


def test_binary_metrics_are_those_of_scikit_learn():
    targets = torch.randint(0, 2, (60,))
    module = ImageClassifier(num_classes=1, task="binary", **SMALL)
    data = loader(targets)
    (metrics,) = quiet_trainer().test(module, data, verbose=False)
    probabilities = predictions(module, data)
    assert probabilities.shape == (60,)
    assert metrics["test_auroc"] == pytest.approx(
        roc_auc_score(targets.numpy(), probabilities), abs=1e-5
    )
    assert metrics["test_accuracy"] == pytest.approx(
        accuracy_score(targets.numpy(), probabilities > 0.5)
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "resnet20_cifarr"}, "timm knows no model 'resnet20_cifarr'.*resnet20_cifar"),
        ({"task": "binary", "num_classes": 2}, "binary task has one logit"),
        ({"num_classes": 0}, "multiclass task has two classes or more: num_classes is 0"),
        ({"num_classes": 1}, "choose the binary task and 1"),
        ({"task": "multilabel", "num_classes": 1}, "multilabel task has two classes or more"),
        ({"metrics": ["recall"]}, "metric 'recall'"),
        ({"metrics": ["top5"], "num_classes": 4}, "metric 'top5'"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        ImageClassifier(**{**SMALL, **arguments})


def test_training_moves_every_parameter_with_the_given_optimizer_and_schedule():
    module = ImageClassifier(
        num_classes=4,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.5),
        lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.1),
        model="resnet20_cifar",
        in_chans=1,
    )
    before = {name: value.clone() for name, value in module.named_parameters()}
    trainer = quiet_trainer(max_epochs=2)
    trainer.fit(module, loader(torch.randint(0, 4, (40,))))
    assert all(not torch.equal(before[name], value) for name, value in module.named_parameters())
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.005)


def test_it_comes_back_from_its_checkpoint(tmp_path):
    module = ImageClassifier(num_classes=4, **SMALL)
    trainer = quiet_trainer(max_epochs=1)
    trainer.fit(module, loader(torch.randint(0, 4, (40,))))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    images = torch.randn(5, 1, 8, 8)
    loaded = ImageClassifier.load_from_checkpoint(tmp_path / "a.ckpt")
    assert torch.equal(loaded.eval()(images), module.eval()(images))


def test_a_compiled_network_is_compiled_while_it_is_fitted_and_no_longer(tmp_path, monkeypatch):
    targets = torch.arange(40) % 8
    data, calls, networks = loader(targets), [], []

    def compiled(function, **options):
        def call(*args):
            calls.append(function)
            return function(*args)

        return call

    monkeypatch.setattr(torch, "compile", compiled)
    for chosen in (False, True):
        torch.manual_seed(0)
        module = ImageClassifier(num_classes=8, compiled=chosen, **SMALL)
        trainer = quiet_trainer(max_epochs=2)
        trainer.fit(module, data)
        assert len(calls) == 4 * chosen
        module(data.dataset.tensors[0])
        assert len(calls) == 4 * chosen
        trainer.save_checkpoint(tmp_path / f"{chosen}.ckpt")
        networks.append(torch.load(tmp_path / f"{chosen}.ckpt", weights_only=False)["state_dict"])
    plain, ours = networks
    assert list(plain) == list(ours)
    assert all(torch.equal(plain[name], ours[name]) for name in plain)
    again = ImageClassifier.load_from_checkpoint(tmp_path / "True.ckpt", weights_only=False)
    assert again.compiled


def test_what_is_compiled_reaches_the_compiler(monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    module = ImageClassifier(num_classes=8, compiled=True, **SMALL)
    quiet_trainer(max_epochs=1).fit(module, loader(torch.arange(40) % 8))
    assert counters["frames"]["ok"] > 0
