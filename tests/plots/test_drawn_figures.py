"""Figures show the numbers that they were given."""

import numpy as np
import pytest
import torch
from drawn_rows import row

from lightning_merge.plots import (
    plot_bars,
    plot_gap,
    plot_kernels,
    plot_magnitude,
    plot_magnitude_gap,
    plot_magnitude_scatter,
    plot_merged_templates,
    plot_pools,
    plot_templates,
    save,
)
from lightning_merge.plots.figure import Stored, figures
from lightning_merge.plots.scaling_curves import has_pair
from lightning_merge.plots.style import looks
from lightning_merge.plots.templates import to_pixels
from lightning_merge.report.summary import AVERAGE


def summary(shift=0.0, sizes=(2, 5)):
    rows = [row("Ingredient 1", "ingredient", 0.7), row("Ingredient 2", "ingredient", 0.7)]
    for size in sizes:
        rows += [
            row(AVERAGE, "ingredient", 0.7 - shift, size, 0.01),
            row("soup", "merge", 0.8 - shift - size / 100, size, 0.01),
            row("greedy", "merge", 0.75 - shift, size, 0.01),
            row("all", "ensemble", 0.9 - shift, size, 0.01),
        ]
    return rows


def curve(name, kind, aggregate, size, accuracy, by_batch, seed=0):
    return {
        "name": name,
        "kind": kind,
        "aggregate": aggregate,
        "pool_size": size,
        "seed": seed,
        "factor": [2.0, 0.5, 1.0],
        "accuracy": accuracy,
        "by_batch": by_batch,
    }


def curves():
    batches = [[0.2, 0.4], [0.6, 0.8], [0.9, 0.7]]
    better = [[0.3, 0.5], [0.5, 0.7], [0.9, 0.8]]
    return [
        one
        for size in (2, 5)
        for seed in (0, 1)
        for one in (
            curve(AVERAGE, "ingredient", "", size, [0.3, 0.6, 0.7], [], seed),
            curve("soup", "merge", "Average", size, [0.3, 0.7 + seed / 10, 0.8], batches, seed),
            curve("all", "ensemble", "LogitsEnsemble", size, [0.4, 0.6, 0.85], better, seed),
        )
    ]


def lines(axes):
    return {line.get_label(): line for line in axes.get_lines()}


def test_pools():
    (axes,) = plot_pools(summary()).axes
    drawn = lines(axes)
    assert list(drawn) == [AVERAGE, "soup", "greedy", "all"]
    assert list(drawn["soup"].get_xdata()) == pytest.approx([2, 5], abs=0.45)
    np.testing.assert_allclose(drawn["soup"].get_ydata(), [0.78, 0.75])


def test_the_gap_of_one_table_is_over_pool_sizes():
    (axes,) = plot_gap({"x": summary()}, "all").axes
    drawn = lines(axes)
    np.testing.assert_allclose(drawn["soup"].get_ydata(), [12.0, 15.0])
    np.testing.assert_allclose(drawn["greedy"].get_ydata(), [15.0, 15.0])


def test_the_gap_of_several_tables_is_over_them():
    figure = plot_gap({"one": summary(), "two": summary(0.1, (5,))}, "all")
    panels = {axes.get_title(loc="left"): axes for axes in figure.axes}
    assert list(panels) == ["soup", "greedy"]
    drawn = lines(panels["soup"])
    np.testing.assert_allclose(drawn["5 networks"].get_ydata(), [15.0, 15.0])
    np.testing.assert_allclose(drawn["2 networks"].get_ydata(), [12.0, np.nan])
    labels = [tick.get_text() for tick in panels["greedy"].get_xticklabels()]
    assert labels == ["one", "two"]


@pytest.mark.parametrize("sizes", [(2, 5), (None,)])
def test_bars(sizes):
    figure = plot_bars(
        {
            "one": summary(0.0, sizes) if sizes[0] else OLD,
            "two": OLD if not sizes[0] else summary(0.2, sizes),
        }
    )
    assert len(figure.axes) == len(sizes)
    bars = {container.get_label(): container for container in figure.axes[0].containers}
    heights = {
        name: [patch.get_height() for patch in container.patches]
        for name, container in bars.items()
        if getattr(container, "patches", None)
    }
    assert list(heights) == [AVERAGE, "soup", "greedy", "all"]
    np.testing.assert_allclose(heights["all"], [0.9, 0.7] if sizes[0] else [0.9, 0.9])


