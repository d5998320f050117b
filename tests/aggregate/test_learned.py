import copy

import pytest
import torch

from lightning_merge.aggregate import learned_soup
from lightning_merge.aggregate.flat import FlatLayout
from lightning_merge.aggregate.learned_soup import (
    GradientBuffer,
    interpolate_flat_,
    merge_flat_,
    merged_weights,
)
from lightning_merge.errors import ConfigError


def tensors(seed, dtype=torch.float32):
    torch.manual_seed(seed)
    return {
        "conv": torch.randn(4, 3, 3, 3, dtype=dtype).to(memory_format=torch.channels_last),
        "linear": torch.randn(5, 7, dtype=dtype),
        "bias": torch.randn(5, dtype=dtype),
        "scale": torch.randn((), dtype=dtype),
    }


def test_flattening_comes_back_in_value_and_memory_format():
    given = tensors(0)
    layout = FlatLayout(given)
    views = layout.named_views(layout.flatten(given))
    assert layout.size == 4 * 27 + 35 + 5 + 1
    for name, tensor in given.items():
        assert torch.equal(views[name], tensor)
        assert views[name].stride() == tensor.stride()


def test_views_share_the_buffer():
    layout = FlatLayout(tensors(0))
    buffer = torch.zeros(layout.size)
    layout.named_views(buffer)["linear"].fill_(2.0)
    assert buffer.sum().item() == 2.0 * 35


def test_different_types_are_refused():
    with pytest.raises(ConfigError, match=r"float16.*float32|float32.*float16"):
        FlatLayout({"a": torch.ones(1), "b": torch.ones(1).half()})
    with pytest.raises(ConfigError, match="int64"):
        FlatLayout({"a": torch.ones(1, dtype=torch.long)})


@pytest.mark.parametrize("granularity", ["model", "layer", "channel"])
def test_segments_cover_the_buffer(granularity):
    layout = FlatLayout(tensors(0))
    lengths = layout.segments(granularity)
    assert sum(lengths) == layout.size
    assert len(lengths) == {"model": 1, "layer": 4, "channel": 4 + 5 + 5 + 1}[granularity]


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0,)])
def test_layers_without_inputs_or_outputs_have_segments_too(shape):
    layout = FlatLayout({"empty": torch.ones(shape), "w": torch.ones(2, 2)})
    for granularity in ("model", "layer", "channel"):
        assert sum(layout.segments(granularity)) == 4


def test_channel_segments_are_the_rows_also_in_channels_last():
    given = tensors(0)
    layout = FlatLayout(given)
    numbers = torch.arange(len(layout.segments("channel"))).float()
    flat = numbers.repeat_interleave(torch.tensor(layout.segments("channel")))
    conv = layout.named_views(flat)["conv"]
    assert all(conv[row].unique().tolist() == [float(row)] for row in range(4))


def test_an_unknown_granularity_is_refused():
    with pytest.raises(ConfigError, match="granularity 'row'"):
        FlatLayout(tensors(0)).segments("row")


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("block", [1 << 18, 16, 7])
def test_weights_and_gradients_are_those_of_plain_autograd(monkeypatch, block, kept):
    monkeypatch.setattr(learned_soup, "_CPU_BLOCK", block)
    layout = FlatLayout(tensors(0, torch.float64))
    a, b = (layout.flatten(tensors(seed, torch.float64)) for seed in (1, 2))
    logits = torch.randn(layout.size, dtype=torch.float64, requires_grad=True)

    def loss(weights):
        conv, linear, _, scale = weights
        return (conv**3).sum() * scale + linear.sin().sum()

    buffer = GradientBuffer(logits) if kept else None
    ours = merged_weights(logits, [a, b], torch.empty_like(a), layout, buffer)
    (ours_grad,) = torch.autograd.grad(loss(ours), logits)
    assert (ours_grad.data_ptr() == buffer.memory.data_ptr()) if kept else True
    alpha = torch.sigmoid(logits)
    theirs = layout.views(alpha * a + (1 - alpha) * b)
    (theirs_grad,) = torch.autograd.grad(loss(theirs), logits)
    for mine, plain in zip(ours, theirs, strict=True):
        assert torch.allclose(mine, plain, rtol=1e-12)
    assert torch.allclose(ours_grad, theirs_grad, rtol=1e-10, atol=1e-12)
    # The bias takes no part in the loss.
    assert layout.named_views(ours_grad)["bias"].abs().max() == 0


