"""Names of tensors: removing the marks of wrappers, and matching the names of state dicts."""

import re
from collections.abc import Iterable, Iterator

_WRAPPED, _AVERAGES = "module", "n_averaged"
# What torch.compile, FSDP and checkpointing of activations put before the names of a part.
_MARKS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
_STATISTIC = re.compile(r"(running|moving)_(mean|var|variance)")


def is_running_statistic(name: str) -> bool:
    """Whether a tensor is a normalisation layer's running mean or variance."""
    return _STATISTIC.fullmatch(name.rpartition(".")[2]) is not None


def is_running_variance(name: str) -> bool:
    """Whether a tensor is a running variance, which is never below 0."""
    return name.endswith(("running_var", "moving_var", "running_variance", "moving_variance"))


def is_batch_counter(name: str) -> bool:
    """Whether a tensor is BatchNorm's batch counter, which may be missing in old files."""
    return name.rpartition(".")[2] == "num_batches_tracked"


def unwrapped(names: Iterable[str]) -> dict[str, str]:
    """The names, by those without marks of compilation, FSDP, checkpointing and `AveragedModel`.

    `n_averaged` is left out where it is the counter of `AveragedModel`.
    """
    bare = {}
    for name in names:
        parts = [part for part in name.split(".") if part not in _MARKS]
        bare[".".join(parts)] = name
    while rest := [name for name in bare if name != _AVERAGES]:
        if not all(name.startswith(f"{_WRAPPED}.") for name in rest):
            break
        bare = {name.removeprefix(f"{_WRAPPED}."): bare[name] for name in rest}
    return bare


def matched(
    names: Iterable[str], wanted: Iterable[str], optional: Iterable[str] = ()
) -> dict[str, str] | None:
    """The given names by the wanted ones, where they differ only in wrappers and prefixes.

    They are in the order wanted; None if they do not match. Wanted names may be missing where they
    are `optional`, batch counters on both sides.
    """
    names, wanted = list(names), list(wanted)
    may_lack = {*optional, *filter(is_batch_counter, wanted)}
    for theirs in _readings(wanted):
        split = [name.partition(".") for name in theirs]
        for ours in _readings(names):
            needed = [name for name in ours if not is_batch_counter(name)]
            for prefix in dict.fromkeys(["", *(f"{a}." for a, _, b in split if b in ours)]):
                # Stops at the first that is missing: there may be as many prefixes as names.
                if not all(prefix + name in theirs for name in needed):
                    continue
                found = {
                    theirs[prefix + name]: own
                    for name, own in ours.items()
                    if prefix + name in theirs
                }
                if found and not set(wanted) - found.keys() - may_lack:
                    return {name: found[name] for name in wanted if name in found}
    return None


def _readings(names: list[str]) -> Iterator[dict[str, str]]:
    """The names unchanged, without wrappers, and without their common prefix."""
    bare = unwrapped(names)
    inner = {".".join(p for p in name.split(".") if p != _WRAPPED): bare[name] for name in bare}
    for reading in ({name: name for name in names}, bare, inner):
        if len(reading) < len(names) - 1:
            # Two names became one.
            continue
        yield reading
        first, dot, _ = next(iter(reading), "").partition(".")
        if dot and all(name.startswith(first + dot) for name in reading):
            yield {name.removeprefix(first + dot): own for name, own in reading.items()}
