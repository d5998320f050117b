"""Networks that are stored as one sum and masks, and read again."""

import pytest
import torch
from tiny_contexts import trained

from lightning_merge import load_task, tall_masks, task_vector
from lightning_merge.aggregate import StateOnDisk, write_masked
from lightning_merge.cli import main
from lightning_merge.errors import ArchitectureMismatchError, CheckpointError, ConfigError


@pytest.fixture
def start():
    return trained(0, steps=3, norm=True).state_dict()


def tuned(start, seed, disjoint):
    """Moves entries of its own alone, or all of them; statistics, counters and the head differ."""
    drawn = torch.Generator().manual_seed(seed)
    state = {}
    for name, value in start.items():
        if not value.is_floating_point():
            state[name] = value + seed
            continue
        moved = value + torch.randn(value.shape, generator=drawn)
        part = torch.arange(value.numel()).view(value.shape) % 3 == seed
        state[name] = torch.where(part, moved, value) if disjoint else moved
    state["net.6.bias"] = torch.randn(4 + seed, generator=drawn)
    return state


@pytest.mark.parametrize("threshold", [0.0, 0.4])
def test_tasks_that_move_their_own_entries_are_given_back(start, tmp_path, threshold):
    tasks = {f"task {seed}": tuned(start, seed, True) for seed in range(3)}
    folder = write_masked(start, tasks, tmp_path / "masked", threshold)
    for name, state in tasks.items():
        found = load_task(folder, name)
        assert found.keys() == state.keys()
        assert all(torch.equal(found[key], value) for key, value in state.items())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.complex64])
def test_they_are_given_back_bit_by_bit_in_every_type_and_far_from_the_start(dtype, tmp_path):
    drawn = torch.Generator().manual_seed(0)
    start = torch.randn(300, generator=drawn).mul(1e12).to(dtype)
    tasks = {name: start.clone() for name in ("first", "second")}
    tasks["first"][:100] = torch.randn(100, generator=drawn, dtype=torch.float64).to(dtype)
    tasks["second"][200:] = torch.rand(100, generator=drawn, dtype=torch.float64).to(dtype)
    folder = write_masked({"w": start}, {k: {"w": v} for k, v in tasks.items()}, tmp_path / "m")
    for name, tuned in tasks.items():
        assert torch.equal(load_task(folder, name)["w"], tuned)
    # A bit for each, whatever its type is.
    assert StateOnDisk(folder / "masks.safetensors")["first/w"].nbytes == 38


def test_what_no_mask_gives_back_is_each_tasks_own_as_it_is(tmp_path):
    one = {"running_var": torch.ones(2), "types": torch.ones(3), "shapes": torch.ones(4)}
    two = {"running_var": torch.ones(2) * 3, "types": torch.rand(3), "shapes": torch.rand(5)}
    two["types"] = two["types"].double()
    tasks = {"one": one, "two": two, "three": {n: v * 2 for n, v in one.items()}}
    folder = write_masked({n: v + 1 for n, v in one.items()}, tasks, tmp_path / "masked")
    for name, state in tasks.items():
        found = load_task(folder, name)
        assert list(found) == list(state)
        for key, value in state.items():
            assert found[key].dtype == value.dtype
            assert torch.equal(found[key], value)


def test_heads_that_the_pretrained_network_lacks_and_bodies_without_statistics(tmp_path):
    start = {"body": torch.arange(3.0)}
    tasks = {
        "cars": {"body": torch.tensor([5.0, 1, 2]), "head": torch.ones(2, 3)},
        "birds": {"body": torch.tensor([0.0, 1, 7])},
    }
    folder = write_masked(start, tasks, tmp_path / "masked")
    for name, state in tasks.items():
        found = load_task(folder, name)
        assert found.keys() == state.keys()
        assert all(torch.equal(found[key], value) for key, value in state.items())


