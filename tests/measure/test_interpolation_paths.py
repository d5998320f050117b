"""Interpolation paths and triangles: which are measured, what they say, how they are drawn."""

import math

import pytest
import torch
from tiny_contexts import made_context

from lightning_merge import ActivationMatching, Average, Matching, NPMerge, Recipe, average
from lightning_merge.errors import ConfigError
from lightning_merge.measure.path_recipes import path_recipes
from lightning_merge.measure.sweep import sweep_of
from lightning_merge.measure.sweeps.interpolation import (
    Path,
    Triangle,
    measure_paths,
    measure_triangles,
    triangle_weights,
)
from lightning_merge.plots import plot_barrier, plot_triangle
from lightning_merge.recalibrate import reset_batchnorm
from lightning_merge.recipe.aligning import align

CCA = "lightning_merge.align.CCAMatching"


class Own(Matching):
    """A matching that leaves the units where they are."""

    def align(self, spec, model_a, model_b, batches, **_):
        return model_b.state_dict()


class HalfAndHalf(Average):
    """An own kind of average."""


def recipe(align=None, recalibrate=None, aggregate="Average"):
    return {"name": "x", "aggregate": aggregate, "align": align, "recalibrate": recalibrate}


def test_each_pair_of_the_averaging_recipes_has_one_path_with_a_name():
    found = path_recipes(
        [
            recipe("ActivationMatching", "batchnorm", {"class_path": "lightning_merge.NPMerge"}),
            recipe({"class_path": "lightning_merge.align.WeightMatching"}),
            recipe("WeightMatching", "batchnorm"),
            recipe({"class_path": "WeightMatching", "init_args": {}}),
            recipe("ActivationMatching", aggregate={"class_path": f"{__name__}.HalfAndHalf"}),
            recipe(f"{__name__}.Own", "repair"),
        ]
    )
    assert [path["name"] for path in found] == [
        "direct",
        "Weight matching",
        "Weight matching + reset",
        "Permute",
        "Own + REPAIR",
    ]
    assert {path["aggregate"] for path in found} == {"Average"}
    assert found[4]["align"] == f"{__name__}.Own"
    assert found[4]["recalibrate"] == "repair"


def test_recipes_that_are_objects_give_paths_that_are():
    recipes = [
        Recipe("mean", Average(), Own(), "batchnorm"),
        Recipe("weighted", Average([1, 2]), Own(), "batchnorm"),
        Recipe("learned", NPMerge(max_epochs=1), ActivationMatching()),
    ]
    direct, own = path_recipes(recipes)
    assert (direct, own.name) == (
        {"name": "direct", "aggregate": "Average", "align": None, "recalibrate": None},
        "Own + reset",
    )
    assert own.align is recipes[0].align
    assert own.recalibrate == "batchnorm"
    assert own.aggregate.weights_of_mean(2) == [1.0, 1.0]


def test_where_nothing_averages_all_recipes_have_paths():
    found = path_recipes([recipe("ActivationMatching", "batchnorm", "NPMerge")])
    assert [path["name"] for path in found] == ["direct", "Permute + reset"]


def test_arguments_are_named_where_nothing_else_tells_paths_apart():
    ridges = [{"class_path": CCA, "init_args": {"gamma": gamma}} for gamma in (0.1, 1.0)]
    names = [path["name"] for path in path_recipes([recipe(ridge) for ridge in ridges])]
    assert names == ["direct", "CCA (gamma=0.1)", "CCA (gamma=1.0)"]
    assert [path["name"] for path in path_recipes([recipe(ridges[0])])] == ["direct", "CCA"]


def measured(context, state, *, reset=False):
    """Test loss and accuracy, computed in one go."""
    module = context.build(state)
    if reset:
        reset_batchnorm(module, context.data.statistics_dataloader())
    x, y = context.data.test_dataloader().dataset.tensors
    with torch.no_grad():
        logits = module.eval()(x)
    loss = torch.nn.functional.cross_entropy(logits, y)
    return float(loss), float((logits.argmax(1) == y).float().mean())


