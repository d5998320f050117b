import os

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lightning_merge.checkpoint import (
    check_ingredients,
    digest,
    fit_names,
    read_checkpoint,
    write_checkpoint,
    write_safetensors,
)
from lightning_merge.errors import ArchitectureMismatchError, CheckpointError, NonFiniteError


def state():
    return {"w": torch.randn(3, 2), "n": torch.tensor(5), "b": torch.randn(2).bfloat16()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict", "net", None])
def test_torch_files_are_read_nested_or_bare(tmp_path, key):
    wanted = state()
    content = {key: wanted, "epoch": 3} if key else wanted
    path = write_checkpoint(tmp_path / "a.ckpt", content)
    read = read_checkpoint(path)
    assert same(read.state_dict, wanted)
    assert read.content == ({"epoch": 3} if key else {})


def test_safetensors_are_read_and_written_tied_weights_too(tmp_path):
    wanted = state()
    wanted["tied"] = wanted["w"]
    path = write_safetensors(tmp_path / "a.safetensors", wanted, {"from": "test"})
    assert same(read_checkpoint(path).state_dict, wanted)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"nowhere\.ckpt: no such file"):
        read_checkpoint(tmp_path / "nowhere.ckpt")


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_truncated_file_is_refused(tmp_path, suffix, share):
    path = tmp_path / f"a{suffix}"
    big = {"w": torch.randn(100, 100)}
    save_file(big, path) if suffix == ".safetensors" else torch.save(big, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(CheckpointError, match=r"truncated|not a checkpoint"):
        read_checkpoint(path)


def test_text_is_no_checkpoint(tmp_path):
    path = tmp_path / "notes.pt"
    path.write_text("these are my notes")
    with pytest.raises(CheckpointError, match=r"notes\.pt"):
        read_checkpoint(path)


def test_a_file_without_tensors_is_refused(tmp_path):
    torch.save({"lr": 0.1}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="holds no tensors"):
        read_checkpoint(tmp_path / "a.pt")


class Payload:
    """Runs a command when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("ran",)


def test_code_in_a_checkpoint_is_not_run_and_is_named(tmp_path):
    torch.save({"state_dict": state(), "callback": Payload()}, tmp_path / "evil.ckpt")
    with pytest.raises(CheckpointError, match=r"evil\.ckpt is refused.*mkdir"):
        read_checkpoint(tmp_path / "evil.ckpt")
    assert not os.path.exists("ran")


def test_one_checkpoint_cannot_be_merged():
    with pytest.raises(CheckpointError, match=r"at least two.*a\.ckpt"):
        check_ingredients([state()], ["a.ckpt"])


def test_the_first_tensor_that_differs_is_named_with_both_shapes():
    a, b = state(), state()
    b["w"] = torch.randn(3, 5)
    b["b"] = torch.randn(9)
    with pytest.raises(ArchitectureMismatchError) as error:
        check_ingredients([a, b], ["a.ckpt", "b.ckpt"])
    assert "'w' is (3, 2) in a.ckpt and (3, 5) in b.ckpt" in str(error.value)


def test_a_tensor_that_only_one_has_is_named():
    a, b = state(), state()
    b["extra"] = torch.ones(1)
    with pytest.raises(ArchitectureMismatchError, match=r"'extra' is absent in a and \(1,\) in b"):
        check_ingredients([a, b], ["a", "b"])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_tensor_that_is_not_finite_is_named(value):
    a, b = state(), state()
    b["w"][1, 1] = value
    with pytest.raises(NonFiniteError, match="b: 'w'"):
        check_ingredients([a, b], ["a", "b"])
    check_ingredients([a, state()], ["a", "c"])


def test_the_digest_sees_names_types_shapes_and_bytes_but_not_order():
    a = state()
    assert digest(a) == digest(dict(reversed(a.items())))
    changed = {
        "name": {("v" if key == "w" else key): value for key, value in a.items()},
        "type": {**a, "w": a["w"].double()},
        "shape": {**a, "w": a["w"].reshape(2, 3)},
        "bytes": {**a, "w": a["w"].clone().index_fill_(0, torch.tensor([2]), 0.0)},
    }
    assert len({digest(a), *map(digest, changed.values())}) == 5


def test_a_bare_networks_names_get_the_modules_prefix():
    wanted = {"network.w": torch.ones(2), "network.b": torch.ones(1)}
    bare = {"w": torch.zeros(2), "b": torch.zeros(1)}
    assert fit_names(bare, wanted, "x").keys() == wanted.keys()
    assert fit_names(wanted, wanted, "x").keys() == wanted.keys()


def test_a_state_that_does_not_fit_the_network_is_named():
    wanted = {"network.w": torch.ones(2), "network.fc": torch.ones(10, 2)}
    other = {"network.w": torch.ones(2), "network.fc": torch.ones(5, 2)}
    with pytest.raises(ArchitectureMismatchError) as error:
        fit_names(other, wanted, "a.ckpt")
    assert "'network.fc' is (5, 2) in the file and (10, 2) in the network" in str(error.value)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int64, torch.bool])
def test_numbers_of_another_kind_do_not_fit(dtype):
    wanted = {"w": torch.ones(2), "count": torch.tensor(3)}
    with pytest.raises(ArchitectureMismatchError, match=r"'w' is .* and float32 in the network"):
        fit_names({**wanted, "w": torch.ones(2, dtype=dtype)}, wanted, "a.ckpt")
    # Other programs average counters as fractions.
    assert fit_names({**wanted, "count": torch.tensor(2.5)}, wanted, "a.ckpt")["count"] == 2.5


def test_tensors_that_only_the_network_ties_do_not_fit():
    network = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    network[1].weight = network[0].weight
    state = {name: value.clone() for name, value in network.state_dict().items()}
    assert fit_names(state, network.state_dict(), "a.pt").keys() == state.keys()
    state["1.weight"] += 1
    with pytest.raises(ArchitectureMismatchError, match=r"'0\.weight' and '1\.weight' are one"):
        fit_names(state, network.state_dict(), "a.pt")


def test_a_folder_is_said_to_be_one(tmp_path):
    with pytest.raises(CheckpointError, match="is a folder"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_file_of_several_networks_says_which_is_read(prefix, tmp_path):
    state, mean = ({"fc.weight": torch.full((2, 2), value)} for value in (1.0, 2.0))
    mean = {prefix + name: value for name, value in mean.items()} | {"n_averaged": torch.ones(())}
    torch.save({"state_dict": state, "state_dict_ema": mean, "optimizer": {}}, tmp_path / "a.pth")
    with pytest.warns(UserWarning, match="'state_dict' is read, and state_dict_ema left"):
        found = read_checkpoint(tmp_path / "a.pth").state_dict
    assert torch.equal(found["fc.weight"], state["fc.weight"])


def test_a_second_networks_name_cannot_speak_to_the_terminal(tmp_path, recwarn):
    state = {"fc.weight": torch.zeros(2, 2)}
    torch.save({"state_dict": state, "ema\x1b[31m\n": state}, tmp_path / "a.pth")
    read_checkpoint(tmp_path / "a.pth")
    (said,) = (str(one.message) for one in recwarn.list)
    assert "ema" in said
    assert said.isprintable()


def test_what_lightning_averages_from_is_no_second_network(tmp_path, recwarn):
    state = {"fc.weight": torch.zeros(2, 2)}
    torch.save({"state_dict": state, "current_model_state": state}, tmp_path / "a.ckpt")
    read_checkpoint(tmp_path / "a.ckpt")
    assert not recwarn.list


def test_a_state_under_an_unknown_name_is_not_mistaken(tmp_path):
    torch.save({"net": state(), "loss": torch.tensor(3.0)}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="only net"):
        read_checkpoint(tmp_path / "a.pt")
