"""Spectral aggregates in recipes: they are their functions, alone and under a search."""

import copy
from dataclasses import replace

import pytest
import torch
from tiny_contexts import Points, made_context, trained

from lightning_merge import (
    CART,
    SVC,
    IsoC,
    IsoCTS,
    LogitsEnsemble,
    TaskArithmetic,
    TSVMerge,
    cart,
    iso_c,
    iso_cts,
    svc,
    task_arithmetic,
    task_vector,
    tsv_merge,
)
from lightning_merge.errors import ConfigError
from lightning_merge.recipe.aggregates import Average, RepresentationSurgery
from lightning_merge.recipe.build import build_recipe


@pytest.fixture(scope="module")
def start():
    return trained(50, steps=4, norm=True)


@pytest.fixture
def context(start):
    tuned = []
    for seed in range(3):
        module = copy.deepcopy(start).train()
        optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
        x, y = Points()._points(20 + seed, 64).dataset.tensors
        for _ in range(10):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(module(x), y).backward()
            optimizer.step()
        tuned.append(module.eval().state_dict())
    made = made_context(3, Points(testable=False), norm=True)
    return replace(made, states=tuned, pretrained=start.state_dict())


def same(merged, expected):
    state = merged.module.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], value) for name, value in expected.items())


def test_each_is_its_function(start, context):
    p, states = start.state_dict(), context.states
    vectors = [task_vector(state, p) for state in states]
    same(TSVMerge()(states, context), tsv_merge(p, vectors))
    same(IsoC(scale=0.7)(states, context), iso_c(p, vectors, 0.7))
    same(IsoCTS(common=0.5, scale=0.7)(states, context), iso_cts(p, vectors, 0.7, 0.5))
    same(CART(0.3, scale=1.5)(states, context), cart(states, 1.5, 0.3))
    plain = task_arithmetic(p, vectors, 0.4)
    same(SVC(TaskArithmetic(scale=0.4), 0.2)(states, context), svc(p, vectors, plain, 0.2))


@pytest.mark.parametrize("aggregate", [IsoC(), CART(), SVC(IsoC())], ids=["iso", "cart", "svc"])
def test_a_scale_is_searched_on_held_out_data(context, aggregate):
    aggregate.check(context)
    merged = aggregate(context.states, context)
    assert merged.labelled_examples == 70
    assert set(merged.choices[0].details["scores"]) == {f"{k / 10:g}" for k in range(0, 31, 2)}


def test_svc_is_named_with_what_it_corrects():
    inner = {"class_path": "TSVMerge", "init_args": {"scale": 0.5}}
    recipe = build_recipe(
        {"name": "both", "aggregate": {"class_path": "SVC", "init_args": {"aggregate": inner}}}
    )
    assert isinstance(recipe.aggregate.aggregate, TSVMerge)
    assert recipe.aggregate.aggregate.scale == 0.5


def test_what_has_no_pretrained_network_is_refused_unless_it_needs_none(context):
    bare = replace(context, pretrained=None)
    CART(scale=1.0).check(bare)
    for aggregate in (TSVMerge(), IsoC(), IsoCTS(), SVC(CART())):
        with pytest.raises(ConfigError, match="fine-tuned from"):
            aggregate.check(bare)
    with pytest.raises(ConfigError, match="several networks"):
        SVC(LogitsEnsemble())


class Remembered(Average):
    """A mean that the cache had, at so many seconds when it was made."""

    def __call__(self, states, context):
        return replace(super().__call__(states, context), seconds=1000.0)


def test_svc_counts_the_time_of_what_it_corrects_and_keeps_no_second_network(context):
    assert SVC(Remembered())(context.states, context).seconds == 1000.0
    with pytest.raises(ConfigError, match="RepresentationSurgery gives several networks"):
        SVC(RepresentationSurgery(Average()))