def test_a_path_is_measured_at_every_point_as_its_recipe_says():
    context = made_context(norm=True)
    recipes = [
        Recipe("direct", Average()),
        Recipe("Permute + reset", Average(), ActivationMatching(), "batchnorm"),
    ]
    direct, aligned = measure_paths(context, recipes, 3)
    assert direct.alpha == aligned.alpha == [0.0, 0.5, 1.0]
    permuted = align(ActivationMatching(), context).states
    for position, weights in enumerate(([0, 1], [1, 1], [1, 0])):
        loss, accuracy = measured(context, average(context.states, weights))
        assert direct.loss[position] == pytest.approx(loss, rel=1e-4)
        assert direct.accuracy[position] == pytest.approx(accuracy)
        loss, accuracy = measured(context, average(permuted, weights), reset=True)
        assert aligned.loss[position] == pytest.approx(loss, rel=1e-4)
        assert aligned.accuracy[position] == pytest.approx(accuracy)
    assert direct.ingredients == aligned.ingredients == [direct.loss[2], direct.loss[0]]
    rise = direct.loss[1] - (direct.loss[0] + direct.loss[2]) / 2
    assert direct.barrier == pytest.approx(max(rise, 0.0))
    assert direct.accuracies == aligned.accuracies == [direct.accuracy[2], direct.accuracy[0]]
    fall = (direct.accuracy[0] + direct.accuracy[2]) / 2 - direct.accuracy[1]
    assert direct.accuracy_barrier == pytest.approx(max(fall, 0.0))


def test_a_triangle_has_its_paths_as_edges():
    context = made_context(3)
    recipes = [Recipe("Permute + REPAIR", Average(), ActivationMatching(), "repair")]
    (triangle,) = measure_triangles(context, recipes, 3)
    assert len(triangle.weights) == 6
    states = align(ActivationMatching(), context).states
    for corner, state in enumerate(states):
        weights = [float(i == corner) for i in range(3)]
        where = triangle.weights.index(weights)
        loss, accuracy = measured(context, state)
        assert triangle.loss[where] == pytest.approx(loss, rel=1e-3)
        assert triangle.accuracy[where] == pytest.approx(accuracy)
    (path,) = measure_paths(context, recipes, 3)
    middle = triangle.weights.index([0.5, 0.5, 0.0])
    # The goals of an edge are those of its two ends.
    assert triangle.loss[middle] == pytest.approx(path.loss[1], rel=1e-4)


@pytest.mark.parametrize("points", [2, 5, 11])
def test_the_grid_covers_the_triangle_once(points):
    weights = triangle_weights(points)
    assert len(weights) == points * (points + 1) // 2
    assert len({tuple(row) for row in weights}) == len(weights)
    assert all(sum(row) == pytest.approx(1) and min(row) >= 0 for row in weights)


def test_barriers_rise_above_what_the_ends_have():
    shares, none = [0.0, 0.25, 1.0], [0.0] * 3
    path = Path("x", [1.0, 4.0, 3.0], none, [3.0, 1.0], [0.0] * 2, shares)
    assert path.barrier == pytest.approx(4.0 - (0.25 * 3 + 0.75 * 1))
    # An end that alignment has spoilt does not hide it.
    path = Path("x", [9.0, 4.0, 3.0], none, [3.0, 1.0], [0.0] * 2, shares)
    assert path.barrier == pytest.approx(9.0 - 1.0)
    weights = triangle_weights(3)
    plane = [2 * a + 5 * b - c for a, b, c in weights]
    plane[weights.index([0.5, 0.0, 0.5])] += 0.75
    own = [2, 5, -1]
    assert Triangle("x", plane, plane, own, own, weights).barrier == pytest.approx(0.75)
    assert math.isnan(Path("x", [1.0, math.nan, 1.0], none, [1.0] * 2, [0.0] * 2, shares).barrier)


