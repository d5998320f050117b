"""Comparisons that somebody stops: what was there, and what was made, stays."""

import sys
from subprocess import run

import pytest
from tiny_contexts import Points, learners

from lightning_merge import Average, Recipe, compare, merge
from lightning_merge.errors import OutputExistsError
from lightning_merge.folder_lock import lock_folder

MEAN = Recipe("Mean", Average())


@pytest.fixture(scope="module")
def networks():
    return learners(3)


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


def test_two_at_once_do_not_write_into_one_folder(networks, tmp_path):
    said = []

    class Other(Average):
        """While it runs, another process wants the same folder."""

        def __call__(self, states, context):
            code = (
                "import sys; from lightning_merge.folder_lock import lock_folder\n"
                "with lock_folder(sys.argv[1]): pass"
            )
            found = run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True)
            said.append(found.stderr.splitlines()[-1:])
            return super().__call__(states, context)

    recipe = Recipe("Mean", Other())
    compare(networks[:2], [recipe], Points(), output=tmp_path, progress=False)
    merge(networks[:2], recipe, Points(), output=tmp_path, progress=False)
    assert ["is in use by process" in line[0] for line in said] == [True, True]
    assert not list(tmp_path.glob(".lock"))


def test_a_folder_in_use_is_left_as_it_is(networks, tmp_path):
    with lock_folder(tmp_path / "out"):
        for verb, given in ((compare, [MEAN]), (merge, MEAN)):
            with pytest.raises(OutputExistsError, match="is in use by process"):
                verb(networks[:2], given, Points(), output=tmp_path / "out", progress=False)
