"""Files of other people, and files that are meant to do harm: one line, and soon."""

import bz2
import json
import lzma
import zipfile

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import save_file, save_model
from torch import nn
from torch.distributed.tensor import distribute_tensor, init_device_mesh

from lightning_merge.aggregate import average
from lightning_merge.checkpoint import fit_names, read_checkpoint
from lightning_merge.errors import ArchitectureMismatchError, CheckpointError, MergeError
from lightning_merge.stored_state import open_state


def refused(path, match):
    for read in (read_checkpoint, open_state):
        with pytest.raises(CheckpointError, match=match) as error:
            read(path)
        assert str(error.value).isprintable()


def saved(path, content, **how):
    torch.save(content, path, **how)
    return path


def test_one_number_that_stands_for_a_billion(tmp_path):
    path = saved(tmp_path / "a.pt", {"w": torch.ones(1).expand(1 << 30)})
    refused(path, "'w' is far larger than the file")
    rows = torch.ones(1 << 19).as_strided((1 << 12, 1 << 19), (0, 1))
    refused(saved(tmp_path / "b.pt", {"rows": rows}), "'rows' is far larger")
    small = saved(tmp_path / "c.pt", {"w": torch.ones(1).expand(5, 7)})
    assert torch.equal(read_checkpoint(small).state_dict["w"], torch.ones(5, 7))


def test_a_weight_that_twelve_layers_share_is_read(tmp_path):
    weight = torch.randn(200, 300)
    path = saved(tmp_path / "a.pt", {f"layer{i}.weight": weight for i in range(12)})
    assert len(read_checkpoint(path).state_dict) == 12


def test_one_tensor_that_a_header_ties_to_thousands_of_names(tmp_path):
    state, path = {"w": torch.randn(1000)}, tmp_path / "a.safetensors"
    save_file(state, path, metadata={f"layer{i}.w": "w" for i in range(3000)})
    refused(path, "far larger in memory than the file: its header ties 3000 names")
    save_file(state, path, metadata={f"layer{i}.w": "w" for i in range(12)})
    assert len(read_checkpoint(path).state_dict) == 13


def test_compressed_archives(tmp_path):
    plain = saved(tmp_path / "plain.pt", {"w": torch.zeros(1000)})
    with zipfile.ZipFile(plain) as old, zipfile.ZipFile(tmp_path / "a.pt", "w", 8) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    refused(tmp_path / "a.pt", "compressed archive")


def test_more_objects_than_weights(tmp_path):
    many = {"w": torch.zeros(1), "list": list(range(700_000))}
    refused(saved(tmp_path / "a.pt", many), "Python objects")
    old = saved(tmp_path / "b.pt", many, _use_new_zipfile_serialization=False)
    refused(old, "Python objects")
    (tmp_path / "c.pt").write_bytes(b"\x80\x02" + b"]" * 3_000_000 + b".")
    refused(tmp_path / "c.pt", "Python objects")
    fine = {"w": torch.randn(3)}
    path = saved(tmp_path / "d.pt", fine, _use_new_zipfile_serialization=False)
    assert torch.equal(read_checkpoint(path).state_dict["w"], fine["w"])


def archived(path, pickled, name="data.pkl"):
    """A pickle that is written by hand, as `torch.save` would store it."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"archive/{name}", pickled)
        archive.writestr("archive/version", "3\n")
    return path


def test_a_number_does_not_become_gigabytes(tmp_path):
    bomb = b"\x80\x02cbuiltins\nbytearray\n\x8a\x05\xff\xff\xff\xff\x00\x85R."
    for name in ("data.pkl", "DATA.PKL"):
        refused(archived(tmp_path / "a.pt", bomb, name), "holds a bytearray")
    (tmp_path / "b.pt").write_bytes(bomb)
    refused(tmp_path / "b.pt", "holds a bytearray")


def test_attributes_do_not_hide_methods(tmp_path):
    state = {"w": torch.zeros(2)}
    state["w"].numel = state["w"].dim = 1
    found = read_checkpoint(saved(tmp_path / "a.pt", state)).state_dict
    assert (found["w"].numel(), found["w"].dim()) == (2, 1)
    nothing = b"\x80\x02ccollections\nOrderedDict\n)R}X\x05\x00\x00\x00itemsK\x01sb."
    refused(archived(tmp_path / "b.pt", nothing), "holds no tensors")


@pytest.mark.parametrize(
    ("tensor", "word"),
    [
        (torch.eye(3).to_sparse(), "to_dense"),
        (torch.zeros(3, device="meta"), "no numbers"),
        (torch.zeros([1] * 66), "66 axes"),
        (torch.zeros(4, dtype=torch.uint8).view(torch.float4_e2m1fn_x2), "packed"),
        (torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8), "dequantise"),
    ],
)
def test_tensors_that_are_no_plain_numbers_are_named(tmp_path, tensor, word):
    refused(saved(tmp_path / "a.pt", {"the.tensor": tensor}), f"'the.tensor'.*{word}")


def test_tensors_that_are_made_of_others_are_named(tmp_path):
    """As FSDP2 shards a network's weights over processes."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        state = {"the.tensor": distribute_tensor(torch.ones(4), mesh)}
        refused(saved(tmp_path / "a.pt", state), "'the.tensor' is a DTensor.*full_tensor")
        with pytest.raises(CheckpointError, match=r"'the\.tensor' is a DTensor"):
            average([state, state])
        plain = {"the.tensor": state["the.tensor"].full_tensor()}
        assert torch.equal(average([plain, plain])["the.tensor"], torch.ones(4))
    finally:
        dist.destroy_process_group()