def test_the_barrier_of_accuracies_is_how_far_they_fall_below_the_ends():
    shares = [0.0, 0.25, 1.0]
    path = Path("x", [0.0] * 3, [0.9, 0.3, 0.5], [0.0] * 2, [0.5, 0.9], shares)
    assert path.accuracy_barrier == pytest.approx(0.25 * 0.5 + 0.75 * 0.9 - 0.3)
    path = Path("x", [0.0] * 3, [0.9, 0.95, 0.5], [0.0] * 2, [0.5, 0.9], shares)
    assert path.accuracy_barrier == pytest.approx(0.0)
    path = Path("x", [0.0] * 3, [0.9, math.nan, 0.5], [0.0] * 2, [0.5, 0.9], shares)
    assert math.isnan(path.accuracy_barrier)


@pytest.mark.parametrize(
    ("points", "count", "says"), [(1, 3, "triangle is 1"), (5, 2, "there are 2")]
)
def test_what_is_no_triangle_is_refused(points, count, says):
    triangle = sweep_of("triangle")
    with pytest.raises(ConfigError, match=says):
        triangle.check(points, count)
    triangle.check(0, 2)
    triangle.check(4, 3)


def test_paths_of_one_alignment_share_a_colour_and_none_is_left_out():
    names = ["direct", "direct + reset", "Permute", "Permute + reset"]
    lines = [
        {"name": name, "alpha": [0.0, 0.5, 1.0], "loss": [high, None, 2.0], "accuracy": [0.1] * 3}
        for high, name in enumerate(names, start=1)
    ]
    figure = plot_barrier(lines)
    drawn = figure.axes[0].get_lines()
    assert [line.get_label() for line in drawn] == names
    colours = [line.get_color() for line in drawn]
    assert colours[0] == colours[1] != colours[2] == colours[3]
    assert {line.get_linestyle() for line in drawn[1::2]} == {"-"}
    assert {line.get_linestyle() for line in drawn[::2]} == {"--"}
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == names


@pytest.mark.parametrize(("worst", "scale"), [(3.0, "linear"), (90.0, "log")])
def test_a_loss_that_would_flatten_the_others_is_drawn_on_a_log_scale(worst, scale):
    lines = [
        {"name": name, "alpha": [0.0, 1.0], "loss": [0.03, high], "accuracy": [0.1, 0.2]}
        for name, high in (("direct", 2.0), ("Permute", 1.0), ("CCA", worst))
    ]
    assert plot_barrier(lines).axes[0].get_yscale() == scale


def test_a_triangle_is_drawn_for_each_name_with_its_corners():
    weights = triangle_weights(4)
    values = [a + 0.1 for a, _, _ in weights]
    triangles = [
        {"name": name, "weights": weights, "loss": [*values[:-1], None], "accuracy": values}
        for name in ("direct", "direct", "Permute")
    ]
    figure = plot_triangle(triangles, "Title")
    panels = [axes for axes in figure.axes if axes.texts]
    assert len(panels) == 4
    assert all([text.get_text() for text in axes.texts] == ["A", "B", "C"] for axes in panels)
    assert [axes.get_title() for axes in panels[:2]] == ["direct", "Permute"]
    # Where the share of A is largest the accuracy is: the colour there is the scale's end.
    contours = panels[2].collections[0]
    assert contours.norm.vmin == pytest.approx(0.1)
    assert contours.norm.vmax == pytest.approx(1.1)


@pytest.mark.parametrize(("points", "cell"), [(2, "-"), (3, "0.5000"), (4, "-"), (5, "0.5000")])
def test_the_accuracy_in_the_middle_is_that_at_one_half(points, cell):
    alpha = [index / (points - 1) for index in range(points)]
    path = {"name": "x", "alpha": alpha, "accuracy": alpha, "barrier": 0.25}
    assert sweep_of("barrier").tables([path])[0][1] == ["x", "0.2500", "-", cell]
    both = [{**path, "accuracy_barrier": fall} for fall in (0.125, 0.375)]
    assert sweep_of("barrier").tables(both)[0][1] == ["x", "0.2500", "0.2500", cell]


def test_an_accuracy_that_is_no_number_leaves_no_lowest_one():
    # As it is stored, and as it was measured.
    for lost in (None, math.nan):
        found = [{"name": "x", "accuracy": [0.5, lost, 0.25], "barrier": 1.0}]
        assert sweep_of("triangle").tables(found)[0][1] == ["x", "1.0000", "-", "-"]