def test_others_are_what_their_masks_say(start, tmp_path):
    tasks = {f"{seed}": tuned(start, seed, False) for seed in range(3)}
    folder = write_masked(start, tasks, tmp_path / "masked")
    key = "net.0.weight"
    vectors = [task_vector({key: one[key]}, {key: start[key]}) for one in tasks.values()]
    total = sum(vector[key] for vector in vectors)
    masks = tall_masks({key: start[key]}, vectors)
    for mask, name in zip(masks, tasks, strict=True):
        expected = start[key] + mask[key] * total
        torch.testing.assert_close(load_task(folder, name)[key], expected)
    stored = StateOnDisk(folder / "masks.safetensors")["0/net.0.weight"]
    assert stored.nbytes == 6 * 12 / 8


def test_the_command_writes_what_load_task_reads(start, tmp_path, capsys):
    torch.save(start, tmp_path / "start.pt")
    for seed in (1, 2):
        torch.save(tuned(start, seed, True), tmp_path / f"{seed}.pt")
    words = ["export", str(tmp_path / "start.pt"), "--output", str(tmp_path / "out")]
    words += ["--masks", f"cars={tmp_path / '1.pt'}", str(tmp_path / "2.pt")]
    main(words)
    assert "masks.safetensors" in capsys.readouterr().out
    found, expected = load_task(tmp_path / "out", "cars"), tuned(start, 1, True)
    assert all(torch.equal(found[key], value) for key, value in expected.items())
    assert torch.equal(
        load_task(tmp_path / "out", "2")["net.6.bias"], tuned(start, 2, 1)["net.6.bias"]
    )


def test_what_is_not_there_is_said(start, tmp_path):
    folder = write_masked(start, {"a": start}, tmp_path / "masked")
    with pytest.raises(ConfigError, match="no task 'b': choose among a"):
        load_task(folder, "b")
    with pytest.raises(ConfigError, match=r"no tasks\.json"):
        load_task(tmp_path, "a")
    with pytest.raises(ConfigError, match="without slashes"):
        write_masked(start, {"a/b": start}, tmp_path / "other")
    with pytest.raises(ArchitectureMismatchError, match=r"net\.0\.weight"):
        write_masked(start, {"a": {"other": torch.zeros(1)}}, tmp_path / "other")


@pytest.mark.parametrize("text", ["{", "[]", "{}", "\u00e9"])
def test_a_damaged_list_of_tasks_is_named(text, start, tmp_path):
    folder = write_masked(start, {"a": start}, tmp_path / "masked")
    (folder / "tasks.json").write_text(text, encoding="latin-1")
    with pytest.raises(CheckpointError, match=r"tasks\.json is damaged"):
        load_task(folder, "a")


def test_files_as_lightning_names_them_are_tasks(start, tmp_path):
    torch.save(start, tmp_path / "start.pt")
    paths = [tmp_path / f"epoch={seed}-step=3.pt" for seed in (1, 2)]
    for seed, path in enumerate(paths, start=1):
        torch.save(tuned(start, seed, True), path)
    words = ["export", str(tmp_path / "start.pt"), "--output", str(tmp_path / "out"), "--masks"]
    main([*words, str(paths[0]), f"cars={paths[1]}"])
    for name, path in (("epoch=1-step=3", paths[0]), ("cars", paths[1])):
        assert load_task(tmp_path / "out", name).keys() == torch.load(path).keys()


def test_what_masks_would_leave_out_is_refused(start, tmp_path, capsys):
    torch.save(start, tmp_path / "start.pt")
    words = ["export", str(tmp_path / "start.pt"), "--output", str(tmp_path / "out"), "--masks"]
    with pytest.raises(SystemExit) as stopped:
        main([*words, f"a={tmp_path / 'start.pt'}", "--onnx", "--push_to_hub", "me/it"])
    assert stopped.value.code == 2
    assert "--masks goes without --onnx, --push_to_hub" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
