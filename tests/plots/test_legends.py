"""Legends below the panels, and what tells many methods apart."""

import matplotlib as mpl
import pytest
from PIL import Image

from lightning_merge.plots.barrier import plot_barrier
from lightning_merge.plots.bars import plot_bars
from lightning_merge.plots.pools import plot_pools
from lightning_merge.plots.style import save

LONG = [f"Method {letter} (symmetries=permutation, seed=0) + outputs" for letter in "ABCDEFGH"]
KINDS = ("merge", "ensemble")


def rows(names):
    return [
        {
            "method": name,
            "kind": KINDS[place % 3 == 1],
            "accuracy": 0.5 + 0.02 * place,
            "pool_size": size,
        }
        for place, name in enumerate(names)
        for size in (2, 4)
    ]


def lines(names):
    return [
        {"name": name, "alpha": [0, 0.5, 1], "loss": [1, 2 + place, 1], "accuracy": [0.9, 0.5, 0.9]}
        for place, name in enumerate(names)
    ]


DRAWN = {
    "barrier": lambda names: plot_barrier(lines(names)),
    "bars": lambda names: plot_bars({"resnet18": rows(names)}),
    "pools": lambda names: plot_pools(rows(names)),
}


@pytest.mark.parametrize("draw", DRAWN.values(), ids=DRAWN)
def test_long_names_make_no_figure_wider(draw, tmp_path):
    widths = {}
    for what, names in (("short", list("ABCDEFGH")), ("long", LONG)):
        figure = draw(names)
        save(figure, tmp_path / what)
        widths[what] = Image.open(tmp_path / f"{what}.png").width
        assert [text.get_text() for text in figure.legends[0].get_texts()] == names
    assert widths["long"] <= 1.03 * widths["short"]


def test_short_names_stand_beside_one_another():
    figure = plot_barrier(lines("ABCDEFGH"))
    figure.draw_without_rendering()
    places = {round(text.get_window_extent().x0) for text in figure.legends[0].get_texts()}
    assert len(places) == 4


@pytest.mark.parametrize("draw", [DRAWN["barrier"], DRAWN["pools"]], ids=["barrier", "pools"])
def test_no_two_of_twenty_curves_look_alike(draw):
    handles = draw([f"Method {number}" for number in range(20)]).legends[0].get_lines()
    looks = [(line.get_color(), line.get_marker(), line.get_linestyle()) for line in handles]
    assert len(set(looks)) == 20


def test_no_two_of_twenty_bars_look_alike():
    figure = plot_bars({"resnet18": rows([f"Method {number}" for number in range(20)])})
    boxes = figure.legends[0].get_patches()
    colour = mpl.colors.to_hex
    looks = [
        (colour(box.get_facecolor()), colour(box.get_edgecolor()), box.get_hatch()) for box in boxes
    ]
    assert len(set(looks)) == 20
