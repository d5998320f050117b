"""`average` of files: what it writes is what `aggregate.average` gives, bit for bit."""

import errno
import json
import os
import subprocess
import sys
import threading

import pytest
import torch
from safetensors.torch import load_file, safe_open, save_file

from lightning_merge.aggregate import (
    StateOnDisk,
    average,
    exact_mean,
    greedy_soup,
    interpolate,
    model_stock,
    task_arithmetic,
    task_vector,
    ties,
)
from lightning_merge.aggregate.files_to_average import open_files
from lightning_merge.cli import main
from lightning_merge.errors import MergeError


def network(seed):
    g = torch.Generator().manual_seed(seed)
    return {
        "body.weight": torch.randn(70, 900, generator=g),
        "body.half": torch.randn(33, generator=g).half(),
        "body.brain": torch.randn(2, 5, generator=g).bfloat16(),
        "body.double": torch.randn(7, generator=g).double(),
        "body.scalar": torch.randn((), generator=g),
        "body.empty": torch.zeros(0, 3),
        "body.num_batches_tracked": torch.tensor(seed),
        "head.flags": torch.tensor([True, False]),
        "head.absent": torch.zeros(0, dtype=torch.long),
        "head.weight": torch.randn(4, 3, generator=g),
    }


def same(a, b):
    return a.keys() == b.keys() and all(
        a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a
    )


@pytest.fixture
def files(tmp_path):
    """Three networks, each in a format of its own, with their state dicts."""
    states = [network(seed) for seed in (1, 2, 3)]
    paths = [tmp_path / name for name in ("a.safetensors", "b.ckpt", "c.pt")]
    save_file(states[0], paths[0])
    torch.save({"state_dict": states[1], "epoch": 4, "hyper_parameters": {"lr": 1}}, paths[1])
    torch.save(states[2], paths[2])
    return [str(path) for path in paths], states


@pytest.mark.parametrize("ending", [".safetensors", ".pt", ".ckpt", ".safetensors.index.json"])
def test_files_of_all_kinds_into_files_of_all_kinds(files, tmp_path, ending, monkeypatch, capsys):
    monkeypatch.setattr(exact_mean, "_BLOCK", 1000)
    paths, states = files
    output = tmp_path / f"out{ending}"
    main(["average", *paths, "-o", str(output), "--weights", "1", "2", "0.5"])
    expected = average(states, [1, 2, 0.5])
    assert same(dict(StateOnDisk(output)), expected)
    if ending == ".safetensors":
        assert same(load_file(output), expected)
    if ending == ".pt":
        assert same(torch.load(output, weights_only=True), expected)
    assert capsys.readouterr().out.count("\n") == 1
    assert not [name for name in os.listdir(tmp_path) if "partial" in name]


def test_paths_where_state_dicts_go(files):
    paths, states = files
    assert same(average(paths), average(states))
    assert same(interpolate(*paths[:2], 0.3), interpolate(*states[:2], 0.3))
    vector = task_vector(states[1], states[0])
    assert same(task_vector(paths[1], paths[0]), vector)
    moved = task_arithmetic(states[0], [vector], 0.4)
    assert same(task_arithmetic(paths[0], [vector], 0.4), moved)
    assert same(ties(paths[0], [vector], 0.4), ties(states[0], [vector], 0.4))
    assert same(model_stock(paths[0], paths[1:]), model_stock(states[0], states[1:]))
    soups = [greedy_soup(given, lambda s: s["body.scalar"].item())[0] for given in (paths, states)]
    assert same(*soups)


def test_exponential_weights_favour_the_last(files, tmp_path):
    paths, states = files
    main(["average", *paths, "-o", str(tmp_path / "o.pt"), "--exponential", "0.5"])
    assert same(torch.load(tmp_path / "o.pt"), average(states, [0.25, 0.5, 1]))
    # In a folder there may be several.
    words = ["average", str(tmp_path), "-o", str(tmp_path / "deep" / "o.pt")]
    (tmp_path / "o.pt").unlink()
    main([*words, "--exponential", "0.5"])
    assert same(torch.load(tmp_path / "deep" / "o.pt"), average(states, [0.25, 0.5, 1]))


