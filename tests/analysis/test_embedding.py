"""Representations of several data sets in two dimensions."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from tiny_tasks import Points, network

from lightning_merge.analysis.representations import embed, representations
from lightning_merge.errors import ConfigError, DataError
from lightning_merge.plots import plot_embedding


def planted(counts=(30, 30, 30), size=7):
    """Groups around centres that are far apart."""
    generator = torch.Generator().manual_seed(0)
    return {
        f"set {k}": 8 * torch.eye(size)[k] + torch.randn(count, size, generator=generator)
        for k, count in enumerate(counts)
    }


@pytest.mark.parametrize("method", ["pca", "tsne"])
def test_planted_groups_stay_apart(method):
    points = embed(planted(), method).points
    centres = {name: own.mean(0) for name, own in points.items()}
    for name, own in points.items():
        distances = {
            other: np.linalg.norm(own - centre, axis=1) for other, centre in centres.items()
        }
        for other in set(centres) - {name}:
            assert (distances[name] < distances[other]).all()


def test_coordinates_are_those_of_scikit_learn():
    features = planted((20, 31))
    every = torch.cat(list(features.values())).double().numpy()
    pca = PCA(2)
    expected = pca.fit_transform(every)
    found = embed(features, "pca")
    assert {name: len(own) for name, own in found.points.items()} == {"set 0": 20, "set 1": 31}
    np.testing.assert_allclose(np.concatenate(list(found.points.values())), expected)
    assert found.explained == pytest.approx(tuple(pca.explained_variance_ratio_))
    found = embed(features, "tsne", seed=3)
    # Fifty distances to others: t-SNE's usual 30 neighbours are too many for 51 points.
    expected = TSNE(2, perplexity=50 / 3, init="pca", random_state=3).fit_transform(every)
    np.testing.assert_allclose(np.concatenate(list(found.points.values())), expected)
    assert found.explained is None


def test_representations_are_what_the_last_layer_is_given():
    module, data = network("b").train(), Points("b", testable=True)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    found = representations(module, data, 25, seed=1)
    with torch.no_grad():
        every = module.eval().net[:-1](data.test_dataloader().dataset.tensors[0])
    rows = [int((every - one).abs().sum(1).argmin()) for one in found]
    assert len(set(rows)) == len(found) == 25
    torch.testing.assert_close(found, every[rows])
    assert torch.equal(found, representations(module, data, 25, seed=1))
    assert not torch.equal(found, representations(module, data, 25, seed=2))
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name])


def test_what_cannot_be_drawn_is_reported():
    with pytest.raises(ConfigError, match="7 of a, 5 of b"):
        embed({"a": torch.zeros(5, 7), "b": torch.zeros(5, 5)})
    with pytest.raises(ConfigError, match="four images"):
        embed({"a": torch.zeros(3, 7)})
    with pytest.raises(DataError, match="60 test images, and 61"):
        representations(network("b"), Points("b", testable=True), 61)


def test_every_point_is_drawn_in_its_sets_colour_and_no_set_on_top():
    generator = np.random.default_rng(0)
    panels = {
        network: {name: generator.normal(size=(40, 2)) for name in "abcdefghij"}
        for network in ("one", "two")
    }
    # A set that one network does not see keeps the others' colours.
    del panels["two"]["b"]
    figure = plot_embedding(panels, "Title", "So many of each", {"one": (0.5, 0.25)})
    colours = []
    for axes, (network_name, points) in zip(figure.axes, panels.items(), strict=False):
        assert axes.get_title(loc="left") == network_name
        drawn = axes.collections
        for name, own in points.items():
            of_it = [one for one in drawn if one.get_gid() == name]
            offsets = np.concatenate([one.get_offsets() for one in of_it])
            np.testing.assert_allclose(offsets[np.lexsort(offsets.T)], own[np.lexsort(own.T)])
        order = [one.get_gid() for one in drawn]
        assert order[: len(points)] == list(points)
        assert order[-len(points) :] == list(points)
        colours.append({one.get_gid(): one.get_facecolor()[0].tolist() for one in drawn})
    assert all(colours[0][name] == colour for name, colour in colours[1].items())
    assert "50%" in figure.axes[0].get_xlabel()
    assert figure.axes[1].get_xlabel() == ""
    (legend,) = figure.legends
    assert legend.get_title().get_text() == "So many of each"
    assert figure.get_suptitle() == "Title"
    assert [text.get_text() for text in legend.get_texts()] == list("abcdefghij")
    looks = {(line.get_color(), line.get_marker()) for line in legend.get_lines()}
    assert len(looks) == 10
