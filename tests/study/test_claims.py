"""Claims: one process at a time, whoever dies, whatever the clocks say."""

import errno
import json
import multiprocessing
import os
import subprocess
import sys
import threading
import time

import pytest

from lightning_merge.processes import begun, here
from lightning_merge.study.claims import Claims


def claim_of(folder, process, turn=0, machine=None, start="1"):
    """Writes a claim as another process would have."""
    owner = [*(machine or here()), process, start, 7]
    (folder / f"a.{turn}.claim").write_text(json.dumps(owner))


def ours(claims, key="a"):
    with claims.claimed(key) as mine:
        return mine


def test_a_claim_is_for_one_and_leaves_nothing(tmp_path):
    first, second = Claims(tmp_path), Claims(tmp_path)
    with first.claimed("a") as mine:
        assert mine
        assert not ours(second)
        # Of other pieces, one that begins alike among them, others can be claimed.
        assert ours(second, "b")
        assert ours(second, "a.b")
        assert [path.name for path in tmp_path.iterdir()] == ["a.0.claim"]
    assert list(tmp_path.iterdir()) == []
    assert ours(second)


def test_a_claim_ends_with_an_error(tmp_path):
    with pytest.raises(KeyError), Claims(tmp_path).claimed("a"):
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_the_claim_of_a_dead_process_is_taken_over_at_once(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", ""])
    start = begun(process.pid)
    process.wait()
    claim_of(tmp_path, process.pid, start=start)
    assert begun(process.pid) is None
    assert ours(Claims(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_later_process_with_the_same_number_is_not_the_owner(tmp_path):
    claim_of(tmp_path, os.getpid(), start="1")
    assert ours(Claims(tmp_path))
    claim_of(tmp_path, os.getpid(), start=begun(os.getpid()))
    assert not ours(Claims(tmp_path))


def test_another_machines_claim_lives_as_long_as_it_beats(tmp_path):
    path = tmp_path / "a.0.claim"
    # Its number says nothing here, and its clock may be hours off in either direction.
    for hours in (-5, 5):
        claim_of(tmp_path, 10**9, machine=["elsewhere", "its own"])
        claims = Claims(tmp_path, patience=0.4)
        begin = time.monotonic()
        beat = time.time() + hours * 3600
        while time.monotonic() - begin < 1.0:
            beat += 0.05
            os.utime(path, (beat, beat))
            assert not ours(claims)
            time.sleep(0.05)
        while not ours(claims):
            assert time.monotonic() - begin < 20
            time.sleep(0.05)
        assert time.monotonic() - begin > 1.3
        assert not path.exists()


def test_a_claim_beats_in_the_time_of_the_file_system(tmp_path):
    with Claims(tmp_path, beat=0.05).claimed("a"):
        path = tmp_path / "a.0.claim"
        os.utime(path, (1, 1))
        end = time.monotonic() + 20
        while path.stat().st_mtime == 1:
            assert time.monotonic() < end
            time.sleep(0.02)


def test_a_successor_of_the_dead_one_that_has_begun_is_left_alone(tmp_path):
    claims = Claims(tmp_path)
    claim_of(tmp_path, 10**9)
    found = claims._look("a")
    # Meanwhile another took over, ended, and a third began anew.
    (tmp_path / "a.0.claim").unlink()
    with Claims(tmp_path).claimed("a") as third:
        assert third
        claims._look = lambda key: found
        assert not ours(claims)
        assert [path.name for path in tmp_path.iterdir()] == ["a.0.claim"]


def test_a_claim_on_what_a_dead_one_no_longer_holds_is_withdrawn(tmp_path):
    """A third may be making the first turn's at this moment, and would not see the second's."""
    claims = Claims(tmp_path)
    claim_of(tmp_path, 10**9)
    found = claims._look("a")
    # Meanwhile another took over, and ended.
    (tmp_path / "a.0.claim").unlink()
    claims._look = lambda key: found
    assert not ours(claims)
    assert list(tmp_path.iterdir()) == []


def test_of_many_one_takes_over(tmp_path):
    """Threads of one process, each with claims of its own, fight for a dead one's piece."""
    for _ in range(30):
        claim_of(tmp_path, 10**9)
        together, won, most = threading.Barrier(8), [], []

        def fight(together=together, won=won, most=most):
            claims = Claims(tmp_path)
            together.wait()
            for _ in range(20):
                with claims.claimed("a") as mine:
                    if mine:
                        won.append(1)
                        most.append(sum(won))
                        time.sleep(0.001)
                        won.pop()

        threads = [threading.Thread(target=fight) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert set(most) == {1}
        assert list(tmp_path.iterdir()) == []


def _count(folder, start, results):
    start.wait()
    claims = Claims(folder)
    for number in range(60):
        with claims.claimed(f"k{number}") as mine:
            if mine and not (folder / f"done{number}").exists():
                (folder / f"done{number}").touch()
                results.put(number)
    results.put(None)


def test_processes_divide_pieces_among_them(tmp_path):
    context = multiprocessing.get_context("fork")
    start, results = context.Event(), context.Queue()
    made = [context.Process(target=_count, args=(tmp_path, start, results)) for _ in range(3)]
    for process in made:
        process.start()
    start.set()
    found, ended = [], 0
    while ended < 3:
        one = results.get(timeout=60)
        ended += one is None
        found += [] if one is None else [one]
    for process in made:
        process.join()
    assert sorted(found) == list(range(60))


def test_what_dead_processes_left_is_swept_and_nothing_else(tmp_path):
    claim_of(tmp_path, os.getpid(), turn=0, start="1")
    claim_of(tmp_path, os.getpid(), turn=1, start="2")
    (tmp_path / "a.claim").write_text("no claim")
    others = {
        "b.0.claim": [*here(), os.getpid(), begun(os.getpid()), 7],
        "c.0.claim": ["elsewhere", "1", os.getpid(), "1", 7],
    }
    for name, owner in others.items():
        (tmp_path / name).write_text(json.dumps(owner))
    Claims(tmp_path).sweep()
    assert {path.name for path in tmp_path.iterdir()} == {*others, "a.claim"}


def test_a_claim_that_does_not_fit_the_disk_is_none(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(json, "dump", full)
    with pytest.raises(OSError, match=r"a\.0\.claim"):
        ours(Claims(tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"5", b"[1, 2]", b'[[], "", "x", null, 0]'])
def test_a_damaged_claim_is_waited_for_and_taken_over(content, tmp_path):
    (tmp_path / "a.0.claim").write_bytes(content)
    claims = Claims(tmp_path, patience=0.01)
    assert not ours(claims)
    time.sleep(0.02)
    assert ours(claims)
    assert list(tmp_path.iterdir()) == []
