"""A disk that is full: one line that names the file, and what was there before stays."""

import json
import os
import resource
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lightning_merge.cli import main


@contextmanager
def no_file_above(size):
    """Files cannot grow beyond so many bytes, as on a disk that is full."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Python ignores the signal, and raises the error.
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


def content(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def networks(tmp_path):
    """Two networks of a small and a large tensor, each sharded and as one file, with a start."""
    folder = tmp_path / "networks"
    folder.mkdir()
    for seed, name in enumerate("ab"):
        draw = torch.Generator().manual_seed(seed)
        state = {"body": torch.randn(50, generator=draw), "head": torch.randn(9000, generator=draw)}
        torch.save(state, folder / f"{name}.pt")
        for part in state:
            save_file({part: state[part]}, folder / f"{name}-{part}.safetensors")
        shards = {part: f"{name}-{part}.safetensors" for part in state}
        (folder / f"{name}.index.json").write_text(json.dumps({"weight_map": shards}))
    torch.save({"body": torch.zeros(50), "head": torch.zeros(2)}, folder / "start.pt")
    torch.save({"body": torch.zeros(2)}, folder / "small.pt")
    return folder


COMMANDS = {
    "mean.pt": (["average", "a.pt", "b.pt"], 20_000),
    "mean.ckpt": (["average", "a.pt", "b.pt"], 20_000),
    "mean.safetensors": (["average", "a.pt", "b.pt"], 20_000),
    # Each of these writes a first file that fits, and a later one that does not.
    "mean.index.json": (["average", "a.index.json", "b.index.json"], 20_000),
    "exported": (["export", "small.pt"], 120),
    "masked": (["export", "start.pt", "--masks", "a.pt", "b.pt"], 20_000),
}


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("name", COMMANDS)
def test_all_is_as_it_was(networks, tmp_path, name, before, monkeypatch, capsys):
    monkeypatch.chdir(networks)
    words, most = COMMANDS[name]
    output = tmp_path / "out" / name
    words = [*words, "--output", str(output)]
    if before:
        main(words)
        output.parent.joinpath("mine").write_text("mine")
        for path in content(output.parent):
            path.write_bytes(b"old " + path.read_bytes())
    there = content(tmp_path)
    capsys.readouterr()
    with no_file_above(most), pytest.raises(SystemExit) as stopped:
        main([*words, "--overwrite"])
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "disk is full" in said
    assert str(tmp_path / "out") in said
    assert content(tmp_path) == there


def test_nobody_reads_the_output():
    read, write = os.pipe()
    os.close(read)
    words = [sys.executable, "-m", "lightning_merge", "--help"]
    done = subprocess.run(words, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize("name", ["mean.pt", "mean.index.json"])
def test_what_a_killed_command_left_goes(networks, name, monkeypatch):
    monkeypatch.chdir(networks)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for whose in (dead.pid, os.getppid()):
        Path(f".{whose}-0.partial.safetensors").touch()
    main([*COMMANDS[name][0], "--output", name])
    assert [path.name for path in Path().glob(".*")] == [f".{os.getppid()}-0.partial.safetensors"]
