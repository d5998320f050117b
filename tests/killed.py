"""Commands in processes of their own, stopped by a signal at a moment that is known or drawn."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import yaml
from lightning.pytorch import Callback

_PATIENCE = 240
# In the commands' working folder.
_SHUT = "shut"
# Runs one command in a copy of a process that has imported everything; the parent's only thread.
_SERVER = """
import ctypes, os, signal, sys
def die_with_parent():
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
die_with_parent()
# Ignored, and inherited so, where the tests run in the background of a shell.
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
from lightning_merge.cli import main
import lightning_merge.commands.study, lightning_merge.commands.tasks
import lightning_merge.plots, lightning_merge.networks, matplotlib.figure, tiny_tasks
import lightning_merge.study.kinds.training, lightning_merge.study.kinds.merging
import lightning_merge.study.kinds.task_merging, lightning_merge.data.sets.digits, killed
import unrendered
# Rendering would take longer than all else.
matplotlib.figure.Figure.savefig = unrendered.instead_of_savefig
print("ready", flush=True)
for line in sys.stdin:
    log, *words = line.rstrip("\\n").split("\\t")
    if log == "wait":
        print(os.waitpid(int(words[0]), 0)[1], flush=True)
        continue
    child = os.fork()
    if child == 0:
        os.setsid()
        die_with_parent()
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        code = 0
        try:
            main(words)
        except SystemExit as error:
            code = error.code or 0
        except BaseException as error:
            import traceback
            traceback.print_exc()
            code = 1
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    print(child, flush=True)
"""


class Commands:
    """Starts commands quickly, each in a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        environment = {**os.environ, "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
        self.server = subprocess.Popen(
            [sys.executable, "-c", _SERVER, str(Path(__file__).parent)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=folder,
            env=environment,
        )
        self.started = 0
        self.running: dict[int, Command] = {}
        assert self.server.stdout.readline() == "ready\n"

    def _ask(self, *words) -> int:
        self.server.stdin.write("\t".join(map(str, words)) + "\n")
        self.server.stdin.flush()
        return int(self.server.stdout.readline())

    def start(self, *words) -> "Command":
        """Starts a command."""
        self.started += 1
        log = self.folder / f"log{self.started}"
        command = Command(self, self._ask(log, *words), log)
        self.running[command.process] = command
        return command

    def run(self, *words) -> str:
        """What a command that succeeds printed."""
        status, said = self.start(*words).ended()
        assert status == 0, said
        return said

    def shut(self) -> None:
        """Shuts the gate before which trainings wait (`Gate`)."""
        (self.folder / _SHUT).touch()

    def open(self) -> None:
        """Opens the gate."""
        (self.folder / _SHUT).unlink(missing_ok=True)

    def kill(self) -> None:
        """Kills all that are running, with the processes that they started."""
        for command in list(self.running.values()):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(command.process, signal.SIGKILL)
            command.ended()
        self.open()

    def close(self) -> None:
        self.kill()
        self.server.stdin.close()
        self.server.wait(_PATIENCE)
        self.server.stdout.close()


class Command:
    """A command that was started."""

    def __init__(self, commands: Commands, process: int, log: Path) -> None:
        self.commands, self.process, self.log = commands, process, log

    def ended(self) -> tuple[int, str]:
        """The exit status, minus the signal that ended it, and what was printed."""
        status = self.commands._ask("wait", self.process)
        self.commands.running.pop(self.process, None)
        return os.waitstatus_to_exitcode(status), self.log.read_text()

    def send(self, number: signal.Signals) -> None:
        """Sends a signal; until `ended` was called, no other process has its number."""
        os.kill(self.process, number)

    def interrupt(self) -> None:
        """Ctrl-C, and again where Python was in a place that ignores what is raised in it."""
        for _ in range(5):
            self.send(signal.SIGINT)
            for _ in range(100):
                if "nterrupt" in self.log.read_text():
                    return
                time.sleep(0.1)


class Gate(Callback):
    """Trainings wait before their first step while the gate is shut."""

    def on_train_start(self, trainer, pl_module) -> None:
        while Path(_SHUT).exists():
            time.sleep(0.01)


def wait_for(there: Callable[[], bool], command: Command) -> None:
    """Until `there()` is true."""
    end = time.monotonic() + _PATIENCE
    while not there():
        assert time.monotonic() < end, command.log.read_text()
        time.sleep(0.002)


def killed_at(commands: Commands, words, seconds: float) -> int:
    """Starts a command, kills it after so long; the signal with a minus, or its exit status."""
    command = commands.start(*words)
    time.sleep(seconds)
    command.send(signal.SIGKILL)
    return command.ended()[0]


def outcome(output: Path):
    """What a study leaves: its results without times, and the bits of every merge."""
    results = _timeless(json.loads((output / "results.json").read_text()))
    for name in ("made_by", "command", "commit", "versions", "platform", "device", "time"):
        results.pop(name, None)
    merges = {}
    for path in sorted((output / "merges").rglob("*.ckpt")):
        state = torch.load(path, weights_only=True)["state_dict"]
        merges[str(path.relative_to(output))] = {
            name: (str(value.dtype), value.numpy().tobytes()) for name, value in state.items()
        }
    return results, merges


def leftovers(output: Path) -> list[Path]:
    """What is there of stopped commands that no later one goes on with."""
    hidden = output.rglob(".*")
    left = [path for path in hidden if "partial" in path.name or path.name in (".lock", ".turn")]
    finished = (path.with_name("training.ckpt") for path in output.glob("runs/*/result.json"))
    return [*left, *output.glob("runs/*.claim"), *filter(Path.exists, finished)]


def _timeless(value):
    timed = ("second", "time", "made_by", "made by", "load")
    if isinstance(value, dict):
        return {
            key: _timeless(one)
            for key, one in value.items()
            if not any(word in key for word in timed)
        }
    return [_timeless(one) for one in value] if isinstance(value, list) else value


def study_words(folder: Path, output: Path, epochs: int = 2) -> list[str]:
    """A study of linear classifiers of the digits."""
    config = {
        "seeds": [0],
        "model": {
            "class_path": "ImageClassifier",
            "init_args": {
                **{"model": "linear_classifier", "num_classes": 10, "in_chans": 1},
                "model_kwargs": {"img_size": 8},
            },
        },
        "data": {"class_path": "DigitsDataModule", "init_args": {"batch_size": 256}},
        "training": {"max_epochs": epochs},
        "trainer": {
            **{"accelerator": "cpu", "enable_progress_bar": False},
            "callbacks": [{"class_path": "killed.Gate"}],
        },
        "recipes": [
            {"name": "Mean", "aggregate": "Average"},
            {"name": "Ensemble", "aggregate": "LogitsEnsemble"},
        ],
    }
    (folder / "study.yaml").write_text(yaml.safe_dump(config))
    return ["study", "-c", str(folder / "study.yaml"), "--output", str(output)]


def tasks_words(folder: Path, output: Path) -> list[str]:
    """Two tasks of made points, and one that is unseen."""

    def data(name):
        arguments = {"name": name, "testable": True}
        return {"class_path": "tiny_tasks.Points", "init_args": arguments}

    config = {
        "seeds": [0],
        "model": {"class_path": "tiny_tasks.Classifier"},
        "pretraining": {"data": data("a"), "trainer": {"max_epochs": 1}},
        "training": {"max_epochs": 1},
        "trainer": {"accelerator": "cpu", "enable_progress_bar": False},
        "tasks": [
            *({"name": name, "data": data(name)} for name in "bc"),
            {"name": "d", "data": data("d"), "unseen": True},
        ],
        "recipes": [{"name": "Mean", "aggregate": "Average", "recalibrate": "batchnorm"}],
    }
    (folder / "tasks.yaml").write_text(yaml.safe_dump(config))
    return ["tasks", "-c", str(folder / "tasks.yaml"), "--output", str(output)]


def moments(seed: int, count: int) -> list[float]:
    """Shares of a command's time."""
    draw = random.Random(seed)
    return [draw.random() for _ in range(count)]
