"""What `--help`, `list` and completion show without torch is what the commands really take."""

import json
import subprocess
import sys

import pytest
from describe_options import described

from lightning_merge.cli import LIGHTNING, OURS, main
from lightning_merge.commands.described import FILE, described_parser, read_described

COMMANDS = read_described()["commands"]
HEAVY = ("torch", "lightning", "jsonargparse", "timm", "matplotlib")


def test_what_is_stored_is_what_the_parsers_have():
    stored, real = json.loads(FILE.read_text(encoding="utf-8")), described()
    for name, command in real["commands"].items():
        assert stored["commands"][name] == command, f"{name}: run `make options`"
    assert stored == real, "run `make options`"


def test_every_option_has_a_sentence():
    for name, command in COMMANDS.items():
        assert command["description"], name
        short = [one["dest"] for one in command["options"] if len(one["help"].split()) < 2]
        assert short == [], name


@pytest.mark.parametrize(
    "words",
    [[], ["completion", "bash"], ["list", "aggregates"], ["list", "presets"]]
    + [[*name.split(), "--help"] for name in COMMANDS],
    ids=" ".join,
)
def test_nothing_heavy_is_imported(words):
    code = (
        "import sys\nfrom lightning_merge.cli import main\n"
        f"try: main({words})\nexcept SystemExit as stopped: assert not stopped.code\n"
        f"print('heavy:', [one for one in {HEAVY} if one in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *shown, heavy = done.stdout.splitlines()
    assert heavy == "heavy: []"
    assert len(shown) > 5


def test_help_names_every_option(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["compare", "--help"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    for option in COMMANDS["compare"]["options"]:
        assert option["flags"][-1] in shown
    assert "--trainer.max_epochs " not in shown
    assert set(LIGHTNING) | set(OURS) <= set(COMMANDS)


def test_the_trainers_options_only_on_request(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["compare", "--trainer.help"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    assert "--trainer.max_epochs MAX_EPOCHS" in shown
    assert "--checkpoints" not in shown
    with pytest.raises(SystemExit):
        main(["compare", "--help.full"])
    assert {"--trainer.max_epochs", "--checkpoints"} <= set(capsys.readouterr().out.split())


def test_a_command_without_a_trainer_says_so(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["average", "--trainer.help"])
    assert stopped.value.code == 2
    assert "no Trainer" in capsys.readouterr().err


def test_options_of_another_package_are_read_from_the_parser(monkeypatch):
    assert described_parser(["study"]) is not None
    monkeypatch.setattr("lightning_merge.commands.described.entry_points", lambda group: [group])
    assert described_parser(["study"]) is None
    assert described_parser(["merge"]) is not None


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_the_completion_is_a_script(capsys, shell, tmp_path):
    main(["completion", shell])
    script = capsys.readouterr().out
    assert "--pool_sizes" in script
    if shell == "bash":
        (tmp_path / "script").write_text(
            script + "COMP_WORDS=(lightning-merge compare --pool); COMP_CWORD=2\n"
            "_shtab_lightning_merge; echo ${COMPREPLY[@]}\n"
        )
        done = subprocess.run(["bash", "script"], cwd=tmp_path, capture_output=True, text=True)
        assert done.stdout.split() == ["--pool_sizes"], done
