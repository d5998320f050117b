"""Adapters of two factors, and pruning masks: merged exactly or refused, from files too."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from lightning_merge.aggregate import (
    average,
    fisher_average,
    greedy_soup,
    karcher_mean,
    model_stock,
    slerp,
    task_arithmetic,
    task_vector,
    ties,
)
from lightning_merge.checkpoint import read_checkpoint, write_safetensors
from lightning_merge.cli import main
from lightning_merge.errors import ArchitectureMismatchError, CheckpointError

NAMES = [
    ("q.lora_A.weight", "q.lora_B.weight"),
    ("base_model.model.q.lora_A.default.weight", "base_model.model.q.lora_B.default.weight"),
    ("lora_A", "lora_B"),
    ("e.lora_embedding_A", "e.lora_embedding_B"),
    ("q.lora_a.weight", "q.lora_b.weight"),
    ("unet_q.lora_down.weight", "unet_q.lora_up.weight"),
    ("processor.to_q_lora.down.weight", "processor.to_q_lora.up.weight"),
    ("q.lora_linear_layer.down.weight", "q.lora_linear_layer.up.weight"),
]
# LoHa, LoKr, VeRA and DoRA of peft, which multiply otherwise.
OTHER_PRODUCTS = [
    ("q.hada_w1_a", "q.hada_w1_b"),
    ("q.hada_w2_a.default", "q.hada_w2_b.default"),
    ("q.lokr_w1", "q.lokr_w2"),
    ("q.lokr_w2_a", "q.lokr_w2_b"),
    ("q.vera_lambda_d", "q.vera_lambda_b"),
    ("q.hada_w1_a", "q.hada_w2_b"),
    ("q.lokr_w1", "q.lokr_w2_b"),
    ("unet_q.lora_up.weight", "unet_q.alpha"),
    ("q.hada_w2_b", "q.alpha"),
    ("q.lora_magnitude_vector", "q.lora_B.weight"),
    ("q.lora_magnitude_vector", "q.lora_A.weight"),
    ("q.lora_magnitude_vector.default.weight", "q.lora_B.default.weight"),
]


def adapter(names, seed, frozen=()):
    draws = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(0)
    down, up = (
        torch.randn(shape, generator=draws[k in frozen]) for k, shape in enumerate([(2, 5), (4, 2)])
    )
    return {names[0]: down, names[1]: up, "bias": torch.full((4,), float(seed))}


MERGES = {
    "average": average,
    "SLERP": lambda states: slerp(states[0], states[1], 0.5),
    "Karcher": karcher_mean,
    "Fisher": lambda states: fisher_average(states, [{}, {}]),
    "greedy": lambda states: greedy_soup(states, lambda state: 3.0, [2.0, 1.0])[0],
    "Model Stock": lambda states: model_stock(states[0], states),
    "task vector": lambda states: task_vector(*states),
}


@pytest.mark.parametrize("names", [*NAMES, *OTHER_PRODUCTS])
@pytest.mark.parametrize("merge", MERGES.values(), ids=MERGES)
def test_two_factors_that_both_differ_are_refused(merge, names):
    with pytest.raises(CheckpointError, match="factors of one matrix") as caught:
        merge([adapter(names, 1), adapter(names, 2)])
    assert f"'{names[0]}' and '{names[1]}'" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("frozen", [0, 1])
@pytest.mark.parametrize("names", NAMES)
def test_with_one_factor_in_common_the_mean_is_that_of_the_products(names, frozen):
    states = [adapter(names, seed, {frozen}) for seed in (1, 2, 3)]
    wanted = sum(state[names[1]].double() @ state[names[0]].double() for state in states) / 3
    better = itertools.count(4)
    soup, _ = greedy_soup(states, lambda _: float(next(better)), [3, 2, 1])
    origin = adapter(names, 4, {frozen})
    vectors = [task_vector(state, origin) for state in states]
    for merged in (average(states), soup, task_arithmetic(origin, vectors, 1 / 3)):
        product = merged[names[1]].double() @ merged[names[0]].double()
        torch.testing.assert_close(product, wanted, rtol=1e-5, atol=1e-6)


def test_what_only_sounds_like_a_factor_is_merged():
    states = [{"flora_A.weight": torch.ones(2), "lora_A": torch.ones(3)}] * 2
    assert average(states)["lora_A"].tolist() == [1, 1, 1]


def pruned(seed):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(4, 4))
    prune.random_unstructured(net[0], "weight", 0.5)
    return net.state_dict()


def packed(seed):
    """A weight of four bits, as GPTQ and AWQ write it."""
    draw = torch.Generator().manual_seed(seed)
    words = torch.randint(0, 1 << 30, (2, 3), dtype=torch.int32, generator=draw)
    return {"0.qweight": words, "0.scales": torch.full((3,), float(seed))}


def scaled(seed, scale=None, name="0.weight_scale", kind=torch.float8_e4m3fn, shape=(3, 4)):
    """A weight of eight bits, to be multiplied by its scale."""
    weight = 50 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    scale = torch.tensor(float(scale or seed))
    return {"0.weight": (weight / scale).to(kind), name: scale}


def test_two_factors_may_not_differ_beside_a_third_that_does_not():
    states = [adapter(NAMES[5], seed, {0}) for seed in (1, 2)]
    for seed, state in enumerate(states, start=1):
        state["unet_q.alpha"] = torch.tensor(float(seed))
    with pytest.raises(CheckpointError, match="are the factors of one"):
        average(states)
    states[1]["unet_q.alpha"] = states[0]["unet_q.alpha"]
    assert average(states)["unet_q.alpha"] == 1


def test_weights_of_eight_bits_with_one_scale_have_a_mean():
    states = [scaled(seed, scale=0.5) for seed in (1, 2)]
    merged = average(states)
    wanted = sum(state["0.weight"].double() for state in states) / 2
    assert torch.equal(merged["0.weight"], wanted.to(torch.float8_e4m3fn))
    assert merged["0.weight_scale"] == 0.5


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (packed, "'0.qweight' of .* holds other whole numbers"),
        (scaled, "'0.weight' in eight bits is multiplied by '0.weight_scale'"),
        (lambda seed: scaled(seed, name="0.weight_scale_inv"), "by '0.weight_scale_inv'"),
        (lambda seed: scaled(seed, name="0.weight_scales"), "by '0.weight_scales'"),
        (lambda seed: scaled(seed, name="0.scale_weight"), "by '0.scale_weight'"),
        (lambda seed: scaled(seed, kind=torch.int8, shape=5), "'0.weight' of .* holds other whole"),
        (pruned, "'0.weight_mask' of .* is another pruning mask"),
        (lambda seed: adapter(NAMES[0], seed), "factors of one matrix"),
    ],
)
def test_files_are_refused_as_state_dicts_are(tmp_path, capsys, make, message, suffix):
    paths = [tmp_path / f"{seed}.{suffix}" for seed in (1, 2)]
    for seed, path in enumerate(paths, start=1):
        if suffix == "pt":
            torch.save(make(seed), path)
        else:
            write_safetensors(path, make(seed))
    out = tmp_path / f"out.{suffix}"
    with pytest.raises(SystemExit) as caught:
        main(["average", *map(str, paths), "-o", str(out)])
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    with pytest.raises((ArchitectureMismatchError, CheckpointError), match=message) as same:
        average(paths)
    assert str(same.value) in said
    assert sorted(tmp_path.iterdir()) == paths


def test_masks_are_no_part_of_the_share_that_ties_keeps():
    start, end = pruned(1), pruned(1)
    kept = end["0.weight_mask"].bool()
    end["0.weight_orig"] = end["0.weight_orig"] + torch.arange(16).view(4, 4) * kept / 16
    end["0.bias"] = end["0.bias"] + 2
    merged = ties(start, [task_vector(end, start)], 1.0, 0.5)
    # Half of 16 weights and 4 biases: the biases, and the six largest steps of weights.
    moved = merged["0.weight_orig"] != start["0.weight_orig"]
    steps = (end["0.weight_orig"] - start["0.weight_orig"]).flatten()
    wanted = torch.zeros(16, dtype=torch.bool)
    wanted[steps.argsort(descending=True)[:6]] = True
    assert torch.equal(moved.flatten(), wanted)
    assert torch.equal(merged["0.weight_mask"], start["0.weight_mask"])


@pytest.mark.parametrize("names", [("lora_A", "lora_B"), ("w_mask", "w_orig")])
def test_what_is_the_same_in_another_type_is_merged_from_files_too(names, tmp_path):
    fixed = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for path, kind in zip(paths, (torch.float32, torch.float16), strict=True):
        own = torch.full((2, 2), float(len(str(kind))), dtype=kind)
        write_safetensors(path, {names[0]: fixed.to(kind), names[1]: own})
    output = tmp_path / "o.safetensors"
    main(["average", *map(str, paths), "-o", str(output)])
    found, expected = read_checkpoint(output).state_dict, average(paths)
    assert torch.equal(expected[names[0]], fixed)
    assert all(torch.equal(found[name], expected[name]) for name in names)
