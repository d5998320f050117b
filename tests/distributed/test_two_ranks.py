import pytest
import torch
from strangers import randomise, small_network
from torch import nn
from torch.utils.data import DataLoader
from two_processes import run_on_two
from two_ranks import (
    VALIDATION,
    Counting,
    aligned,
    alphas,
    batchnorm_batches,
    distilled,
    few_batches,
    logged,
    main,
    matched,
    moments,
    observations,
    repaired,
    reset,
    scores,
    sorted_data,
    training_data,
    validation_data,
)

from lightning_merge import distributed
from lightning_merge.distributed import rank_batches
from lightning_merge.errors import DataError
from lightning_merge.orders import in_random_order
from lightning_merge.recalibrate import reset_batchnorm


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What the two ranks found, from one run of both."""
    folder = tmp_path_factory.mktemp("ranks")
    run_on_two(main, folder)
    return folder, [torch.load(folder / f"{i}.pt", weights_only=False) for i in range(2)]


def assert_close(found, wanted, **tolerance):
    for name, value in wanted.items():
        assert torch.allclose(found[name].double(), value.double(), **tolerance), name


def test_batchnorm_statistics_of_uneven_shares_are_those_of_one_process(two):
    _, found = two
    assert [result["ranks"] for result in found] == [[(0, 2), (1, 2)]] * 2
    assert [result["share"] for result in found] == [[18, 18, 8], [18, 18]]
    wanted = reset(batchnorm_batches())
    for result in found:
        assert_close(result["reset"], wanted, rtol=1e-5, atol=1e-6)
    assert all(torch.equal(value, found[1]["reset"][k]) for k, value in found[0]["reset"].items())
    alone = reset(list(in_random_order(batchnorm_batches()))[::2])
    assert not torch.allclose(alone["1.running_mean"], wanted["1.running_mean"], rtol=1e-3)


def test_the_first_norm_pools_the_examples_of_all_ranks(two):
    """Directly: the convolution's output for all images at once."""
    _, found = two
    network = randomise(small_network(), 1)
    values = network[0](batchnorm_batches().dataset.tensors[0]).detach().double()
    for kind in ("reset", "own", "synchronised"):
        for result in found:
            state = result[kind]
            assert torch.allclose(state["1.running_mean"].double(), values.mean((0, 2, 3)))
            assert torch.allclose(state["1.running_var"].double(), values.var((0, 2, 3)))
            assert state["1.num_batches_tracked"] == 5


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        ("batches", lambda: reset(batchnorm_batches(), "batches")),
        ("synchronised", lambda: reset(batchnorm_batches())),
        ("sorted", lambda: reset(DataLoader(sorted_data(), batch_size=16))),
        ("few", lambda: reset(few_batches())),
        ("repaired", lambda: repaired(lambda batches: batches)),
    ],
)
def test_two_ranks_find_what_one_process_finds(two, kind, wanted):
    _, found = two
    for result in found:
        assert_close(result[kind], wanted(), rtol=1e-5, atol=1e-6)
        assert all(torch.equal(value, found[0][kind][k]) for k, value in result[kind].items())


def test_metrics_of_uneven_shares_are_those_of_all_examples(two):
    _, found = two
    wanted = scores(slice(None))
    for result in found:
        for task, values in wanted.items():
            assert result["scores"][task] == pytest.approx(values, abs=1e-6)
    assert scores(slice(0, 51)) != wanted


def test_losses_of_uneven_shares_are_means_over_all_examples(two):
    _, found = two
    wanted = logged(1)
    assert {"train_loss", "val_loss", "test_loss", "train_accuracy"} <= wanted.keys()
    for result in found:
        assert result["logged"] == pytest.approx(wanted, abs=1e-6)


def test_a_learned_matching_logs_what_all_examples_lose(two):
    _, found = two
    wanted = distilled(1)
    assert {"train_loss", "val_loss"} <= wanted.keys()
    for result in found:
        assert result["distilled"] == pytest.approx(wanted, rel=1e-5)


def test_moments_of_uneven_shares_are_those_of_all_observations(two):
    _, found = two
    a, b = (
        torch.cat(side).movedim(1, 0).flatten(1).double()
        for side in zip(*observations(5), strict=True)
    )
    joint = torch.cov(torch.cat([a, b]), correction=0)
    wanted = joint[:4, :4], joint[:4, 4:], joint[4:, 4:]
    for result in found:
        for ours, theirs in zip(result["covariances"], wanted, strict=True):
            assert torch.allclose(ours, theirs, atol=1e-4)
        theirs = torch.corrcoef(torch.cat([a, b]))[:4, 4:]
        assert torch.allclose(result["correlation"], theirs, atol=1e-5)
    alone = moments(observations(5)[:3]).correlation()
    assert not torch.allclose(alone, theirs, atol=1e-3)


def test_activation_matching_sees_all_ranks_batches(two):
    _, found = two
    wanted = matched(lambda batches: batches)
    assert wanted
    for result in found:
        assert_close(result["matched"], wanted, atol=1e-6)
    assert all(torch.equal(v, found[1]["matched"][k]) for k, v in found[0]["matched"].items())