OLD = [{**one, "pool_size": None} for one in summary(0.0, (2,))]


def test_magnitude_means_over_seeds_in_order_of_the_factors():
    figure = plot_magnitude(curves())
    assert [axes.get_title(loc="left") for axes in figure.axes[:2]] == ["2 networks", "5 networks"]
    drawn = lines(figure.axes[0])
    ticks = [tick.get_text() for tick in figure.axes[0].get_xticklabels()]
    assert ticks == ["0.5", "1", "2"]
    np.testing.assert_allclose(drawn["soup"].get_ydata(), [0.75, 0.8, 0.3])


def test_the_gap_by_magnitude():
    (axes,) = plot_magnitude_gap(curves()).axes
    drawn = lines(axes)
    np.testing.assert_allclose(drawn["5 networks"].get_ydata(), [15.0, -5.0, -10.0])
    assert has_pair(curves())
    assert not has_pair(curves()[:2])


def test_the_scatter_has_a_point_for_each_batch_of_the_largest_pool():
    figure = plot_magnitude_scatter(curves())
    panels = {axes.get_title(loc="left"): axes for axes in figure.axes}
    assert list(panels) == ["× 0.5", "× 1", "× 2"]
    points = panels["× 2"].get_lines()[1]
    # Two batches in each of two seeds.
    np.testing.assert_allclose(points.get_xdata(), [0.2, 0.4] * 2)
    np.testing.assert_allclose(points.get_ydata(), [0.3, 0.5] * 2)
    assert panels["× 2"].texts[0].get_text() == "above: 100%, below: 0%"


def test_every_method_looks_different():
    rows = [row(f"m{i}", "merge" if i % 2 else "ensemble", 0.5) for i in range(6)]
    found = looks([*rows, row(AVERAGE, "ingredient", 0.5)])
    assert len({(one["color"], one["marker"]) for one in found.values()}) == 7


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_zero_is_the_middle_and_a_sign_a_side(channels):
    weights = torch.zeros(channels, 2, 2)
    weights[:, 0, 0], weights[:, 1, 1] = 1.0, -1.0
    pixels = to_pixels(weights, weights)
    assert pixels.shape == (2, 2, 3)
    if channels == 3:
        np.testing.assert_allclose(pixels[0, 0], 1.0)
        np.testing.assert_allclose(pixels[1, 1], 0.0)
        np.testing.assert_allclose(pixels[0, 1], 0.5)
    else:
        assert pixels[0, 1].min() > 0.9
        assert pixels[0, 0, 0] > pixels[0, 0, 2]
        assert pixels[1, 1, 2] > pixels[1, 1, 0]


def test_templates_stand_beside_their_averages(tmp_path):
    templates, averages = torch.randn(6, 3, 4, 4), torch.rand(6, 3, 4, 4)
    names = [f"class {i}" for i in range(6)]
    (axes,) = plot_templates(templates, averages, names).axes
    images = axes.get_images()
    assert len(images) == 12
    np.testing.assert_allclose(images[4].get_array(), averages[2].permute(1, 2, 0), atol=1e-6)
    assert [text.get_text() for text in axes.texts] == names
    (axes,) = plot_merged_templates(templates, templates[:3], names).axes
    assert [text.get_text() for text in axes.texts] == [
        f"class {i} + class {i + 3}" for i in range(3)
    ]
    assert len(axes.get_images()) == 9


def test_kernels_are_on_one_scale_and_say_which_are_alike(tmp_path):
    kernels = torch.randn(8, 3, 7, 7)
    kernels[5] = 2 * kernels[2]
    figure = plot_kernels({"a": kernels, "b": kernels / 4})
    above, below = figure.axes[0].get_images(), figure.axes[1].get_images()
    spread = [np.ptp(images[3].get_array()) for images in (above, below)]
    assert spread[1] == pytest.approx(spread[0] / 4, rel=0.2)
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert "most alike: 2 and 5 (1.00)" in titles
    files = save(figure, tmp_path / "kernels")
    assert [file.suffix for file in files] == [".png", ".svg"]


