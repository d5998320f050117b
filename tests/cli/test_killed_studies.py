"""Studies that are killed or interrupted at any moment go on to what they would have given."""

import json
import random
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
def server(tmp_path_factory):
    made = Commands(tmp_path_factory.mktemp("commands"))
    yield made
    made.close()


@pytest.fixture
def commands(server):
    """Starts commands, none of which outlives its test."""
    yield server
    server.kill()


@pytest.fixture(scope="module")
def whole(server, tmp_path_factory):
    """For each command what it gives uninterrupted, and the seconds that it takes."""
    found = {}
    for name, words_of in WORDS.items():
        folder = tmp_path_factory.mktemp(name)
        start = time.monotonic()
        server.run(*words_of(folder, folder / "out"))
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
    """A command in the first training of a study, before a shut gate."""
    commands.shut()
    command = commands.start(*words)
    wait_for(lambda: claims(output), command)
    return command


def claims(output):
    """The claims on pieces of work that are being done."""
    return list(output.glob("runs/*.claim"))


@pytest.mark.parametrize(("word", "expected"), [("interrupted", 130), ("terminated", 143)])
def test_a_signal_in_training_is_one_line_and_goes_on(word, expected, commands, whole, tmp_path):
    output = tmp_path / "out"
    command = in_training(output, study_words(tmp_path, output, epochs=5000), commands)
    commands.open()
    time.sleep(0.5)
    if word == "interrupted":
        command.interrupt()
    else:
        command.send(signal.SIGTERM)
    status, printed = command.ended()
    assert status == expected
    line = f"lightning_merge study: {word}; the same command goes on"
    assert printed.splitlines()[-1] == line
    assert "Traceback" not in printed
    assert printed.count(word[1:]) == 1
    assert leftovers(output) == []
    # Nothing was finished: another number of epochs is another study in the same folder.
    words = study_words(tmp_path, output)
    commands.run(*words, "--overwrite")
    assert outcome(output) == whole["study"][0]


def test_another_study_waits_for_those_that_work_in_the_folder(commands, tmp_path):
    output = tmp_path / "out"
    words = study_words(tmp_path, output)
    first = in_training(output, words, commands)
    before = (output / "study.json").read_text()
    # Another study in the folder, and one that does less.
    for again in (["--training", "{max_epochs: 1}"], ["--seeds", "[5]"]):
        status, printed = commands.start(*words, *again, "--overwrite").ended()
        assert status == 2
        (line,) = printed.splitlines()
        named = f"is in use by process {first.process} on "
        assert line.startswith(f"lightning_merge study: {output} {named}")
        assert (output / "study.json").read_text() == before
    first.send(signal.SIGKILL)
    assert first.ended()[0] == -signal.SIGKILL
    (line,) = (output / ".lock").read_text().splitlines()[:1]
    assert json.loads(line)[0] == first.process
    # A dead process has no lock and no claim, whatever is written there.
    commands.open()
    commands.run(*words)
    assert leftovers(output) == []


SEEDS = ["--seeds", "[0, 1]"]


@pytest.fixture(scope="module")
def of_one(server, tmp_path_factory):
    """What one process gives for two seeds."""
    folder = tmp_path_factory.mktemp("one")
    server.run(*study_words(folder, folder / "out"), *SEEDS)
    return outcome(folder / "out")


def done_by(printed):
    """The pieces that a command has done itself."""
    lines = [line.strip() for line in printed.splitlines() if line.strip().startswith("seed ")]
    return [line.split(":")[0] for line in lines if "(stored)" not in line]


def two_in_training(commands, output, words):
    """Two commands that each have a piece of work, before a shut gate."""
    first = in_training(output, words, commands)
    second = commands.start(*words)
    wait_for(lambda: len(claims(output)) == 2, second)
    return first, second


def test_two_processes_share_a_study(commands, of_one, tmp_path):
    output = tmp_path / "out"
    words = study_words(tmp_path, output)
    both = two_in_training(commands, output, [*words, *SEEDS])
    commands.open()
    ended = [command.ended() for command in both]
    assert [status for status, _ in ended] == [0, 0], ended
    done = [done_by(printed) for _, printed in ended]
    # Two ingredients and two merges of each seed, each made by one of the two.
    assert len(done[0] + done[1]) == len(set(done[0] + done[1])) == 8
    assert min(map(len, done)) > 0
    assert outcome(output) == of_one
    assert leftovers(output) == []


def test_what_a_killed_process_had_claimed_the_other_does(commands, of_one, tmp_path):
    output = tmp_path / "out"
    words = study_words(tmp_path, output)
    first, second = two_in_training(commands, output, [*words, *SEEDS])
    first.send(signal.SIGKILL)
    assert first.ended()[0] == -signal.SIGKILL
    commands.open()
    status, printed = second.ended()
    assert status == 0, printed
    assert len(done_by(printed)) == 8
    assert outcome(output) == of_one
    assert leftovers(output) == []


def test_a_study_grows_while_it_runs(commands, of_one, tmp_path):
    output = tmp_path / "out"
    words = study_words(tmp_path, output)
    first = in_training(output, [*words, "--seeds", "[0]"], commands)
    second = commands.start(*words, "--seeds", "[1]")
    wait_for(lambda: len(claims(output)) == 2, second)
    commands.open()
    assert [one.ended()[0] for one in (first, second)] == [0, 0]
    # Whichever ended last, the report is of both seeds.
    assert outcome(output) == of_one


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_two_processes_of_which_either_is_killed(commands, of_one, tmp_path, seed):
    output = tmp_path / "out"
    words = study_words(tmp_path, output)
    draw = random.Random(seed)
    for _ in range(3):
        both = [commands.start(*words, *SEEDS) for _ in range(2)]
        time.sleep(4 * draw.random())
        draw.choice(both).send(signal.SIGKILL)
        assert {one.ended()[0] for one in both} <= {0, -signal.SIGKILL}
    commands.run(*words, *SEEDS)
    assert outcome(output) == of_one
    assert leftovers(output) == []
