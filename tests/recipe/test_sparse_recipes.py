"""SLERP, Karcher mean, Breadcrumbs, DELLA, SCE and Consensus in recipes are their functions."""

from dataclasses import replace

import pytest
import torch
from tiny_contexts import Points, made_context, trained

from lightning_merge import (
    DELLA,
    SCE,
    Breadcrumbs,
    Consensus,
    KarcherMean,
    Slerp,
    consensus,
    karcher_mean,
    slerp,
    task_arithmetic,
    task_vector,
    ties,
)
from lightning_merge.aggregate import breadcrumbs, della, sce_vector
from lightning_merge.errors import ConfigError
from lightning_merge.recipe.aggregate import aggregates


@pytest.fixture(scope="module")
def context():
    start = trained(50, steps=2, norm=True).state_dict()
    return replace(made_context(2, Points(testable=False), norm=True), pretrained=start)


def same(aggregate, context, expected):
    state = aggregate(context.states, context).module.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], value) for name, value in expected.items())


def test_each_is_its_function(context):
    p, states = context.pretrained, context.states
    vectors = [task_vector(state, p) for state in states]
    same(Slerp(0.3), context, slerp(*states, 0.3))
    same(KarcherMean([1.0, 3.0]), context, karcher_mean(states, [1, 3]))
    sparse = breadcrumbs(vectors, 0.3, 0.05)
    same(Breadcrumbs(None, 0.3, 0.05, scale=0.5), context, task_arithmetic(p, sparse, 0.5))
    thinned = della(vectors, 0.6, 0.3, torch.Generator().manual_seed(context.seed))
    same(DELLA(None, 0.6, 0.3, scale=0.5), context, ties(p, thinned, 0.5, 1.0))
    same(SCE(None, 0.4, scale=0.5), context, sce_vector(vectors, 0.4).at(p, 0.5))
    same(Consensus(None, 0.3, 1, scale=0.5), context, consensus(p, vectors, 0.5, 0.3, 1))


def test_counts_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="KarcherMean for more"):
        Slerp().check_count(3)
    with pytest.raises(ConfigError, match="2 weights for 3"):
        KarcherMean([1, 2]).check_count(3)
    with pytest.raises(ConfigError, match=r"t 1\.5"):
        Slerp(1.5)


def test_each_is_listed_with_its_source():
    entries = {entry.name: entry for entry in aggregates}
    for name in (
        *("TSVMerge", "IsoC", "IsoCTS", "CART", "SVC", "Slerp", "KarcherMean"),
        *("Breadcrumbs", "DELLA", "SCE", "Consensus"),
    ):
        assert entries[name].paper
        assert entries[name].line.endswith(".")