def test_types_and_choices_of_tensors(files, tmp_path, capsys):
    paths, states = files
    choice = ["--include", r"^body\.", "--exclude", "double|tracked", "--dtype", "bfloat16"]
    main(["average", *paths, "-o", str(tmp_path / "o.safetensors"), *choice])
    merged = load_file(tmp_path / "o.safetensors")
    wanted = {"body.weight", "body.half", "body.brain", "body.scalar", "body.empty"}
    assert merged.keys() == wanted
    assert {value.dtype for value in merged.values()} == {torch.bfloat16}
    exact = sum(state["body.weight"].double() for state in states) / 3
    assert torch.equal(merged["body.weight"], exact.to(torch.bfloat16))
    said = capsys.readouterr().out
    left_out = set(said.strip().rpartition("left out: ")[2].split(", "))
    assert left_out == states[0].keys() - wanted
    # What is left out may differ.
    save_file({**states[0], "head.weight": torch.zeros(9)}, paths[0])
    main(["average", *paths, "-o", str(tmp_path / "p.pt"), "--exclude", "head"])


def test_sharded_networks_stay_sharded_and_folders_are_read(files, tmp_path):
    paths, states = files
    folder = tmp_path / "sharded"
    folder.mkdir()
    names = {name: f"{name.split('.')[0]}.safetensors" for name in states[0]}
    for file in set(names.values()):
        part = {name: states[0][name] for name in names if names[name] == file}
        save_file(part, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    output = tmp_path / "out" / "model.safetensors.index.json"
    main(["average", str(folder), *paths[1:], "-o", str(output)])
    assert same(dict(StateOnDisk(output)), average(states))
    assert sorted(os.listdir(output.parent)) == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ]
    index = json.loads(output.read_text())
    assert index["metadata"]["total_size"] == sum(v.nbytes for v in states[0].values())
    # All checkpoints of a folder that is no network.
    pool = tmp_path / "pool"
    pool.mkdir()
    for index, state in enumerate(states):
        save_file(state, pool / f"{index}.safetensors")
    main(["average", str(pool), "-o", str(tmp_path / "pool.pt")])
    assert same(torch.load(tmp_path / "pool.pt"), average(states))


def test_what_describes_one_training_run_is_dropped(tmp_path):
    about = {"hyper_parameters": {"width": 3}, "pytorch-lightning_version": "2.6.6", "epoch": 3}
    for name, value in (("a", 1), ("b", 2)):
        state = {"w": torch.tensor([float(value)]), "_extra_state": {"t": 1.5}}
        content = {**about, "state_dict": state, "best": value, "global_step": 7, "loops": {}}
        torch.save(content, tmp_path / f"{name}.ckpt")
    words = ["average", str(tmp_path / "a.ckpt"), str(tmp_path / "b.ckpt"), "-o"]
    main([*words, str(tmp_path / "o.ckpt")])
    merged = torch.load(tmp_path / "o.ckpt", weights_only=True)
    assert merged.keys() == {"hyper_parameters", "pytorch-lightning_version", "state_dict"}
    assert merged["state_dict"] == {"w": torch.tensor([1.5]), "_extra_state": {"t": 1.5}}