def test_a_kept_buffer_gives_the_same_bits_and_takes_nothing_from_its_owner():
    layout = FlatLayout(tensors(0))
    a, b = (layout.flatten(tensors(seed)) for seed in (1, 2))
    logits = torch.randn(layout.size, requires_grad=True)
    buffer = GradientBuffer(logits)

    def loss(factor, kept=buffer):
        weights = merged_weights(logits, [a, b], torch.empty_like(a), layout, kept)
        return factor * sum((weight**3).sum() for weight in weights)

    def plain(factor):
        return torch.autograd.grad(loss(factor, None), logits)[0]

    # A gradient that somebody has stays what it is, whatever comes next.
    found = [torch.autograd.grad(loss(factor), logits)[0] for factor in (1.0, 2.0, 3.0)]
    for factor, gradient in zip((1.0, 2.0, 3.0), found, strict=True):
        assert torch.equal(gradient, plain(factor))
    del found, gradient
    # Two merges before their gradients, one of them twice; one that is never asked for.
    loss(7.0)
    first, second = loss(1.0), loss(2.0)
    for one, factor in ((first, 1.0), (second, 2.0), (first, 1.0)):
        (gradient,) = torch.autograd.grad(one, logits, retain_graph=True)
        assert torch.equal(gradient, plain(factor))
    del gradient
    # Accumulated: the sum is not written over by the next merge, which comes before it is used.
    loss(1.0).backward()
    assert logits.grad.data_ptr() == buffer.memory.data_ptr()
    loss(2.0).backward()
    loss(4.0)
    assert torch.equal(logits.grad, plain(1.0) + plain(2.0))
    assert torch.equal(copy.deepcopy(buffer).memory, buffer.memory)


@pytest.mark.parametrize("large", [1 << 14, 30])
@pytest.mark.parametrize("count", [2, 3])
def test_gradients_are_gathered_from_wherever_and_however_they_lie(monkeypatch, large, count):
    monkeypatch.setattr(learned_soup, "_LARGE", large)
    given = [{"first": torch.randn(3).double(), **tensors(k, torch.float64)} for k in range(count)]
    layout = FlatLayout(given[0])
    flat = [layout.flatten(one) for one in given]
    shape = (layout.size,) if count == 2 else (count, layout.size)
    logits = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    alphas = (
        torch.stack([logits.sigmoid(), 1 - logits.sigmoid()]) if count == 2 else logits.softmax(0)
    )
    theirs = layout.views((alphas * torch.stack(flat)).sum(0))
    ours = merged_weights(logits, flat, torch.empty_like(flat[0]), layout)
    factor = torch.randn(7, 5, dtype=torch.float64)
    losses = [
        (weights[0] ** 2).sum()
        + (weights[1] ** 3).sum() * weights[4]
        + (weights[2].T * factor).sum()
        for weights in (ours, theirs)
    ]
    found, expected = (torch.autograd.grad(loss, logits)[0] for loss in losses)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("count", [2, 3])
def test_narrow_types_are_rounded_little_more_than_once(monkeypatch, dtype, count):
    monkeypatch.setattr(learned_soup, "_CPU_BLOCK", 300)
    torch.manual_seed(count)
    flat = [torch.randn(1000).to(dtype) for _ in range(count)]
    logits = torch.randn((1000,) if count == 2 else (count, 1000)).mul(2).to(dtype)
    wide = logits.double()
    alphas = torch.stack([wide.sigmoid(), 1 - wide.sigmoid()]) if count == 2 else wide.softmax(0)
    every = torch.stack(flat).double()
    found = merge_flat_(torch.empty_like(flat[0]), logits, flat)
    assert found.dtype == dtype
    near = 2 * torch.finfo(dtype).eps * every.abs().amax(0)
    assert bool(((found.double() - (alphas * every).sum(0)).abs() <= near).all())


def test_the_ends_give_the_ingredients_themselves():
    a, b = torch.randn(1000), torch.randn(1000)
    out = torch.empty(1000)
    assert torch.equal(interpolate_flat_(out, torch.full((1000,), 200.0), a, b), a)
    assert torch.equal(interpolate_flat_(out, torch.full((1000,), -200.0), a, b), b)
    assert torch.equal(interpolate_flat_(out, torch.zeros(1000), a, b), (a + b) / 2)