def test_the_alphas_of_three_ingredients_have_their_mean_at_a_third():
    from lightning_merge.plots.alpha_histograms import alphas
    from lightning_merge.plots.figure import Stored

    third = {"network.a.weight": torch.full((4, 5), 1 / 3)}
    held = {"alphas": third, "other_alphas": [third, third]}
    (axes,) = alphas(Stored([held]))["alphas"].axes
    dashed = [line.get_xdata()[0] for line in axes.lines if line.get_linestyle() == "--"]
    assert dashed == [pytest.approx(1 / 3)]
    assert "B" not in axes.get_xlabel()
    (axes,) = alphas(Stored([{"alphas": third}]))["alphas"].axes
    assert [x.get_xdata()[0] for x in axes.lines if x.get_linestyle() == "--"] == [0.5]


def test_files_have_the_resolution_and_the_text_of_the_style(tmp_path):
    from PIL import Image

    png, svg = save(plot_pools(summary()), tmp_path / "figure")
    with Image.open(png) as opened:
        assert opened.info["dpi"][0] == pytest.approx(200, abs=0.5)
    assert "<text" in svg.read_text()


def test_no_method_is_marked_by_its_test_accuracy():
    from lightning_merge.plots.methods import plot_methods

    (axes,) = plot_methods([row("a", "merge", 0.9), row("b", "merge", 0.5)]).axes
    assert len({line.get_color() for line in axes.lines}) == 1


def test_a_ring_is_where_held_out_data_chose():
    from lightning_merge.plots.methods import plot_methods

    rows = [row("a", "merge", 0.9), {**row("b", "merge", 0.5), "mark": "best"}]
    (axes,) = plot_methods(rows).axes
    rings = [line for line in axes.lines if line.get_markerfacecolor() == "none"]
    # The rows go from the top down: b, whose test accuracy is lower, is the lowest one.
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in rings] == [(0.5, 0)]
    assert "ring" in axes.get_xlabel()


def test_methods_of_several_numbers_of_networks_are_told_apart():
    from lightning_merge.plots.methods import plot_methods

    def names(rows):
        return [label.get_text() for label in plot_methods(rows).axes[0].get_yticklabels()]

    soups = [row("soup", "merge", 0.4, size) for size in (2, 5)]
    alone = {**row("one", "ingredient", 0.3), "pool_size": None}
    assert names([alone, *soups]) == ["soup of 5", "soup of 2", "one"]
    assert names([alone, soups[0]]) == ["soup", "one"]


def test_one_seed_has_the_intervals_over_test_examples():
    rows = [
        {**row("soup", "merge", 0.8, size), "accuracy_low": 0.7, "accuracy_high": 0.85}
        for size in (2, 5)
    ]
    (axes,) = plot_pools(rows).axes
    (bars,) = (one for one in axes.collections if hasattr(one, "get_segments"))
    ends = [segment[:, 1].tolist() for segment in bars.get_segments()]
    assert ends == [pytest.approx([0.7, 0.85])] * 2


def test_lines_that_coincide_are_one_with_both_names():
    from lightning_merge.plots import plot_barrier

    flat = {"alpha": [0, 0.5, 1], "loss": [1.0, 2.0, 1.0], "accuracy": [0.9, 0.1, 0.9]}
    other = {**flat, "loss": [1.0, 1.5, 1.0]}
    figure = plot_barrier([{**flat, "name": "a"}, {**flat, "name": "b"}, {**other, "name": "c"}])
    assert [list(lines(axes)) for axes in figure.axes] == [["a = b", "c"]] * 2
    # In pools equal accuracies stand beside one another.
    rows = [row(name, "merge", 0.4, size) for name in "ab" for size in (2, 5)]
    first, second = lines(plot_pools(rows).axes[0]).values()
    assert (first.get_xdata() < second.get_xdata()).all()