def test_tensors_inside_of_parts_do_not_vanish(tmp_path):
    inner = {"model": {"w": torch.zeros(1), "part": {"v": torch.zeros(1)}}}
    refused(saved(tmp_path / "a.pt", inner), "'part' is a dict with tensors")
    listed = {"model": {"w": torch.zeros(1), "packed": [torch.zeros(1)]}}
    refused(saved(tmp_path / "b.pt", listed), "'packed' is a list with tensors")
    refused(saved(tmp_path / "c.pt", {2: torch.zeros(1), "2": torch.ones(1)}), "two entries")


def test_entries_that_hold_themselves_and_each_other(tmp_path):
    loop: dict = {}
    loop["me"] = loop
    deep: dict = {}
    for _ in range(60):
        deep = {"a": deep, "b": deep}
    path = saved(tmp_path / "a.pt", {"w": torch.zeros(1), "loop": loop, "deep": deep})
    assert read_checkpoint(path).extra.keys() == {"loop", "deep"}


def test_names_cannot_speak_to_the_terminal(tmp_path):
    path = saved(tmp_path / "a.pt", {"x\n\x1b[31m\ud800\u202e": torch.eye(2).to_sparse()})
    refused(path, r"'x\\n\\x1b\[31m\\ud800\\u202e'")
    assert len(str(MergeError("n" * 1_000_000))) < 2000


@pytest.mark.parametrize(
    ("begin", "word"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "Git LFS"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"\x89HDF\r\n\x1a\n" + bytes(80), "HDF5"),
        (bz2.compress(b"weights"), "bunzip2"),
        (lzma.compress(b"weights"), "unxz"),
        (b"\x28\xb5\x2f\xfd" + bytes(80), "unzstd"),
        (b"GGUF\x03" + bytes(80), "GGUF"),
        (b"", "is empty"),
    ],
)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_other_kinds_of_files_are_called_by_their_names(tmp_path, begin, word, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(begin)
    refused(path, word)


def test_an_archive_of_torch_export(tmp_path):
    program = torch.export.export(nn.Linear(3, 2), (torch.randn(2, 3),))
    path = tmp_path / "a.pt2"
    torch.export.save(program, path)
    refused(path, r"torch\.export, a program: save its weights alone")


def test_a_torchscript_archive(tmp_path):
    # As torch.jit.save lays it out.
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        for name in ("data.pkl", "constants.pkl", "code/__torch__.py", "version"):
            archive.writestr(f"a/{name}", b"2")
    refused(tmp_path / "a.pt", "TorchScript")


@pytest.mark.parametrize(
    "header",
    [
        '{"w":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4]}}',
        '{"w":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}',
        '{"w":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}',
        '{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"w":{}}',
        '{"w":{"dtype":"F32","shape":["1"],"data_offsets":[0,4]}}',
        '{"w":{"dtype":"F32","shape":[true],"data_offsets":[0,4]}}',
        '{"w":3}',
        '\ufeff{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        "[" * 100_000,
        '{"w":{"dtype":"F32","shape":[0,18446744073709551615],"data_offsets":[0,0]}}',
        '{"w":{"dtype":"F32","shape":[0,4294967296,4294967296],"data_offsets":[0,0]}}',
        '{"w":{"dtype":"F32","shape":[1' + "0" * 5000 + '],"data_offsets":[0,4]}}',
    ],
)
def test_headers_that_lie(tmp_path, header):
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header.encode() + bytes(4))
    refused(path, "not a safetensors file")


