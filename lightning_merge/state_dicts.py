"""State dicts in memory: their tables, bytes and names, and checks that they can be merged."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_merge.errors import ArchitectureMismatchError, CheckpointError, NonFiniteError
from lightning_merge.number_types import CODES, SIZES, Raw, type_name
from lightning_merge.safetensors_file import MOST_AXES
from lightning_merge.tensor_names import is_batch_counter, matched
from lightning_merge.tensor_table import (
    Entry,
    common_entries,
    must_agree,
    not_linear,
    other_factors,
)

StateDict = dict[str, Tensor]
_ARRAYS = (np.ndarray, np.generic)


def in_memory(network: Mapping[str, Any] | nn.Module) -> Mapping[str, Any]:
    """The state dict of a network, or the one that is given, its NumPy arrays as tensors."""
    state = network.state_dict() if isinstance(network, nn.Module) else network
    if isinstance(state, dict) and any(isinstance(value, _ARRAYS) for value in state.values()):
        return {name: _as_tensor(value) for name, value in state.items()}
    return state


def tensors_of(network: Mapping[str, Any] | nn.Module) -> StateDict:
    """The tensors of a network or a state dict, without extra state, which may be anything."""
    state = network.state_dict() if isinstance(network, nn.Module) else network
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def _as_tensor(value: Any) -> Any:
    if not isinstance(value, _ARRAYS):
        return value
    try:
        return torch.from_numpy(np.require(value, value.dtype.newbyteorder("="), ["C", "W"]))
    except TypeError:
        # Of a type that torch lacks: the check of tensors names it.
        return value


def table_of(state: Mapping[str, Tensor]) -> dict[str, Entry]:
    """Type and shape of each tensor, which must be plain arrays of numbers in memory."""
    known: dict[str, Entry] | None = getattr(state, "table", None)
    return dict(known) if known is not None else {n: entry_of(n, v) for n, v in state.items()}


def entry_of(name: object, value: object) -> Entry:
    """Type and shape of a tensor, which must be a plain array of numbers in memory."""
    if not isinstance(name, str):
        raise CheckpointError(f"the tensor {name!r} has a name that is no text; rename it")
    if not isinstance(value, Tensor):
        raise CheckpointError(
            f"'{name}' is a {type(value).__name__}, not a tensor; leave it out, or give its "
            "tensors names of their own"
        )
    code = CODES.get(str(value.dtype).removeprefix("torch."))
    wrong = None
    if is_lazy(value):
        wrong = "is of a lazy layer that never ran, without a shape: run the network on a batch"
    elif value.is_quantized:
        wrong = "is quantised, and such numbers have no mean: dequantise() it first"
    elif value.is_nested or value.layout != torch.strided:
        wrong = "is sparse or nested: save it with to_dense()"
    elif hasattr(value, "__tensor_flatten__"):
        wrong = (
            f"is a {type(value).__name__}, made of other tensors: give a plain one, such as its "
            "full_tensor() (of every process together) or dequantize()"
        )
    elif value.is_meta:
        wrong = "has a shape but no numbers (it is on 'meta'): load the network's weights first"
    elif code is None:
        wrong = f"is of the packed type {value.dtype}: convert it to one of single numbers"
    elif value.dim() > MOST_AXES:
        wrong = f"has {value.dim()} axes, more than {MOST_AXES}: reshape it"
    if wrong or code is None:
        raise CheckpointError(f"'{name}' {wrong}")
    return Entry(code, tuple(value.shape))


def raw_of(tensor: Tensor) -> Raw:
    """The bytes of a tensor, `(n,)`; its own memory if it is contiguous and on the CPU.

    A parameter that requires a gradient is detached.
    """
    plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    return plain.reshape(-1).view(torch.uint8).numpy()


def torch_type(code: str) -> torch.dtype:
    """The type of torch that a code stands for: `torch.float16` of `F16`."""
    return getattr(torch, type_name(code))


def tensor_of(raw: Raw, entry: Entry) -> Tensor:
    """A tensor from its bytes, sharing their memory if they are aligned."""
    if entry.code not in SIZES:
        raise CheckpointError(
            f"a tensor is of the packed type {entry.code}: convert it to one of single numbers"
        )
    dtype = torch_type(entry.code)
    if not raw.size:
        return torch.empty(entry.shape, dtype=dtype)
    if raw.ctypes.data % SIZES[entry.code]:
        raw = raw.copy()
    return torch.from_numpy(raw).view(dtype).reshape(entry.shape)


def digest(state: Mapping[str, Tensor]) -> str:
    """The SHA-256 (hexadecimal) of a state dict: names, types, shapes and every byte."""
    sha = hashlib.sha256()
    for name in sorted(state):
        value = state[name]
        sha.update(f"{name}|{value.dtype}|{tuple(value.shape)}|".encode())
        sha.update(raw_of(value).data)
    return sha.hexdigest()


def check_ingredients(states: Sequence[Mapping[str, Tensor]], names: Sequence[str]) -> None:
    """Checks that state dicts can be merged: two or more, of one architecture, finite.

    All tensors are free parameters, and an infinity is one that all ingredients share. The names in
    messages are usually paths.
    """
    if len(states) < 2:
        only = f": there is only {names[0]}" if names else ""
        raise CheckpointError(f"merging needs at least two checkpoints{only}; add another")
    check_alike(states, names)
    for key in states[0]:
        values = [state[key] for state in states if key in state]
        for value, name in zip(values, names, strict=False):
            check_finite(f"{name}: '{key}'", value, values)


def check_alike(states: Sequence[Mapping[str, Tensor]], names: Sequence[str]) -> dict[str, Entry]:
    """Checks types, shapes, and tensors that must be equal, but not that numbers are finite.

    Type and shape of each tensor of the merged network are returned.
    """
    tables = [table_of(state) for state in states]
    merged = common_entries(tables, names)
    for key, entry in merged.items():
        why = must_agree(key, entry, merged)
        if why is not None:
            for state, name in zip(states[1:], names[1:], strict=True):
                if not _same(state[key], states[0][key]):
                    raise ArchitectureMismatchError(f"'{key}' of {name} {why}")
        for other in other_factors(key, merged):
            if not any(
                all(_same(state[factor], states[0][factor]) for state in states[1:])
                for factor in (key, other)
            ):
                raise not_linear(key, other)
    return merged


def _same(value: Tensor, other: Tensor) -> bool:
    return torch.equal(value.cpu(), other.cpu())


def check_finite(where: str, value: Tensor, others: Sequence[Tensor]) -> None:
    """Checks that a tensor has no NaN, and infinities only where all others have the same.

    A constant mask of negative infinities is part of an architecture, not an error. The others are
    the same tensor of every ingredient; none if no infinity is allowed.
    """
    if is_finite(value):
        return
    wide = value.to(torch.complex128 if value.is_complex() else torch.float64)
    odd = ~torch.isfinite(wide)
    same = (
        bool(others)
        and not bool(torch.isnan(wide).any())
        and all(torch.equal(wide[odd], other.to(wide)[odd]) for other in others)
    )
    if not same:
        raise NonFiniteError(f"{where} holds NaN or infinity; leave this checkpoint out")


def is_finite(value: Tensor) -> bool:
    """Whether a tensor has neither NaN nor infinity; always true for integers."""
    if not (value.is_floating_point() or value.is_complex()) or value.numel() == 0:
        return True
    value = value.detach()
    if value.is_complex():
        value = torch.view_as_real(value.resolve_conj())
    if value.dtype.itemsize == 1:
        value = value.to(torch.float32)
    # One pass without extra memory: NaN or infinity always shows in the minimum or maximum.
    low, high = torch.aminmax(value)
    return bool(torch.isfinite(low) & torch.isfinite(high))


def fit_names(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], name: str) -> StateDict:
    """Renames a state dict's tensors to the names that a module's state dict has.

    It may have the module's names, those of one part of it (such as a bare network, if the module
    keeps it under `network.`), or those of the module in a wrapper (`module.`, `_orig_mod.`,
    `AveragedModel`). A missing batch counter is taken from the module, and a missing one of several
    tied tensors from the others, which must be equal. The message names the first tensor that
    differs; what is not a tensor in `expected` is ignored.
    """
    wanted = tensors_of(expected)
    ties = _tied(wanted)
    found = matched(state, wanted, ties)
    named = {key: state[own] for key, own in found.items()} if found else dict(state)
    for key in wanted:
        if key in named:
            continue
        partner = next((other for other in ties.get(key, ()) if other in named), None)
        if partner is not None:
            named[key] = named[partner]
        elif found and is_batch_counter(key):
            named[key] = wanted[key].detach().clone()
    for key in [*wanted, *(key for key in named if key not in wanted)]:
        ours, theirs = _shape(named, key), _shape(wanted, key)
        if ours != theirs:
            raise ArchitectureMismatchError(
                f"{name} does not fit the network: '{key}' is {ours} in the file and {theirs} in "
                "the network; check the model's name and its number of classes"
            )
    for key, (first, *_) in ties.items():
        if key in named and not np.array_equal(raw_of(named[key]), raw_of(named[first])):
            raise ArchitectureMismatchError(
                f"{name} does not fit the network: '{first}' and '{key}' are one tensor in the "
                "network, and differ in the file; build the network without that tie"
            )
    for key, value in wanted.items():
        # torch would drop the imaginary part; and a mean of whole numbers is the first one's.
        loses = named[key].is_complex() and not value.is_complex()
        if loses or (_is_whole(named[key]) and not _is_whole(value)):
            raise ArchitectureMismatchError(
                f"{name} does not fit the network: '{key}' is {_dtype(named[key])} in the file and "
                f"{_dtype(value)} in the network; convert it, so that both hold the same kind of "
                "number"
            )
    return {key: named[key] for key in wanted}


def _tied(wanted: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """The other names of every tensor that has several names."""
    names: dict[tuple[object, ...], list[str]] = {}
    for name, value in wanted.items():
        # A lazy layer's weights have neither a size nor an address yet.
        if not is_lazy(value) and value.numel() and not value.is_meta:
            names.setdefault((value.data_ptr(), value.shape, value.stride()), []).append(name)
    return {name: same for same in names.values() if len(same) > 1 for name in same}


def prefixed(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> StateDict:
    """The state dict with the expected names, if only wrappers and a prefix differ."""
    tensors = tensors_of(expected)
    found = matched(state, tensors, _tied(tensors))
    return {key: state[own] for key, own in found.items()} if found else dict(state)


def _is_whole(value: Tensor) -> bool:
    return not (value.is_floating_point() or value.is_complex())


def _dtype(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def _shape(state: Mapping[str, Tensor], key: str) -> str:
    return str(tuple(state[key].shape)) if key in state else "absent"
