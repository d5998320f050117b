"""Executors: the same results whoever does the pieces, and whichever worker dies."""

import contextlib
import json
import os
import re
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
from test_study_verbs import STUDY, rows_of

from lightning_merge import run_study
from lightning_merge.cli import main
from lightning_merge.errors import ConfigError, MergeError
from lightning_merge.study import executor as executor_module
from lightning_merge.study.executor import executor_of, executors, report_done, work_alone
from lightning_merge.study.plan import Study, plan
from lightning_merge.study.store import Store
from lightning_merge.study_verbs import Watcher

ONE = {**STUDY, "seeds": [0], "training": {"max_epochs": 30}}


def test_there_are_three():
    assert [entry.name for entry in executors] == ["in_process", "ray", "submitit"]
    assert all(entry.line for entry in executors)


@pytest.mark.parametrize(("name", "extra"), [("ray", "ray"), ("submitit", "slurm")])
def test_a_missing_extra_is_named_in_a_line(name, extra, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(executor_module, "find_spec", lambda package: None)
    with pytest.raises(ConfigError, match=rf"{name} is not installed: .*\[{extra}\]"):
        run_study(STUDY, tmp_path / "out", executor=executor_of(name))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("slurm", {}, "'slurm' is none of the executors: choose among in_process, ray, submitit"),
        ("ray", {"partition": "gpu"}, "partition"),
        ("in_process", {"gpus": 1}, "executor_options of in_process"),
    ],
)
def test_a_wrong_executor_is_named_in_a_line(name, options, message):
    with pytest.raises(ConfigError, match=message) as caught:
        executor_of(name, options)
    assert "\n" not in str(caught.value)


def test_an_unknown_parameter_of_a_job_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"executor_options of submitit: .*colour"):
        run_study(
            STUDY,
            tmp_path / "out",
            progress=False,
            executor=executor_of("submitit", {"cluster": "local", "colour": "red"}),
        )


def test_the_command_hands_the_options_on(tmp_path, capsys):
    words = ["study", "--output", str(tmp_path / "out"), "--executor", "cloud"]
    (tmp_path / "study.json").write_text(json.dumps(STUDY))
    with pytest.raises(SystemExit) as ended:
        main([*words, "-c", str(tmp_path / "study.json")])
    assert ended.value.code == 2
    assert "'cloud' is none of the executors" in capsys.readouterr().err


def test_a_worker_does_one_piece_and_says_what_a_user_can_mend(tmp_path):
    (first, *_) = plan(Study(**ONE))
    store = Store(tmp_path)
    assert work_alone(first, tmp_path) == ""
    assert first.key in store
    report_done(first, "", store, None)
    broken = plan(Study(**{**ONE, "recipes": [{"name": "a", "aggregate": "Nothing"}]}))[2]
    for one in plan(Study(**ONE))[:2]:
        work_alone(one, tmp_path)
    message = work_alone(broken, tmp_path)
    assert "Nothing" in message
    with pytest.raises(MergeError, match=r"seed 0, a: .*Nothing"):
        report_done(broken, message, store, None)


def test_the_executor_of_the_page_gives_the_same(whole, tmp_path):
    page = Path(__file__).parents[2] / "docs" / "scaling-out.md"
    (block,) = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S)
    before = dict(executors._entries)
    try:
        exec(compile(block, str(page), "exec"), {"__name__": "page_of_scaling_out"})
        executor = executor_of("backwards")
    finally:
        executors._entries.clear()
        executors._entries.update(before)
    result = run_study(ONE, tmp_path / "out", progress=False, executor=executor)
    assert rows_of(result) == rows_of(whole)


class Killer(threading.Thread):
    """Kills the first worker that claims a piece, as soon as it trains."""

    def __init__(self, folder):
        super().__init__(daemon=True)
        self.folder, self.killed = folder, []

    def run(self):
        end = time.monotonic() + 200
        while not self.killed and time.monotonic() < end:
            for path in self.folder.glob("runs/*.0.claim"):
                with contextlib.suppress(OSError, ValueError):
                    process = json.loads(path.read_text())[2]
                    os.kill(process, signal.SIGKILL)
                    self.killed.append(process)
                    return
            time.sleep(0.005)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return run_study(ONE, tmp_path_factory.mktemp("whole") / "out", progress=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"), [("ray", {}), ("submitit", {"cluster": "local", "timeout_min": 10})]
)
def test_a_killed_workers_piece_is_done_by_another(name, options, whole, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    folder = tmp_path / "out"
    killer = Killer(folder)
    killer.start()
    done = []
    watcher = Watcher(on_done=lambda work, result, stored: done.append((work.name, stored)))
    executor = executor_of(name, options)
    result = run_study(ONE, folder, progress=False, watcher=watcher, executor=executor)
    killer.join()
    assert len(killer.killed) == 1
    assert killer.killed[0] != os.getpid()
    names = ["All", "Ingredient 1", "Ingredient 2", "Mean"]
    assert sorted(done) == [(name, False) for name in names]
    assert rows_of(result) == rows_of(whole)
    assert not list(folder.glob("runs/*.claim"))
    again = run_study(ONE, folder, progress=False, executor=executor)
    assert rows_of(again) == rows_of(whole)
