"""Comparisons that somebody stops: what was there, and what was made, stays."""

import pytest
from tiny_contexts import Learner, Points, trained

from lightning_merge import Average, Recipe, compare

MEAN = Recipe("Mean", Average())


@pytest.fixture(scope="module")
def networks():
    made = []
    for seed in range(3):
        made.append(Learner())
        made[-1].load_state_dict(trained(seed).state_dict())
    return made


class _Stopping(Average):
    """Interrupted, as by Ctrl-C in a long training."""

    def __call__(self, states, context):
        raise KeyboardInterrupt


def test_a_comparison_that_is_stopped_leaves_the_one_that_it_was_to_replace(networks, tmp_path):
    compare(networks[:2], [MEAN], Points(), output=tmp_path, progress=False)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    recipes = [MEAN, Recipe("Stopped", _Stopping())]
    with pytest.raises(KeyboardInterrupt):
        compare(networks[1:], recipes, Points(), output=tmp_path, overwrite=True, progress=False)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*")} == before


def test_a_comparison_that_is_stopped_leaves_the_merges_that_it_has_made(networks, tmp_path):
    recipes = [MEAN, Recipe("Stopped", _Stopping())]
    with pytest.raises(KeyboardInterrupt):
        compare(networks[:2], recipes, Points(), output=tmp_path, progress=False)
    assert [path.name for path in tmp_path.rglob("*.*")] == ["mean.ckpt"]
