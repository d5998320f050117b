"""Axes of accuracies show the range of the data, and say where they start."""

import pytest
from drawn_rows import row, shown

from lightning_merge.plots import plot_bars, plot_pools


def test_an_axis_that_does_not_start_at_0_says_so(tmp_path):
    from lightning_merge.plots.methods import plot_methods

    high = plot_methods([row("a", "merge", 0.97), row("b", "merge", 0.96)])
    (axes,) = high.axes
    start = axes.get_xlim()[0]
    assert 0.9 < start < 0.96
    assert f"axis from {start:g}" in axes.get_xlabel()
    assert "//" in shown(high, tmp_path)
    low = plot_methods([row("a", "merge", 0.97), row("b", "merge", 0.1)])
    assert low.axes[0].get_xlim()[0] == 0
    assert "//" not in shown(low, tmp_path)


def test_an_axis_of_low_accuracies_ends_above_the_highest_and_holds_all_bars():
    bars = {"accuracy_low": 0.36, "accuracy_high": 0.48}
    close = [{**row("soup", "merge", 0.4, size), **bars} for size in (2, 5)]
    (axes,) = plot_pools(close).axes
    bottom, top = axes.get_ylim()
    assert 0.2 < bottom < 0.36
    assert 0.48 < top < 0.6
    assert f"axis from {bottom:g}" in axes.get_ylabel()
    (axes,) = plot_pools([*close, row("other", "merge", 0.01, 2)]).axes
    assert axes.get_ylim()[0] == 0
    assert axes.get_ylim()[1] == pytest.approx(top, abs=0.01)
    (axes,) = plot_pools([row("chance", "merge", 0.0, size) for size in (2, 5)]).axes
    assert axes.get_ylim()[1] > 0


def test_bars_of_low_accuracies_fill_their_panels():
    def ends(accuracy):
        tables = {"x": [row("soup", "merge", accuracy, 2), row("other", "merge", 0.01, 2)]}
        (axes,) = plot_bars(tables).axes
        return axes.get_ylim()

    for accuracy, top in ((0.15, 0.2), (0.4, 0.4), (0.41, 0.6), (0.61, 1.0), (1.0, 1.0)):
        assert ends(accuracy) == pytest.approx((0, 1.2 * top))