def test_two_ranks_learn_the_alphas_of_one_process(two):
    _, found = two
    wanted = alphas(1)
    for result in found:
        assert_close(result["alphas"], wanted, atol=1e-6)
    assert all(torch.equal(v, found[1]["alphas"][k]) for k, v in found[0]["alphas"].items())
    assert max(float((value - 0.5).abs().max()) for value in wanted.values()) > 0.01


def test_each_rank_reads_its_share_and_all_align_as_one_process_does(two):
    _, found = two
    first, second = (result["aligned"] for result in found)
    assert [first["sizes"], second["sizes"]] == [[12, 12, 7], [12, 12]]
    wanted = aligned(1)
    assert wanted["sizes"] == [12, 12, 12, 12, 7]
    for name, value in wanted["ingredient"].items():
        # A permutation moves numbers, and changes none.
        assert torch.equal(first["ingredient"][name], value), name
        assert torch.equal(second["ingredient"][name], value), name
    for own in (slice(0, None, 2), slice(1, None, 2)):
        alone = aligned(1, own)["ingredient"]
        assert any(not torch.equal(alone[k], v) for k, v in wanted["ingredient"].items())


def test_two_ranks_that_were_stopped_go_on_bit_for_bit(two):
    folder, found = two
    first, second = (result["resumed"] for result in found)
    assert (first["whole"] != 0).sum() > first["whole"].numel() // 2
    for result in (first, second):
        for step, again in result["again"].items():
            assert torch.equal(again, first["whole"]), step
    for run in ("whole", "from3", "from7"):
        assert (folder / run / "by_rank_0.ckpt").exists()
        assert not (folder / run / "by_rank_1.ckpt").exists()
    # Each rank draws its own numbers: those of the other one would give other alphas.
    saved = torch.load(folder / "whole" / "step=3.ckpt", weights_only=True)
    now = [rank["torch"] for rank in saved["lightning_merge"]["rng"]["now"]]
    assert not torch.equal(*now)


def validated(state):
    module = Counting()
    module.load_state_dict(state)
    images, targets = validation_data().dataset.tensors
    with torch.no_grad():
        return nn.functional.cross_entropy(module.eval()(images), targets).item()


def test_a_greedy_soup_counts_each_example_once(two):
    folder, found = two
    first, second = (result["soup"] for result in found)
    assert first["seen"] == second["seen"] == VALIDATION
    assert first["rows"] == second["rows"]
    assert first["score"] == second["score"]
    for row in first["rows"]:
        from safetensors.torch import load_file

        alone = validated(load_file(folder / "soup" / row["ingredient"]))
        assert row["alone"] == pytest.approx(alone, rel=1e-5)
    written = torch.load(folder / "soup" / "greedy_soup.ckpt", weights_only=True)
    assert first["score"] == pytest.approx(validated(written["state_dict"]), rel=1e-5)
    assert first["logged"] == pytest.approx(first["score"], rel=1e-5)


def test_rank_0_alone_writes(two):
    folder, found = two
    assert found[0]["soup"]["written"] >= 2 * 3
    assert found[1]["soup"]["written"] == 0
    assert len(list((folder / "soup").iterdir())) == 4


def test_the_batchnorm_callback_divides_the_batches(two):
    _, found = two
    first, second = (result["soup"]["weights"] for result in found)
    wanted = Counting()
    wanted.load_state_dict(first)
    reset_batchnorm(randomise_statistics(wanted.net), training_data())
    for name, value in wanted.state_dict().items():
        if "running" in name:
            assert torch.equal(first[name], second[name])
            assert torch.allclose(first[name], value, rtol=1e-5, atol=1e-6), name


def randomise_statistics(network):
    for buffer in network.buffers():
        buffer.copy_(torch.rand(buffer.shape))
    return network


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize(("examples", "size"), [(5, 2), (37, 4), (40, 4), (41, 4), (6, 100)])
def test_every_example_is_in_one_batch_of_one_rank(monkeypatch, examples, size, count):
    batches = []
    for rank in range(count):
        monkeypatch.setattr(distributed, "ranks", lambda rank=rank: (rank, count))
        batches.append(rank_batches(examples, size))
    assert sorted(i for rank in batches for batch in rank for i in batch) == list(range(examples))
    assert len({len(rank) for rank in batches}) == 1
    for same in zip(*batches, strict=True):
        sizes = [len(batch) for batch in same]
        assert min(sizes) >= 1
        assert max(sizes) - min(sizes) <= 1
        assert max(sizes) <= size + 1
    if count == 1:
        assert [len(batch) for batch in batches[0][:-1]] == [size] * (len(batches[0]) - 1)


def test_fewer_examples_than_ranks_are_refused(monkeypatch):
    monkeypatch.setattr(distributed, "ranks", lambda: (0, 3))
    with pytest.raises(DataError, match="2 examples for 3 ranks"):
        rank_batches(2, 4)