def test_a_file_that_the_system_cannot_read_is_named():
    for read in (read_checkpoint, open_state):
        with pytest.raises(OSError, match="/proc/self/mem"):
            read("/proc/self/mem")


def test_safetensors_that_tie_weights(tmp_path):
    model = nn.ModuleDict({"a": nn.Linear(3, 3, bias=False), "b": nn.Linear(3, 3, bias=False)})
    model["b"].weight = model["a"].weight
    save_model(model, str(tmp_path / "a.safetensors"))
    state = read_checkpoint(tmp_path / "a.safetensors").state_dict
    assert torch.equal(state["b.weight"], model["a"].weight)
    # Without the note, the module itself knows what is tied.
    save_file({"a.weight": model["a"].weight.detach()}, tmp_path / "b.safetensors")
    bare = read_checkpoint(tmp_path / "b.safetensors").state_dict
    fitted = fit_names(bare, model.state_dict(), "b")
    assert torch.equal(fitted["b.weight"], model["a"].weight)


def sharded(folder, states):
    names = {}
    for index, state in enumerate(states):
        save_file(state, folder / f"part{index}.safetensors")
        names |= dict.fromkeys(state, f"part{index}.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": names}))
    return index


def test_sharded_networks_by_their_index_or_folder(tmp_path):
    parts = [{"a": torch.randn(2)}, {"b": torch.randn(3), "c": torch.tensor(4)}]
    index = sharded(tmp_path, parts)
    for path in (index, tmp_path):
        state = read_checkpoint(path).state_dict
        assert all(torch.equal(state[k], v) for part in parts for k, v in part.items())
    (tmp_path / "part1.safetensors").unlink()
    refused(index, "part1.safetensors', which is not there")
    index.write_text(json.dumps({"weight_map": {"a": "../elsewhere.safetensors"}}))
    refused(index, "no index of shards")


def test_what_an_index_names_twice_or_not_at_all(tmp_path):
    parts = [{"a": torch.ones(2)}, {"b": torch.ones(3), "c": torch.tensor(4)}]
    index = sharded(tmp_path, parts)
    files = json.loads(index.read_text())["weight_map"]
    index.write_text(json.dumps({"weight_map": {n: f for n, f in files.items() if n != "c"}}))
    assert read_checkpoint(index).state_dict.keys() == {"a", "b", "c"}
    assert open_state(index).shards == files
    twice = '{"weight_map": {"a": "part0.safetensors", "a": "part1.safetensors"}}'
    index.write_text(twice)
    refused(index, "no index of shards")


def test_a_part_of_a_sharded_network_is_no_network(tmp_path):
    state = {"a": torch.randn(2)}
    for name in ("model-00001-of-00002.safetensors", "pytorch_model-00002-of-00002.bin"):
        save_file(state, tmp_path / name)
        refused(tmp_path / name, "one of 2 files")
    alone = tmp_path / "model-00001-of-00001.safetensors"
    save_file(state, alone)
    assert read_checkpoint(alone).state_dict.keys() == {"a"}


def test_files_without_batch_counters_and_with_extra_states():
    norm = nn.BatchNorm1d(2)
    old = {name: value for name, value in norm.state_dict().items() if "num_batches" not in name}
    fitted = fit_names(old, {**norm.state_dict(), "_extra_state": {"t": 1}}, "old")
    assert fitted.keys() == norm.state_dict().keys()
    with pytest.raises(ArchitectureMismatchError, match="'weight' is absent"):
        fit_names({k: v for k, v in old.items() if k != "weight"}, norm.state_dict(), "old")


def test_a_tensor_does_not_reach_into_the_next_ones_record(tmp_path):
    whole = saved(tmp_path / "whole.pt", {"w": torch.arange(1000.0), "v": torch.ones(1000)})
    short = tmp_path / "short.pt"
    with zipfile.ZipFile(whole) as old, zipfile.ZipFile(short, "w") as new:
        for part in old.infolist():
            end = 400 if part.filename.endswith("data/0") else None
            new.writestr(part.filename, old.read(part)[:end])
    refused(short, r"short\.pt is not a checkpoint, or is truncated")
