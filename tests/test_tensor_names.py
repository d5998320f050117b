import pytest

from lightning_merge.tensor_names import matched, unwrapped

NET = ["net.0.weight", "net.0.bias", "net.1.running_mean", "net.1.num_batches_tracked"]


@pytest.mark.parametrize(
    "change",
    [
        lambda n: n,
        lambda n: "module." + n,
        lambda n: "_orig_mod." + n,
        lambda n: "module._orig_mod." + n,
        lambda n: n.replace("net.", "net._orig_mod."),
        lambda n: n.replace("net.0.", "net.0._checkpoint_wrapped_module."),
        lambda n: "_fsdp_wrapped_module." + n.replace("0.", "0._fsdp_wrapped_module."),
        lambda n: n.removeprefix("net."),
        lambda n: "module." + n.removeprefix("net."),
        lambda n: n.replace("net.", "net.module."),
        lambda n: "model." + n,
    ],
)
def test_wrappers_and_prefixes_are_seen_through_in_both_directions(change):
    changed = [change(name) for name in NET]
    assert matched(changed, NET) == dict(zip(NET, changed, strict=True))
    assert matched(NET, changed) == dict(zip(changed, NET, strict=True))


def test_the_count_of_an_averaged_model_is_left_out():
    names = ["n_averaged", *("module." + name for name in NET)]
    assert list(unwrapped(names)) == NET
    assert matched(names, NET) == {name: "module." + name for name in NET}
    # A network's own tensor of that name stays.
    assert list(unwrapped(["n_averaged", "w"])) == ["n_averaged", "w"]


def test_batch_counters_may_be_absent_and_others_not():
    assert matched(NET[:-1], NET) == {name: name for name in NET[:-1]}
    assert matched(NET, NET[:-1]) == {name: name for name in NET[:-1]}
    assert matched(NET[1:], NET) is None
    assert matched([*NET, "head.weight"], NET) is None
    assert matched(NET[1:], NET, optional=NET[:1]) == {name: name for name in NET[1:]}


def test_as_many_first_parts_as_names():
    # Each could be a prefix of all the others: trying every pair would take minutes.
    names = [f"layer{index}.weight" for index in range(20_000)]
    assert matched([*names[1:], "other.weight"], names) is None
    wrapped = [f"net.{name}" for name in names]
    assert matched(names, wrapped) == dict(zip(wrapped, names, strict=True))
