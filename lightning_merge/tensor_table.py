"""What state dicts must have in common to be merged: the one place that checks it.

A table contains the type and shape of every tensor, whether its numbers are in memory or in a
file that is not read yet.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lightning_merge.errors import ArchitectureMismatchError, CheckpointError
from lightning_merge.number_types import common_type, is_complex, is_fraction, type_name
from lightning_merge.tensor_names import is_batch_counter, matched, unwrapped


@dataclass(frozen=True)
class Entry:
    """A tensor's shape, and its type as safetensors names it (`F32`)."""

    code: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{type_name(self.code)} {self.shape}"


Table = Mapping[str, Entry]


def common_names(tables: Sequence[Table], names: Sequence[str]) -> list[dict[str, str]]:
    """For each ingredient, its own names of tensors by those that all have in common.

    They may differ in wrappers or prefixes only. The common names are the first ingredient's,
    without the marks of wrappers if the ingredients' names differ.
    """
    common = list(tables[0])
    if any(table.keys() != tables[0].keys() for table in tables):
        # A batch counter is taken from any ingredient that has it.
        fullest = max(tables, key=lambda table: sum(map(is_batch_counter, table)))
        common = list(unwrapped(fullest))
        if len(common) < len(fullest) - 1:
            common = list(fullest)
    found = []
    for table, name in zip(tables, names, strict=True):
        own = matched(table, common)
        if own is None:
            _name_that_differs(tables[0], table, names[0], name)
            own = {key: key for key in table}
        found.append(own)
    return found


def _name_that_differs(first: Table, other: Table, here: str, there: str) -> None:
    for key in [*first, *(key for key in other if key not in first)]:
        if (key in first) != (key in other) and not is_batch_counter(key):
            entry = first.get(key) or other[key]
            present = (entry.shape, "absent") if key in first else ("absent", entry.shape)
            raise ArchitectureMismatchError(
                f"different architectures: '{key}' is {present[0]} in {here} and {present[1]} in "
                f"{there}; {_ADVICE}"
            )


_ADVICE = (
    "merge networks of one architecture, or (merge, compare) of different tasks with "
    "--heads first, of different widths with --widen true"
)


def common_entries(tables: Sequence[Table], names: Sequence[str]) -> dict[str, Entry]:
    """Types and shapes of the merged tensors, after checking that they can be merged.

    The tables have the same names; batch counters may be missing in some. A floating-point type is
    the widest of the ingredients', whatever their order. Refused are tensors that are not free
    parameters, such as a spectral norm's vectors, a weight that is split into direction and length,
    or a pruned weight.
    """
    every = dict.fromkeys(key for table in tables for key in table)
    merged = {}
    for key in every:
        owners = [
            (table[key], name) for table, name in zip(tables, names, strict=True) if key in table
        ]
        if len(owners) < len(tables) and not is_batch_counter(key):
            for table, name in zip(tables[1:], names[1:], strict=True):
                _name_that_differs(tables[0], table, names[0], name)
        first, here = owners[0]
        for entry, there in owners[1:]:
            if entry.shape != first.shape:
                raise ArchitectureMismatchError(
                    f"different architectures: '{key}' is {first.shape} in {here} and "
                    f"{entry.shape} in {there}; {_ADVICE}"
                )
            if entry.code != first.code and not _mixable(entry.code, first.code):
                raise ArchitectureMismatchError(
                    f"'{key}' is {type_name(first.code)} in {here} and {type_name(entry.code)} in "
                    f"{there}; convert one, so that both hold the same kind of number"
                )
        code = first.code
        if is_fraction(code):
            code = common_type([entry.code for entry, _ in owners])
        merged[key] = Entry(code, first.shape)
    check_free(merged)
    return merged


def _mixable(a: str, b: str) -> bool:
    return is_fraction(a) and is_fraction(b) and not is_complex(a) and not is_complex(b)


def check_free(names: Mapping[str, object]) -> None:
    """Checks that every tensor is a free parameter, which can be averaged by itself.

    An error names one that is not, and what to do.
    """
    for name in names:
        layer, _, last = name.rpartition(".")
        stem = name[: -len("_u")]
        if re.search(r"(^|\.)parametrizations\.[^.]+\.original\d*$", name):
            raise CheckpointError(
                f"'{name}' is what a parametrization (a weight or spectral norm) makes a weight "
                "from: it has no mean of its own; call torch.nn.utils.parametrize."
                f"remove_parametrizations(module, '{layer.rpartition('.')[2]}') on every network, "
                "and save again"
            )
        if last.endswith("_u") and f"{stem}_orig" in names:
            raise CheckpointError(
                f"'{name}' belongs to a spectral norm, which has no mean; call torch.nn.utils."
                "remove_spectral_norm on every network, and save again"
            )
        if last.endswith("_g") and f"{stem}_v" in names and stem not in names:
            raise CheckpointError(
                f"'{name}' and '{stem}_v' are the length and direction of one weight, and their "
                "means are not those of the weight; call torch.nn.utils.remove_weight_norm on "
                "every network, and save again"
            )


