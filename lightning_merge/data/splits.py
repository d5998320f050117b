"""Who sees which training examples: pure functions from labels to arrays of indices.

The schemes are those of NP Merge (Sec. IV-A). Every function draws from a generator of its
own, one per seed, purpose and class, so that a class is split alike whatever is in the
others, and returns sorted int64 indices.
"""

import hashlib
import json
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_merge.errors import ConfigError, DataError

Indices = NDArray[np.int64]

# Keeps the random streams of the purposes apart under one seed.
_HELD_OUT, _EIGHTY_TWENTY, _DIRICHLET, _RANDOM, _SHOTS = range(5)


def split_indices(
    labels: NDArray[np.integer], indices: Indices, scheme: str, parts: int = 2, seed: int = 0
) -> list[Indices]:
    """Divide training examples among the ingredients.

    Args:
        labels: Classes `(N,)` of all examples, or `(N, L)` of zeros and ones (multi-label).
        indices: The examples to divide, `(M,)` of them.
        scheme: One of

            * `"all"`: every part is everything.
            * `"random"`: parts of equal size (to one example), whatever the classes.
            * `"80-20"`: two parts; the first gets 80% of each of the first half of the
              classes (the larger half where their number is odd) and 20% of each of the
              others, the second the rest.
            * `"dirichlet"`: each class has its own draw from Dirichlet(0.5, ..., 0.5).
            * `"classes"`: each part gets all of so many classes, the first part the first ones,
              the larger parts first where their number does not divide.
        parts: How many.
        seed: Zero or more; the same seed gives the same parts.

    Returns:
        One array per part. Except for `"all"` they are disjoint and cover `indices`
        exactly. A part can be empty where there are few examples.

    Raises:
        ConfigError: If the scheme is unknown, or not made for that many parts.
        DataError: If the scheme goes by class and the labels are multi-label.
    """
    check_split(scheme, parts, seed)
    indices = np.sort(np.asarray(indices, dtype=np.int64))
    if scheme == "all":
        return [indices.copy() for _ in range(parts)]
    if scheme == "random":
        return _gather([np.array_split(_shuffled(indices, _RANDOM, seed), parts)], parts)
    _refuse_multilabel(labels, f"split {scheme!r}", "choose 'all' or 'random'")
    if scheme == "80-20":
        return _gather(_eighty_twenty(labels, indices, seed), parts)
    if scheme == "classes":
        return [
            indices[np.isin(labels[indices], own)]
            for own in np.array_split(np.unique(labels), parts)
        ]
    return _gather(_dirichlet(labels, indices, parts, seed), parts)


def check_split(scheme: str, parts: int, seed: int) -> None:
    """Refuses, by a `ConfigError`, what `split_indices` could not do on any labels."""
    if scheme not in ("all", "random", "80-20", "dirichlet", "classes"):
        raise ConfigError(
            f"split {scheme!r} is unknown: choose 'all', 'random', '80-20', 'dirichlet' or "
            "'classes'"
        )
    if parts < 1:
        raise ConfigError(f"parts is {parts}: choose 1 or more")
    if scheme == "80-20" and parts != 2:
        raise ConfigError(
            f"split '80-20' makes exactly 2 parts, not {parts}: set parts to 2, or use 'dirichlet'"
        )
    if seed < 0:
        raise ConfigError(f"split_seed is {seed}: choose 0 or more")


def hold_out(
    labels: NDArray[np.integer], indices: Indices, fraction: float, seed: int = 0
) -> tuple[Indices, Indices]:
    """Take a part off for selection, before anything is trained.

    The same fraction of each class is held out (to the nearest example, and never all of
    a class); multi-label examples are drawn whatever their labels.

    Args:
        labels: Classes `(N,)` of all examples, or `(N, L)` of zeros and ones (multi-label).
        indices: The examples to divide, `(M,)` of them.
        fraction: From 0 (nothing is held out) to below 1.
        seed: Zero or more.

    Returns:
        What remains, and what is held out.

    Raises:
        ConfigError: If the fraction is outside [0, 1).
    """
    if not 0 <= fraction < 1:
        raise ConfigError(f"held_out is {fraction}: choose a fraction from 0 to below 1")
    indices = np.sort(np.asarray(indices, dtype=np.int64))
    # Not scikit-learn's StratifiedShuffleSplit: it refuses a class of one example, and what it
    # draws of a class depends on the other classes, so that no split would be comparable with
    # that of the same data with fewer classes.
    # One class for all is no stratification.
    classes = labels if labels.ndim == 1 else np.zeros(len(labels), dtype=np.int64)
    divided = []
    for label, members in _by_class(classes, indices):
        held = min(round(fraction * len(members)), len(members) - 1)
        divided.append(np.split(_shuffled(members, _HELD_OUT, seed, label), [len(members) - held]))
    rest, held_out = _gather(divided, 2)
    return rest, held_out


def warn_of_none_held_out(
    labels: NDArray[np.integer], held_out: Indices, fraction: float, names: Sequence[str]
) -> None:
    """Warns where a class, or the whole set, is too small for an example of it to be held out."""
    # Of several labels a share is drawn of all examples together, rare ones or not.
    classes = labels if labels.ndim == 1 else np.zeros(len(labels), dtype=np.int64)
    missing = [int(label) for label in np.setdiff1d(classes, classes[held_out])]
    if not missing:
        return
    known = dict(enumerate(names))
    named = ", ".join(str(known.get(label, label)) for label in missing[:3])
    more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
    of = f" of {named}{more}" if len(held_out) else ""
    warnings.warn(
        f"held_out {fraction} is less than one example{of}: none of it is held out; choose a "
        "larger fraction",
        stacklevel=3,
    )


