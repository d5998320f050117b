import copy

import pytest

from lightning_merge import Study
from lightning_merge.errors import ConfigError
from lightning_merge.study.plan import plan


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
        "sweeps": {"barrier": 5},
    }
    return Study(**{**copy.deepcopy(arguments), **changes})


def keys(planned, kind=None):
    return {work.key for work in plan(planned) if kind in (None, work.kind)}


def test_each_seed_has_ingredients_then_merges_then_a_barrier():
    works = plan(study())
    kinds = ["ingredient", "ingredient", "merge", "merge", "sweep"]
    assert [work.kind for work in works] == kinds * 2
    assert [work.seed for work in works] == [0] * 5 + [1] * 5
    assert len({work.key for work in works}) == 10
    for work in works[2:5]:
        assert work.needs == (works[0].key, works[1].key)
    assert works[4].settings["sweep"] == "barrier"
    assert plan(study()) == works


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
    changed = study(recipes=[mean("mean", align="WeightMatching"), mean("other")])
    assert keys(study(), "ingredient") == keys(changed, "ingredient")
    assert len(keys(study(), "merge") & keys(changed, "merge")) == 2
    # Another alignment is another path.
    assert not keys(study(), "sweep") & keys(changed, "sweep")


def test_fewer_examples_for_statistics_change_merges_and_paths_but_no_ingredient():
    fewer = study(statistics_examples=100)
    assert keys(study(), "ingredient") == keys(fewer, "ingredient")
    assert not keys(study(), "merge") & keys(fewer, "merge")
    assert not keys(study(), "sweep") & keys(fewer, "sweep")


def test_a_triangle_comes_after_the_barrier():
    three = {"ingredients": [{"part": 0}, {"part": 1}, {"part": 2}], "seeds": [0]}
    works = plan(study(sweeps={"barrier": 5, "triangle": 3}, **three))
    assert [work.settings["sweep"] for work in works[-2:]] == ["barrier", "triangle"]
    assert [line["name"] for line in works[-1].settings["of"]["lines"]] == ["direct"]
    assert keys(study(**three)) < {work.key for work in works}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": []}, "seeds"),
        ({"seeds": [1, 1]}, "seeds"),
        ({"ingredients": [{}]}, "two ingredients"),
        ({"sweeps": {"triangle": 3}}, "between three ingredients"),
    ],
)
def test_a_study_that_cannot_be_done_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        plan(study(**changes))