def pruning_mask(name: str, names: Mapping[str, object]) -> bool:
    """Whether a tensor is the pruning mask of another; it must be equal in all ingredients."""
    return name.endswith("_mask") and f"{name.removesuffix('_mask')}_orig" in names


def must_agree(name: str, entry: Entry, names: Mapping[str, object]) -> str | None:
    """Why a tensor must be equal in all ingredients, for an error message, if it must.

    Counters and flags are taken from the first ingredient. Pruning masks, quantised weights and the
    offsets of a quantisation can neither be averaged nor taken from one network.
    """
    if pruning_mask(name, names):
        return "is another pruning mask: call torch.nn.utils.prune.remove on every network first"
    within, dot, own = name.rpartition(".")
    if own == "zero_point" and f"{within}{dot}scale" in names:
        return "is of another quantisation: merge the networks before they are prepared for it"
    # Packed weights of four bits lie in numbers of 8 or 32.
    packed = entry.code in ("I8", "U8", "I32", "U32")
    if packed and (len(entry.shape) > 1 or _scale(name, names) is not None):
        return "holds other whole numbers, which have no mean: dequantise the networks first"
    return None


# As loralib, peft (LoRA, LoHa, LoKr, VeRA, DoRA), torchtune, diffusers and kohya name what is
# multiplied. A magnitude and `alpha` are of a layer.
_PRODUCTS = (
    ("lora_magnitude_vector", "lora_A", "lora_B"),
    ("lora_a", "lora_b"),
    ("lora_embedding_A", "lora_embedding_B"),
    ("lora_down", "lora_up", "alpha", "dora_scale"),
    ("lora.down", "lora.up"),
    ("lora_linear_layer.down", "lora_linear_layer.up"),
    ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "alpha"),
    ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "alpha"),
    ("vera_lambda_d", "vera_lambda_b"),
)
_LATER = {
    word: product[position:]
    for product in _PRODUCTS
    for position, word in enumerate(product, start=1)
    if word not in ("alpha", "dora_scale")
}
_FACTOR = re.compile(rf"(?<![a-z])({'|'.join(map(re.escape, _LATER))})(?![a-z]|_[ab]\b)")
# By what numbers of eight bits are multiplied, as transformers, vLLM and ComfyUI name it.
_SCALES = ("{0}{1}_scale", "{0}{1}_scale_inv", "{0}{1}_scales", "{0}scale_{1}")


def _scale(name: str, names: Mapping[str, object]) -> str | None:
    """The scale of a tensor of eight bits; None where there is none."""
    within, dot, own = name.rpartition(".")
    scales = (scale.format(within + dot, own) for scale in _SCALES)
    return next((scale for scale in scales if scale in names), None)


def other_factors(name: str, names: Table) -> list[str]:
    """The tensors that another one is multiplied with, each pair of them once.

    Those of a low-rank adapter, and the scale of a weight in eight bits. The mean of the products
    is the product of the means only where all factors but one are the same in all networks.
    """
    if name in names and names[name].code.startswith("F8"):
        scale = _scale(name, names)
        return [] if scale is None else [scale]
    found = _FACTOR.search(name)
    if found is None:
        return []
    before, after = name[: found.start()], name[found.end() :]
    others = []
    for word in _LATER[found[0]]:
        # A magnitude is a parameter of its own, and a matrix lies in a layer.
        places = (before + word + after, f"{before}{word}{after}.weight", before + word)
        others += [one for one in places if one in names][:1]
    return others


def not_linear(name: str, other: str) -> CheckpointError:
    """The error for two factors that both differ between networks."""
    if _FACTOR.search(name) is None:
        return CheckpointError(
            f"'{name}' in eight bits is multiplied by '{other}', and the mean of such products is "
            "not the product of the means: dequantise the networks first"
        )
    return CheckpointError(
        f"'{name}' and '{other}' are the factors of one matrix (an adapter's), and the mean of "
        "such matrices is not the product of the factors' means: add the adapters to the weights "
        "first (peft: merge_and_unload()), and save again"
    )