def examples_per_class(
    labels: NDArray[np.integer], indices: Indices, count: int, seed: int = 0
) -> Indices:
    """Few examples of each class, for learning from little data (NP Merge, Table IV).

    Nested: the examples for a smaller count are among those for a larger one.

    Args:
        labels: Classes `(N,)` of all examples.
        indices: The examples to choose from, `(M,)` of them.
        count: How many of each class; a class that has fewer gives all it has.
        seed: Zero or more.

    Raises:
        ConfigError: If the count is below 1.
        DataError: If the labels are multi-label.
    """
    if count < 1:
        raise ConfigError(f"examples_per_class is {count}: choose 1 or more")
    _refuse_multilabel(labels, "examples_per_class", "leave it out")
    indices = np.sort(np.asarray(indices, dtype=np.int64))
    divided = [
        [_shuffled(members, _SHOTS, seed, label)[:count]]
        for label, members in _by_class(labels, indices)
    ]
    return _gather(divided, 1)[0]


def choose(
    labels: NDArray[np.integer],
    held_out: float,
    scheme: str,
    part: int | None,
    parts: int,
    per_class: int | None,
    seed: int,
) -> tuple[Indices, Indices]:
    """What one ingredient trains on: `hold_out`, then `split_indices`, then `examples_per_class`.

    Without a part all of the rest, without a number per class all of each. Returned with it is what
    is held out.
    """
    rest, held = hold_out(labels, np.arange(len(labels), dtype=np.int64), held_out, seed)
    if part is not None:
        rest = split_indices(labels, rest, scheme, parts, seed)[part]
    if per_class is not None:
        rest = examples_per_class(labels, rest, per_class, seed)
    if len(rest) == 0:
        raise DataError(
            f"part {part} of split {scheme!r} has no examples with split_seed {seed}: choose "
            "another seed, or fewer parts"
        )
    return rest, held


def digest_of_split(train: Indices, held_out: Indices, labels: NDArray[Any]) -> str:
    """SHA-256 of who sees what: equal exactly where all three arrays are."""
    digest = hashlib.sha256()
    for array in (train, held_out, labels):
        # The lengths keep what moves from one array to the next from hashing alike.
        digest.update(len(array).to_bytes(8, "little"))
        little_endian = array.astype(array.dtype.newbyteorder("<"), copy=False)
        digest.update(np.ascontiguousarray(little_endian).tobytes())
    return digest.hexdigest()


def digest_of_examples(targets: Sequence[NDArray[Any]]) -> str:
    """SHA-256 of how many examples there are of each class (or label), whoever sees them.

    Targets are, of each split, classes `[N]` or labels `[N, L]` of 0 and 1.
    """
    rows = np.concatenate(targets)
    counts = np.unique(rows, return_counts=True) if rows.ndim == 1 else (rows.sum(axis=0),)
    text = json.dumps([len(rows), *(np.asarray(part).tolist() for part in counts)])
    return hashlib.sha256(text.encode()).hexdigest()


def _eighty_twenty(labels: NDArray[np.integer], indices: Indices, seed: int) -> list[list[Indices]]:
    classes = np.unique(labels)
    first_half = set(classes[: (len(classes) + 1) // 2].tolist())
    divided = []
    for label, members in _by_class(labels, indices):
        # Rounding the larger share in both halves treats the two parts alike.
        cut = round(0.8 * len(members))
        larger, smaller = np.split(_shuffled(members, _EIGHTY_TWENTY, seed, label), [cut])
        divided.append([larger, smaller] if label in first_half else [smaller, larger])
    return divided


def _dirichlet(
    labels: NDArray[np.integer], indices: Indices, parts: int, seed: int
) -> list[list[Indices]]:
    divided = []
    for label, members in _by_class(labels, indices):
        generator = np.random.default_rng((_DIRICHLET, seed, label))
        shares = generator.dirichlet(np.full(parts, 0.5))
        cuts = np.rint(np.cumsum(shares)[:-1] * len(members)).astype(np.int64)
        divided.append(np.split(generator.permutation(members), cuts))
    return divided


def _by_class(labels: NDArray[np.integer], indices: Indices) -> list[tuple[int, Indices]]:
    chosen = labels[indices]
    return [(int(label), indices[chosen == label]) for label in np.unique(chosen)]


def _shuffled(indices: Indices, purpose: int, seed: int, label: int = 0) -> Indices:
    return np.random.default_rng((purpose, seed, label)).permutation(indices)


def _gather(divided: list[list[Indices]], parts: int) -> list[Indices]:
    """Join what each class gave to each part: `[class][part]` to `[part]`, none if no class."""
    if not divided:
        return [np.empty(0, dtype=np.int64) for _ in range(parts)]
    return [np.sort(np.concatenate(pieces)) for pieces in zip(*divided, strict=True)]


def _refuse_multilabel(labels: NDArray[np.integer], what: str, remedy: str) -> None:
    if labels.ndim != 1:
        raise DataError(f"{what} goes by class, which multi-label examples do not have: {remedy}")
