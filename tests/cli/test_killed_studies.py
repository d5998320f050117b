"""Studies that are killed or interrupted at any moment go on to what they would have given."""

import json
import signal
import time

import pytest
from killed import (
    Commands,
    killed_at,
    leftovers,
    moments,
    outcome,
    study_words,
    tasks_words,
    wait_for,
)

WORDS = {"study": study_words, "tasks": tasks_words}


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    made = Commands(tmp_path_factory.mktemp("commands"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def whole(commands, tmp_path_factory):
    """For each command what it gives uninterrupted, and the seconds that it takes."""
    found = {}
    for name, words_of in WORDS.items():
        folder = tmp_path_factory.mktemp(name)
        start = time.monotonic()
        commands.run(*words_of(folder, folder / "out"))
        found[name] = (outcome(folder / "out"), time.monotonic() - start)
    return found


def check_kills(name, kills, commands, whole, folder):
    """Kills one study again and again, and lets it end."""
    expected, seconds = whole[name]
    output = folder / "out"
    words = WORDS[name](folder, output)
    ended = [killed_at(commands, words, moment * seconds) for moment in kills]
    assert set(ended) <= {-signal.SIGKILL, 0}
    commands.run(*words)
    assert outcome(output) == expected
    assert leftovers(output) == []
    return ended


@pytest.mark.parametrize("name", WORDS)
def test_a_few_kills(name, commands, whole, tmp_path):
    ended = check_kills(name, moments(3, 3), commands, whole, tmp_path)
    assert -signal.SIGKILL in ended


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("name", WORDS)
def test_many_kills(name, seed, commands, whole, tmp_path):
    check_kills(name, moments(100 + seed, 4), commands, whole, tmp_path)


def in_training(output, words, commands):
    """A command in the first training of a long study."""
    command = commands.start(*words)
    wait_for(lambda: (output / "study.json").is_file(), command)
    time.sleep(0.5)
    return command


def test_an_interrupt_in_training_is_one_line_and_goes_on(commands, whole, tmp_path):
    output = tmp_path / "out"
    command = in_training(output, study_words(tmp_path, output, epochs=5000), commands)
    command.interrupt()
    status, printed = command.ended()
    assert status == 130
    line = "lightning_merge study: interrupted; the same command goes on"
    assert printed.splitlines()[-1] == line
    assert "Traceback" not in printed
    assert printed.count("nterrupt") == 1
    assert leftovers(output) == []
    # Nothing was finished: another number of epochs is another study in the same folder.
    words = study_words(tmp_path, output)
    commands.run(*words, "--overwrite")
    assert outcome(output) == whole["study"][0]


def test_one_process_at_a_time_and_its_number_is_named(commands, tmp_path):
    output = tmp_path / "out"
    words = study_words(tmp_path, output, epochs=5000)
    first = in_training(output, words, commands)
    before = sorted(path.name for path in output.rglob("*"))
    # The same study, and another one in its folder.
    for again in (words, [*words, "--seeds", "[5]", "--overwrite"]):
        status, printed = commands.start(*again).ended()
        assert status == 2
        (line,) = printed.splitlines()
        named = f"is in use by process {first.process} on "
        assert line.startswith(f"lightning_merge study: {output} {named}")
        assert sorted(path.name for path in output.rglob("*")) == before
    first.send(signal.SIGKILL)
    assert first.ended()[0] == -signal.SIGKILL
    assert json.loads((output / ".lock").read_text())[0] == first.process
    # A dead process has no lock, whatever is written there.
    commands.run(*study_words(tmp_path, output), "--overwrite")
    assert leftovers(output) == []