def test_no_two_lines_of_a_barrier_look_the_same():
    from lightning_merge.plots import plot_barrier

    names = [a + r for a in ("direct", "Permute") for r in ("", " + reset", " + least squares")]
    found = [
        {"name": name, "alpha": [0, 1], "loss": [1.0, 2.0 + at], "accuracy": [0.9, 0.1 * at]}
        for at, name in enumerate(names)
    ]
    axes = plot_barrier(found).axes[0]
    looks = [
        (line.get_color(), line.get_linestyle(), line.is_dashed(), line.get_markersize())
        for line in axes.get_lines()
    ]
    assert len(set(looks)) == len(names) == len(looks)


def test_the_gaps_of_all_merges_are_on_one_scale():
    tables = {"x": summary(), "y": summary(0.1)}
    figure = plot_gap(tables, "all")
    assert len({axes.get_ylim() for axes in figure.axes}) == 1


def test_confusion_matrices_of_the_chosen_and_of_the_ensemble():
    from lightning_merge.plots.confusion import confusion
    from lightning_merge.plots.figure import Stored

    counts = {"a": [[3, 1], [0, 4]], "b": [[2, 2], [1, 3]], "all": [[4, 0], [0, 4]]}
    kinds = {"a": "merge", "b": "merge", "all": "ensemble"}
    matrices = [
        {"method": name, "kind": kinds[name], "pool_size": 2, "counts": of}
        for name, of in counts.items()
    ]
    advice = {
        "use": {"method": "a", "pool_size": 2},
        "ensemble": {"method": "all", "pool_size": 2},
    }
    held = {"confusion": {"classes": ["x", "y"], "matrices": matrices}, "recommendation": advice}
    figure = confusion(Stored([held]))["confusion"]
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["a", "all"]
    texts = [sorted(text.get_text() for text in axes.texts) for axes in figure.axes]
    # A count of 0 is left empty.
    assert texts == [["1", "3", "4"], ["4", "4"]]
    (image,) = figure.axes[0].images
    assert np.asarray(image.get_array()) == pytest.approx(np.array([[0.75, 0.25], [0, 1]]))


def test_cost_is_in_that_of_the_cheapest_network():
    from lightning_merge.plots.cost_scatter import plot_cost

    rows = [
        {**row(AVERAGE, "ingredient", 0.7, 3), "flops": 50, "seconds": 9.0},
        {**row("soup", "merge", 0.8, 3), "flops": 50, "seconds": 2.0, "mark": "best"},
        {**row("all", "ensemble", 0.9, 3), "flops": 150, "seconds": 0.1},
    ]
    running, making = plot_cost(rows).axes
    dots = {
        (line.get_xdata()[0], line.get_ydata()[0])
        for line in running.lines
        if len(line.get_xdata())
    }
    assert dots == {(1, 0.7), (1, 0.8), (3, 0.9)}
    assert {line.get_xdata()[0] for line in making.lines} == {9.0, 2.0, 0.1}
    assert {text.get_text() for text in running.texts} >= {AVERAGE, "soup", "all"}
    # Without operations it is parameters.
    rows = [{**one, "flops": None, "parameters": 7} for one in rows]
    assert {line.get_xdata()[0] for line in plot_cost(rows).axes[0].lines} == {1}


def test_tables_without_accuracies_have_no_bars_and_no_gap():
    nobody = [{**one, "accuracy": None} for one in summary()]
    ensembles = [
        {**one, "accuracy": None} if one["kind"] == "ensemble" else one for one in summary()
    ]
    for name, table in (("bars", nobody), ("gap", nobody), ("gap", ensembles)):
        for in_report in (False, True):
            stored = Stored([{"summary": table}], in_report=in_report)
            assert figures.get(name).value.draw(stored) == {}


def test_a_soup_without_batches_has_a_gap_and_no_scatter():
    found = [{**one, "by_batch": []} if one["name"] == "soup" else one for one in curves()]
    drawn = figures.get("magnitude").value.draw(Stored([{"magnitudes": found}]))
    assert list(drawn) == ["magnitude", "magnitude-gap"]
    whole = figures.get("magnitude").value.draw(Stored([{"magnitudes": curves()}]))
    assert list(whole) == ["magnitude", "magnitude-gap", "magnitude-scatter"]