def test_entries_that_any_file_lacks_are_named(tmp_path, capsys):
    for name, own in (("a", {"first": 1}), ("b", {"second": 2})):
        content = {"state_dict": {"w": torch.ones(1)}, "both": 3, "epoch": 4, **own}
        torch.save(content, tmp_path / f"{name}.ckpt")
    main(["average", *(str(tmp_path / f"{n}.ckpt") for n in "ab"), "-o", str(tmp_path / "o.ckpt")])
    assert capsys.readouterr().out.rstrip().endswith("; left out: first, second")
    assert torch.load(tmp_path / "o.ckpt", weights_only=True).keys() == {"state_dict", "both"}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: {"module." + k: v for k, v in s.items()},
        lambda s: {"_orig_mod." + k: v for k, v in s.items()},
        lambda s: {"n_averaged": torch.tensor(3), **{"module." + k: v for k, v in s.items()}},
        lambda s: {k.removeprefix("net."): v for k, v in s.items()},
    ],
)
def test_names_in_a_wrapper_beside_bare_ones(tmp_path, wrap):
    a, b = ({f"net.{k}": torch.randn(3) for k in ("v", "w")} for _ in range(2))
    torch.save(wrap(a), tmp_path / "a.pt")
    torch.save(b, tmp_path / "b.pt")
    for order in ("ab", "ba"):
        merged = average([tmp_path / f"{name}.pt" for name in order])
        found = {f"net.{name.rpartition('.')[2]}": value for name, value in merged.items()}
        assert same(found, average([a, b]))


def test_notes_in_headers_that_all_share_are_kept_and_the_others_named(tmp_path, capsys):
    paths = []
    for index in range(2):
        notes = {"format": "pt", "licence": "MIT", "run": str(index), "ingredients": "x"}
        paths.append(str(tmp_path / f"{index}.safetensors"))
        save_file(network(index), paths[-1], notes)
    output = tmp_path / "out.safetensors"
    main(["average", *paths, "-o", str(output)])
    with safe_open(output, "pt") as file:
        notes = file.metadata()
    assert notes.pop("ingredients") == ", ".join(paths)
    assert notes == {"format": "pt", "method": "average", "licence": "MIT"}
    assert "left out: the header's run" in capsys.readouterr().out


def test_files_with_and_without_batch_counters(tmp_path):
    norm = torch.nn.BatchNorm1d(2).state_dict()
    torch.save({k: v for k, v in norm.items() if "num" not in k}, tmp_path / "old.pt")
    torch.save(norm, tmp_path / "new.pt")
    for order in (("old", "new"), ("new", "old")):
        merged = average([tmp_path / f"{name}.pt" for name in order])
        assert merged.keys() == norm.keys()


def test_a_failed_average_leaves_nothing(files, tmp_path):
    paths, states = files
    states[2]["body.weight"][3, 4] = float("nan")
    torch.save(states[2], paths[2])
    before = sorted(os.listdir(tmp_path))
    for ending in (".safetensors", ".pt", ".index.json"):
        with pytest.raises(SystemExit):
            main(["average", *paths, "-o", str(tmp_path / f"o{ending}")])
        assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize("step", ["pwrite", "fdatasync"])
def test_a_disk_that_fills_up_leaves_the_old_file(files, tmp_path, step, monkeypatch, capsys):
    paths, _ = files
    output = tmp_path / "o.safetensors"
    output.write_bytes(b"old")
    before, full, write = sorted(os.listdir(tmp_path)), threading.Event(), os.pwrite

    def fail(*_):
        full.set()
        raise OSError(errno.ENOSPC, "No space left on device")

    def write_until_full(target, part, begin):
        if begin == 0:
            return write(target, part, begin)
        return fail() if step == "pwrite" else full.wait(10) and write(target, part, begin)

    monkeypatch.setattr(os, "pwrite", write_until_full)
    if step == "fdatasync":
        monkeypatch.setattr(os, "fdatasync", fail, raising=False)
    with pytest.raises(SystemExit) as stopped:
        main(["average", *paths, "-o", str(output), "--overwrite"])
    assert stopped.value.code == 2
    assert "disk is full" in capsys.readouterr().err
    assert output.read_bytes() == b"old"
    assert sorted(os.listdir(tmp_path)) == before


