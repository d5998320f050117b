"""Headings that are longer than a figure is wide."""

import pytest
from matplotlib.figure import Figure
from PIL import Image

from lightning_merge.plots.scaling_curves import plot_magnitude, plot_magnitude_gap
from lightning_merge.plots.style import save

LONG = "Ten networks trained apart on ten classes, all of their weights multiplied by factors"


def curves():
    kinds = {"Average": "merge", "LogitsEnsemble": "ensemble"}
    return [
        {
            "name": name,
            "aggregate": name,
            "kind": kind,
            "pool_size": 2,
            "factor": [1.0, 10.0],
            "accuracy": [0.41, 0.4],
        }
        for name, kind in kinds.items()
    ]


def width(figure, tmp_path):
    path = tmp_path / f"{len(list(tmp_path.iterdir()))}.png"
    save(figure, path)
    return Image.open(path).width


@pytest.mark.parametrize("draw", [plot_magnitude, plot_magnitude_gap])
def test_a_long_heading_makes_no_figure_wider(draw, tmp_path):
    long = draw(curves(), LONG)
    assert width(long, tmp_path) <= 1.02 * width(draw(curves(), "Short"), tmp_path)
    heading = long.get_suptitle() or long.axes[0].get_title(loc="left")
    assert heading.count("\n") >= 1
    assert heading.split() == LONG.split()


def test_one_that_fits_stays_in_one_line(tmp_path):
    figure = Figure(figsize=(10, 3), layout="constrained")
    figure.subplots().set_title(LONG)
    save(figure, tmp_path / "wide")
    assert figure.axes[0].get_title() == LONG


def test_accuracies_by_factor_fill_their_axis():
    axes = plot_magnitude(curves()).axes[0]
    low, high = axes.get_ylim()
    assert low > 0.25
    assert high < 0.6
    assert axes.get_ylabel().startswith("test accuracy; axis from")
