"""Alignments that took long are kept beside a study's pieces, and change no result."""

import threading

import pytest
import torch

from lightning_merge import ActivationMatching, Study
from lightning_merge.align.matching.matching import Matching
from lightning_merge.align.matching.merge_many import MergeMany
from lightning_merge.recipe.cache import identity, text_of
from lightning_merge.study import kept_alignments
from lightning_merge.study.claims import Claims
from lightning_merge.study.plan import plan
from lightning_merge.study.runner import do, run
from lightning_merge.study.store import Store
from lightning_merge.study.work import Session

PERMUTED = {"aggregate": "Average", "align": "ActivationMatching", "recalibrate": "batchnorm"}
STUDY = {
    "data": {"class_path": "tiny_contexts.Points"},
    "model": {"class_path": "tiny_contexts.Learner", "init_args": {"norm": True}},
    "ingredients": [{}, {}, {}],
    "training": {"max_epochs": 1},
    "recipes": [
        {"name": "Permuted", **PERMUTED},
        {"name": "Gamma", "aggregate": "Average", "align": "CCAMatching"},
        {"name": "One universe", "aggregate": "Average", "align": "MergeMany"},
    ],
}
LATER = {
    **STUDY,
    "recipes": [*STUDY["recipes"], {"name": "Later", **PERMUTED, "align": "MergeMany"}],
}


@pytest.fixture
def long(monkeypatch):
    """Every alignment counts as long."""
    monkeypatch.setattr(kept_alignments, "LONG", 0.0)


@pytest.fixture
def aligned(monkeypatch):
    """The names of the matchings that were run."""
    names = []
    for kind, name in ((Matching, "aligned"), (MergeMany, "align_many")):
        own = getattr(kind, name)

        def counted(self, *args, own=own, **kwargs):
            names.append(type(self).__name__)
            return own(self, *args, **kwargs)

        monkeypatch.setattr(kind, name, counted)
    return names


def rows(study, folder):
    """What a run of a study gives, without times."""
    found = {}

    def note(work, result, stored):
        del stored
        row = result.get("row", {})
        found[work.name] = (
            {name: value for name, value in row.items() if name != "seconds"},
            result.get("choices", []),
        )

    run(plan(Study(**study)), Store(folder), note, progress=False)
    return found


def test_a_later_run_reads_what_an_earlier_one_aligned(long, aligned, tmp_path):
    first = rows(STUDY, tmp_path / "runs")
    assert sorted(aligned) == ["ActivationMatching"] * 2 + ["MergeMany"]
    again = rows(LATER, tmp_path / "runs")
    assert sorted(aligned) == ["ActivationMatching"] * 2 + ["MergeMany"]
    assert {name: again[name] for name in first} == first
    assert first["Gamma"][1]


def test_it_changes_no_result(long, aligned, tmp_path):
    rows(STUDY, tmp_path / "kept")
    for piece in (tmp_path / "kept").glob("*/result.json"):
        if '"row"' in piece.read_text():
            # The merges go, the alignments stay.
            piece.unlink()
            (piece.parent / "weights.ckpt").unlink()
    before = len(aligned)
    from_kept = rows(STUDY, tmp_path / "kept")
    assert len(aligned) == before
    kept_alignments.LONG = 1e9
    assert from_kept == rows(STUDY, tmp_path / "plain")
    assert len(aligned) > before


def test_short_ones_leave_no_file(tmp_path):
    works = plan(Study(**STUDY))
    run(works, Store(tmp_path / "runs"), progress=False)
    folders = {path.name for path in (tmp_path / "runs").iterdir() if path.is_dir()}
    assert folders == {work.key for work in works}


def test_a_damaged_one_is_made_again(long, aligned, tmp_path):
    first = rows(STUDY, tmp_path / "runs")
    before, keys = len(aligned), {work.key for work in plan(Study(**LATER))}
    for path in (tmp_path / "runs").iterdir():
        if path.is_dir() and path.name not in keys:
            weights = bytearray((path / "weights.ckpt").read_bytes())
            weights[len(weights) // 2] ^= 1
            (path / "weights.ckpt").write_bytes(weights)
    with pytest.warns(UserWarning, match="was changed; the alignment is done again"):
        later = rows(LATER, tmp_path / "runs")
    assert aligned[before:] == ["MergeMany"]
    # The same alignment, and statistics that are reset.
    assert later["Later"][0]["accuracy"] >= 0
    assert {name: later[name] for name in first} == first


def test_what_another_process_aligns_is_waited_for_and_other_pieces_are_done(
    long, aligned, tmp_path, monkeypatch
):
    """A piece that needs it is left for later, and not begun while the alignment is made."""
    store = Store(tmp_path / "runs")
    works = plan(Study(**STUDY))
    run([work for work in works if work.kind == "ingredient"], store, progress=False)
    merge = next(work for work in works if work.name == "Permuted")
    started, go_on = threading.Event(), threading.Event()
    own = ActivationMatching.align

    def slow(self, *args, **kwargs):
        started.set()
        assert go_on.wait(60)
        return own(self, *args, **kwargs)

    monkeypatch.setattr(ActivationMatching, "align", slow)
    other = threading.Thread(
        target=run, args=([*works[:3], merge], Store(store.folder)), kwargs={"progress": False}
    )
    other.start()
    assert started.wait(60)
    claims = Claims(store.folder)
    session = Session(False, claims=claims)
    later = next(
        work
        for work in plan(Study(**{**STUDY, "recipes": [{"name": "Other", **PERMUTED}]}))
        if work.name == "Other"
    )
    assert do(later, store, session, claims) is None
    assert list(session.waiting) == [later.key]
    assert do(later, store, session, claims) is None
    assert aligned == ["ActivationMatching"]
    universe = next(work for work in works if work.name == "One universe")
    assert do(universe, store, session, claims) is True
    go_on.set()
    other.join(60)
    assert do(later, store, session, claims) is True
    assert aligned == ["ActivationMatching", "MergeMany", "ActivationMatching"]


class _Rule:
    def __init__(self, value):
        self.value = value


class _Ruled(Matching):
    def __init__(self, rule):
        self.rule = rule

    def align(self, *args, **kwargs):
        raise AssertionError("it is not run")


def test_what_prints_alike_and_is_not_the_same_has_another_key():
    numbers = torch.zeros(5000)
    other = numbers.clone()
    other[2500] = 1
    assert repr(numbers) == repr(other)
    assert identity(_Ruled(numbers)) != identity(_Ruled(other))
    assert identity(_Ruled(numbers)) == identity(_Ruled(numbers))
    # A new object may have the address of one that is gone.
    assert len({identity(_Ruled(_Rule(value))) for value in range(50)}) == 50
    assert identity(_Ruled(_Rule([1, "a"]))) == identity(_Ruled(_Rule([1, "a"])))


def test_only_what_another_process_would_make_alike_has_a_text():
    assert text_of(("a", identity(_Ruled(_Rule({"b": (1, None)}))))) is not None
    assert text_of(("a", identity(_Ruled(torch.zeros(2))))) is None
    assert text_of(("a", identity(_Ruled(lambda x: x)))) is None