def test_a_link_stays_one_and_permissions_are_kept(files, tmp_path):
    paths, states = files
    real = tmp_path / ("n" * 240 + ".safetensors")
    real.write_bytes(b"old")
    real.chmod(0o640)
    link = tmp_path / "link.safetensors"
    link.symlink_to(real)
    main(["average", *paths, "-o", str(link), "--overwrite"])
    assert link.is_symlink()
    assert real.stat().st_mode & 0o777 == 0o640
    assert same(load_file(real), average(states))
    with safe_open(real, "pt") as file:
        assert file.metadata()["method"] == "average"


def test_safetensors_need_no_torch(files, tmp_path):
    _, states = files
    for index, state in enumerate(states):
        save_file(state, tmp_path / f"{index}.safetensors")
    words = ["average", *(str(tmp_path / f"{i}.safetensors") for i in range(3))]
    words += ["-o", str(tmp_path / "o.safetensors")]
    code = (
        "import sys; from lightning_merge.cli import main; main(sys.argv[1:]); "
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, *words], check=True, timeout=120)
    assert same(load_file(tmp_path / "o.safetensors"), average(states))


MEASURE = """
import sys, threading, time
import torch
from lightning_merge.cli import main
def anonymous():
    lines = open("/proc/self/status")
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))
def average(names):
    main(["average", *names, "-o", sys.argv[1], "--overwrite"])
names = sys.argv[2:]
for ending in (".safetensors", ".pt"):
    files = [name + ending for name in names]
    average(files[:2])
    before, most, done = anonymous(), 0, threading.Event()
    def watch():
        global most
        while not done.is_set():
            most = max(most, anonymous())
            time.sleep(0.002)
    thread = threading.Thread(target=watch)
    thread.start()
    average(files)
    done.set()
    thread.join()
    print("grown", most - before)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="the kernel counts on Linux")
def test_memory_does_not_grow_with_the_number_of_files(tmp_path):
    """Anonymous memory while six files of 16 MiB are averaged, safetensors and torch files."""
    names = [str(tmp_path / str(index)) for index in range(6)]
    for name in names:
        big = {"w": torch.randn(2, 1 << 21)}
        save_file(big, f"{name}.safetensors")
        torch.save(big, f"{name}.pt")
    words = [sys.executable, "-c", MEASURE, str(tmp_path / "out.safetensors"), *names]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    grown = [int(line.split()[1]) for line in done.stdout.splitlines() if "grown" in line]
    assert len(grown) == 2
    assert max(grown) < 12 << 10


def test_what_cannot_be_averaged_is_one_line(files, tmp_path, capsys):
    paths, _ = files
    output = ["-o", str(tmp_path / "o.pt")]
    for words, match in (
        (["--exponential", "1.5"], "(0, 1]"),
        (["--include", "nothing"], "leave no tensor"),
        (["--exclude", "("], "no regular expression"),
        (["--weights", "1", "2"], "2 weights"),
        (["--weights", "1", "-2", "1"], "sum 0"),
        (["", "--overwrite"], "a path is empty"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(["average", *paths, *words, *output])
        assert stopped.value.code == 2
        said = capsys.readouterr().err
        assert match in said
        assert said.count("\n") == 1
    for index in (0, 1):
        torch.save({"w": torch.zeros(1), "_extra_state": [index]}, tmp_path / f"{index}.pt")
    with pytest.raises(MergeError, match="_extra_state' differs"):
        open_files([tmp_path / "0.pt", tmp_path / "1.pt"])


@pytest.mark.parametrize("name", ["__metadata__", "a\ud800"])
def test_names_that_safetensors_cannot_hold(name, tmp_path, capsys):
    state, paths = {name: torch.ones(1), "w": torch.zeros(2)}, [str(tmp_path / "a.pt")] * 2
    torch.save(state, paths[0])
    with pytest.raises(SystemExit):
        main(["average", *paths, "-o", str(tmp_path / "o.safetensors")])
    assert "write a .pt file" in capsys.readouterr().err
    main(["average", *paths, "-o", str(tmp_path / "o.pt")])
    assert same(torch.load(tmp_path / "o.pt"), state)
