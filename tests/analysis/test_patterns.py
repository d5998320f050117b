"""Templates, class averages and kernels: planted, and found where they were put."""

import json

import numpy as np
import pytest
import torch
from made_checkpoints import write_ingredient
from torch.utils.data import DataLoader, TensorDataset

from lightning_merge import DigitsDataModule
from lightning_merge.analysis.patterns import (
    class_averages,
    first_kernels,
    match,
    pairs,
    templates_of,
)
from lightning_merge.analysis.similarity import similarities
from lightning_merge.cli import main
from lightning_merge.errors import ConfigError, DataError

LINEAR = {"model": "linear_classifier", "model_kwargs": {"img_size": 8}}


def test_a_template_is_what_its_class_is_multiplied_with():
    torch.manual_seed(1)
    layer = torch.nn.Linear(3 * 5 * 4, 7)
    templates = templates_of(layer.state_dict(), (3, 5, 4), "x")
    images = torch.randn(6, 3, 5, 4)
    logits = torch.einsum("kchw,bchw->bk", templates, images) + layer.bias
    torch.testing.assert_close(logits, layer(images.flatten(1)))


@pytest.mark.parametrize("labels", [False, True])
def test_averages_by_class_against_a_loop(labels):
    images, classes = torch.randn(50, 2, 3, 3), torch.randint(0, 4, (50,))
    targets = classes
    if labels:
        targets = torch.randint(0, 2, (50, 4)).float()
    found = class_averages(DataLoader(TensorDataset(images, targets), batch_size=7), 5 - labels)
    for number in range(4):
        chosen = targets[:, number] == 1 if labels else classes == number
        torch.testing.assert_close(found[number], images[chosen].mean(0))
    if not labels:
        assert bool(found[4].isnan().all())
    named = class_averages([{"image": images, "label": targets}], 5 - labels)
    torch.testing.assert_close(named, found, equal_nan=True)


def test_cosines_against_numpy():
    a, b = torch.randn(4, 2, 3), torch.randn(5, 2, 3)
    a[1] = 0
    found = similarities(a, b)
    for i, j in np.ndindex(4, 5):
        x, y = a[i].numpy().ravel(), b[j].numpy().ravel()
        norms = np.linalg.norm(x) * np.linalg.norm(y)
        assert float(found[i, j]) == pytest.approx(x @ y / norms if norms else 0.0, abs=1e-6)


def test_templates_match_the_class_that_they_were_made_of():
    averages = torch.randn(6, 1, 8, 8) + 5 * torch.randn(1, 1, 8, 8)
    templates = 0.1 * (averages - averages.mean(0)) + 3 * torch.randn(1, 1, 8, 8)
    found = match(templates, averages)
    torch.testing.assert_close(found.diagonal(), torch.ones(6))
    assert bool((found.argmax(1) == torch.arange(6)).all())
    order = torch.tensor([3, 0, 1, 2, 5, 4])
    assert bool((match(templates[order], averages).argmax(1) == order).all())


def test_pairs_by_hand():
    templates = torch.randn(7, 1, 2, 2)
    torch.testing.assert_close(pairs(templates)[1], (templates[1] + templates[4]) / 2)
    assert len(pairs(templates)) == 3


def test_the_first_kernels_are_those_of_the_first_convolution():
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 5, 7), torch.nn.ReLU(), torch.nn.Conv2d(5, 6, 3)
    )
    name, kernels = first_kernels(network.state_dict(), "x")
    assert name == "0.weight"
    assert torch.equal(kernels, network[0].weight)


def test_what_is_refused():
    deep = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2)).state_dict()
    with pytest.raises(ConfigError, match="it has 2 layers"):
        templates_of(deep, (1, 2, 2), "x")
    with pytest.raises(ConfigError, match="takes 4 pixels"):
        templates_of(torch.nn.Linear(4, 3).state_dict(), (1, 3, 3), "x")
    with pytest.raises(ConfigError, match="has no convolution"):
        first_kernels(deep, "x")
    batch = [(torch.zeros(2, 1, 2, 2), torch.tensor([0, 3]))]
    with pytest.raises(DataError, match="a class 3, and the network 3"):
        class_averages(batch, 3)
    with pytest.raises(DataError, match="without targets"):
        class_averages([torch.zeros(2, 1, 2, 2)], 3)


def test_figures_from_checkpoints(tmp_path, capsys):
    linear = write_ingredient(tmp_path / "linear.ckpt", 0, **LINEAR)
    data = ["--data", json.dumps({"class_path": "DigitsDataModule"})]
    main(["plot", "templates", str(linear), *data])
    main(["plot", "templates", str(linear), "--classes", "[0, 3]", "--output", "some.png"])
    deep = [str(write_ingredient(tmp_path / f"{name}.ckpt", 1)) for name in "ab"]
    main(["plot", "kernels", *deep, "--title", "Two", "--most", "9"])
    files = capsys.readouterr().out.split()
    assert [file.rpartition("/")[2] for file in files] == [
        f"{name}.{kind}"
        for name in (
            "linear-templates",
            "linear-templates-merged",
            "some",
            "some-merged",
            "a-kernels",
        )
        for kind in ("png", "svg")
    ]
    svg = (tmp_path / "linear-templates.svg").read_text()
    assert "Cosine of a template with its own class" in svg
    assert "0 + 5" in (tmp_path / "linear-templates-merged.svg").read_text()
    for words in (["templates", deep[0]], ["kernels", str(linear)], ["kernels", *deep[:1] * 2]):
        with pytest.raises(SystemExit) as stopped:
            main(["plot", *words, "--overwrite"])
        assert stopped.value.code == 2


def test_a_trained_classifiers_templates_are_like_its_classes(tmp_path, capsys):
    from sklearn.linear_model import LogisticRegression

    data = DigitsDataModule()
    data.setup()
    loader = data.statistics_dataloader()
    images, targets = (torch.cat(part) for part in zip(*loader, strict=True))
    fitted = LogisticRegression(C=1e-3, max_iter=200).fit(images.flatten(1), targets)
    templates = torch.tensor(fitted.coef_).float().reshape(10, 1, 8, 8)
    found = match(templates, class_averages(loader, 10, progress=False))
    assert bool((found.argmax(1) == torch.arange(10)).all())


def test_arrays_and_lists_are_as_good_as_tensors():
    one, other = torch.randn(4, 1, 3, 3), torch.randn(4, 1, 3, 3)
    for made in (torch.Tensor.numpy, torch.Tensor.tolist):
        assert torch.equal(similarities(made(one), made(other)), similarities(one, other))
        assert torch.equal(match(made(one), made(other)), match(one, other))
        torch.testing.assert_close(pairs(made(one)).float(), pairs(one))
