import copy

import pytest

from lightning_merge.errors import ConfigError
from lightning_merge.study.plan import Study, plan


def mean(name, **changes):
    return {"name": name, "aggregate": "Average", **changes}


def study(**changes):
    arguments = {
        "data": {"class_path": "Digits", "init_args": {"split_seed": 0, "batch_size": 8}},
        "model": {"class_path": "Net", "init_args": {"width": 1}},
        "recipes": [mean("mean"), mean("other")],
        "ingredients": [{"part": 0}, {"part": 1}],
        "training": {"max_epochs": 3},
        "seeds": [0, 1],
        "barrier": 5,
    }
    return Study(**{**copy.deepcopy(arguments), **changes})


def keys(planned, kind=None):
    return {task.key for task in plan(planned) if kind in (None, task.kind)}


def test_each_seed_has_ingredients_then_merges_then_a_barrier():
    tasks = plan(study())
    kinds = ["ingredient", "ingredient", "merge", "merge", "barrier"]
    assert [task.kind for task in tasks] == kinds * 2
    assert [task.seed for task in tasks] == [0] * 5 + [1] * 5
    assert len({task.key for task in tasks}) == 10
    for task in tasks[2:5]:
        assert task.needs == (tasks[0].key, tasks[1].key)
    assert plan(study()) == tasks


def test_ingredients_differ_in_seed_and_part_and_share_the_split():
    first, second = plan(study())[5:7]
    assert (first.settings["seed"], second.settings["seed"]) == (1000, 1001)
    assert first.settings["data"]["init_args"] == {"split_seed": 1, "batch_size": 8, "part": 0}
    assert second.settings["data"]["init_args"] == {"split_seed": 1, "batch_size": 8, "part": 1}
    merge = plan(study())[7]
    assert merge.settings["data"]["init_args"] == {"split_seed": 1, "batch_size": 8}


def test_a_data_module_without_a_split_seed_is_given_none():
    data = {"class_path": "Theirs", "init_args": {"root": "x"}}
    assert plan(study(data=data))[0].settings["data"]["init_args"] == {"root": "x", "part": 0}


@pytest.mark.parametrize(
    "changes",
    [
        {"model": {"class_path": "Net", "init_args": {"width": 2}}},
        {"data": {"class_path": "Digits", "init_args": {"split_seed": 0, "batch_size": 9}}},
        {"training": {"max_epochs": 4}},
        {"trainer": {"precision": "bf16-mixed"}},
    ],
)
def test_what_determines_an_ingredient_changes_every_key(changes):
    assert not keys(study()) & keys(study(**changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"title": "another"},
        {"trainer": {"logger": {"class_path": "CSVLogger"}, "enable_progress_bar": False}},
    ],
)
def test_what_is_only_shown_changes_no_key(changes):
    assert keys(study()) == keys(study(**changes))


def test_another_recipe_keeps_what_was_done():
    more = study(recipes=[mean("mean"), mean("other"), mean("third")], seeds=[0, 1, 2])
    assert keys(study()) < keys(more)
    changed = study(recipes=[mean("mean", align="X"), mean("other")])
    assert keys(study(), "ingredient") == keys(changed, "ingredient")
    assert len(keys(study(), "merge") & keys(changed, "merge")) == 2
    # Another alignment is another line.
    assert not keys(study(), "barrier") & keys(changed, "barrier")


def test_fewer_examples_for_statistics_change_merges_and_lines_but_no_ingredient():
    fewer = study(statistics_examples=100)
    assert keys(study(), "ingredient") == keys(fewer, "ingredient")
    assert not keys(study(), "merge") & keys(fewer, "merge")
    assert not keys(study(), "barrier") & keys(fewer, "barrier")


def test_a_triangle_comes_after_the_barrier():
    tasks = plan(study(triangle=3, seeds=[0]))
    assert [task.kind for task in tasks[-2:]] == ["barrier", "triangle"]
    assert [line["name"] for line in tasks[-1].settings["lines"]] == ["direct"]
    assert keys(study(seeds=[0])) < {task.key for task in tasks}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": []}, "seeds"),
        ({"seeds": [1, 1]}, "seeds"),
        ({"ingredients": [{}]}, "two ingredients"),
    ],
)
def test_a_study_that_cannot_be_done_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        plan(study(**changes))
