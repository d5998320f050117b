"""Permutation specs: derived from the network itself, and verified before use."""

import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from lightning_merge.checkpoint import state_of, tensors_of
from lightning_merge.errors import AlignmentError
from lightning_merge.state_dicts import entry_of
from lightning_merge.symmetry.canonical import folded, is_folded
from lightning_merge.symmetry.copies import copies_of, with_copies
from lightning_merge.symmetry.derive import derive, derive_symmetries
from lightning_merge.symmetry.index_maps import Permutation, gather_all, to_sources
from lightning_merge.symmetry.linear_maps import (
    apply_linear,
    compose_maps,
    inverse_maps,
    orders,
    random_map,
)
from lightning_merge.symmetry.listed_groups import Entry, groups_from, with_roles
from lightning_merge.symmetry.refuse import refuse_if_lost
from lightning_merge.symmetry.spec_table import spec_table
from lightning_merge.symmetry.tied_names import under_all_names
from lightning_merge.symmetry.unit_group import Group
from lightning_merge.symmetry.verify import verify
from lightning_merge.symmetry.verify_eager import verify_eager
from lightning_merge.symmetry.verify_symmetries import verify_symmetries
from lightning_merge.trace.deadline import Deadline
from lightning_merge.trace.exported import export, structure_hash
from lightning_merge.trace.folds import Folds

# Far more than any network of timm takes; a bound, so that nothing seems to hang for ever.
TIME_LIMIT = 1800.0

Network = nn.Module | Mapping[str, Tensor] | str | os.PathLike[str]
"""A network, its state dict, or the path of a file of its weights."""

Symmetries = Literal["permutation", "all"]

_VERIFIED: dict[str, tuple[list[Group], list[str]]] = {}
_SYMMETRIC: dict[str, tuple[list[Group], Folds, list[str]]] = {}


@dataclass
class PermutationSpec:
    """Which units of a network may be permuted, and all that moves with them.

    Convention: unit `i` of the permuted network is unit `permutation[i]` of the old one, so
    a layer's weight becomes `weight[permutation]` and the next layer's `weight[:, permutation]`.
    Groups of heads as wholes are applied first, and the units inside heads afterwards, so
    that block `i` of an inner permutation belongs to head `i` of the result.

    Attributes:
        groups: In the order of the network.
        frozen: What is left alone, and why.
        shapes: The shape of every tensor of the state dict.
        buffers: The tensors that move with their units but are no parameters.
        folds: The scales of norms and layers that `canonical` puts into their neighbours.
        symmetries: Whether all symmetries of the groups were derived, or permutations only.
        copies: Parts that the forward does not run and that are built as one that it runs, such
            as its running mean: the names of their tensors with those of the other one. They
            are moved as it is.
    """

    groups: list[Group]
    frozen: list[str] = field(default_factory=list)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict, repr=False)
    buffers: frozenset[str] = field(default_factory=frozenset, repr=False)
    folds: Folds = field(default_factory=Folds, repr=False)
    symmetries: Symmetries = "permutation"
    copies: list[dict[str, str]] = field(default_factory=list, repr=False)

    @classmethod
    def from_model(
        cls,
        model: nn.Module,
        example_inputs: Tensor | Sequence[Tensor],
        freeze: Iterable[str] = (),
        merge: Iterable[Sequence[str]] = (),
        time_limit: float | None = TIME_LIMIT,
        symmetries: Symmetries = "permutation",
    ) -> "PermutationSpec":
        """Derive the spec of a network and verify it numerically.

        The network is left as it was: parameters, gradients, modes and the state of the
        global random generator. The verification runs once per architecture in a process.

        Args:
            model: Any network that `torch.export` can export.
            example_inputs: A batch as the network takes it, or a tuple of its arguments.
            freeze: Names of groups to leave alone.
            merge: Sets of names of groups of equal size that shall share one permutation.
            time_limit: Seconds after which to give up, None for never; the export itself is
                not interrupted.
            symmetries: `permutation`, or `all` for every group's largest symmetry, derived and
                verified likewise: see `Group.symmetry`. The groups are the same.

        Raises:
            AlignmentError: The network cannot be exported, none of its units can be moved
                because of how it is written, the example inputs are empty, a group's name is
                unknown, or the time is up.
        """
        arrays = (Tensor, np.ndarray)
        given = (example_inputs,) if isinstance(example_inputs, arrays) else tuple(example_inputs)
        inputs = [torch.as_tensor(x) if isinstance(x, np.ndarray) else x for x in given]
        if any(isinstance(x, Tensor) and x.ndim and not len(x) for x in inputs):
            raise AlignmentError(
                f"{type(model).__name__}: the example inputs hold no examples: give a batch of some"
            )
        deadline = Deadline(time_limit)
        exported = export(model, [_short(x) for x in inputs])
        key = structure_hash(exported)
        if key not in _VERIFIED:
            groups, frozen = derive(exported, deadline)
            groups, failed = verify(exported, groups, deadline)
            for line in failed:
                warnings.warn(f"{type(model).__name__}: {line}", stacklevel=2)
            _VERIFIED[key] = groups, frozen + failed
        groups, frozen = _VERIFIED[key]
        refuse_if_lost(model, groups, frozen)
        folds = Folds()
        if symmetries == "all":
            if key not in _SYMMETRIC:
                found = derive_symmetries(exported, deadline)
                verified = verify_symmetries(exported, found, groups, deadline)
                _SYMMETRIC[key] = *verified[:2], [*found.kept, *verified[2]]
            groups, folds, kept = _SYMMETRIC[key]
            frozen = [*frozen, *kept]
        elif symmetries != "permutation":
            raise AlignmentError(f"symmetries is {symmetries!r}: choose 'permutation' or 'all'")
        copies = copies_of(model, exported.used, groups)
        spec = cls(list(groups), list(frozen), *_tensors_of(model), folds, symmetries, copies)
        spec.groups = under_all_names(spec.groups, model)
        return spec._without(freeze)._merged(merge)

    @classmethod
    def from_groups(
        cls,
        groups: Mapping[str, Sequence[Entry]] | Iterable[Group],
        model: nn.Module,
        example_inputs: Tensor | Sequence[Tensor],
    ) -> "PermutationSpec":
        """A spec of your own, verified on the network as it runs.

        For networks that `torch.export` cannot follow, and for fewer or other groups than
        the derived ones. What is not listed stays as it is. List running statistics too.

            PermutationSpec.from_groups(
                {"conv": [("conv.weight", 0), ("conv.bias", 0), ("fc.weight", 1, 0, 49)]},
                network,
                images,
            )

        Each group, and all of them together, must leave the output unchanged under random
        permutations, in float64 with noise on every tensor, and must matter; one that fails
        is frozen and named in a warning.

        Args:
            groups: By name, `(tensor, axis)` for every axis along which the group's units
                lie; `(tensor, axis, offset, repeat)` where they are a part of it, or where
                each has several neighbouring positions, as after a flatten. Or `Group`s, for
                those that have blocks.
            model: The network, which need not be exportable.
            example_inputs: A batch as the network takes it, or a tuple of its arguments.

        Raises:
            AlignmentError: A group does not fit the network's tensors, two of them list one
                position, or the network does not run in float64.
        """
        inputs = (example_inputs,) if isinstance(example_inputs, Tensor) else example_inputs
        state = model.state_dict()
        listed = groups_from(groups, state) if isinstance(groups, Mapping) else list(groups)
        listed = with_roles(listed, model)
        spec = cls(listed, [], *_tensors_of(model))
        spec.check(state)
        spec.groups, spec.frozen = verify_eager(listed, model, [_short(x) for x in inputs])
        for line in spec.frozen:
            warnings.warn(f"{type(model).__name__}: {line}", stacklevel=2)
        spec.groups = under_all_names(spec.groups, model)
        return spec

    def __str__(self) -> str:
        return spec_table(self.groups, self.frozen)

    def identity(self) -> Permutation:
        """The permutation that changes nothing."""
        return {group.name: group.identity() for group in self.groups}

    def random(self, generator: torch.Generator | None = None) -> Permutation:
        """A random permutation of every group."""
        return {group.name: group.random(generator) for group in self.groups}

    def random_maps(self, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """A random map of every group, of the kind that its symmetry allows, for `transform`."""
        return {group.name: random_map(group, generator) for group in self.groups}

    def canonical(self, state_dict: Network) -> dict[str, Tensor]:
        """The state dict of the same function in which matrices can move through norms.

        The weight of each norm that an orthogonal group meets goes into the layers that read
        it (it becomes 1), its bias into theirs where they have one (it becomes 0), and
        LayerScale into the layer before it (it becomes 1). What writes into a stream that
        only LayerNorms read loses its mean over the units. Names, shapes and the class of the
        network stay. Without such groups, a copy.

        Args:
            state_dict: Parameters and buffers, the network itself, or its file.

        Raises:
            AlignmentError: The state dict does not belong to this spec.
        """
        return with_copies(
            self.state_of(state_dict),
            self.copies,
            lambda state: folded(state, self.groups, self.folds),
        )

    def inverse(self, permutation: Mapping[str, Tensor]) -> Permutation:
        """The permutation, or the maps, that undo others."""
        self._check_names(permutation)
        return inverse_maps(self.groups, permutation)

    def compose(self, first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> Permutation:
        """One permutation for two: `apply(apply(s, first), second) == apply(s, composed)`."""
        self._check_names([*first, *second])
        return compose_maps(self.groups, first, second)

    def transform(self, state_dict: Network, maps: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A new state dict of the same function, every group's units mapped as it allows.

        Args:
            state_dict: Parameters and buffers, the network itself, or its file; keys that no group
                moves are copied.
            maps: By group name; a group that is missing stays as it is. For a group with the
                symmetry `permutation` a LongTensor `(size,)`: the new unit `i` is the old
                unit `map[i]`. With others also what `random_maps` gives: indices and factors
                `(2, size)` where units may be `scaled`, or factors alone `(size,)`; matrices
                `(size, size)` and `(blocks, width, width)` where they may be mixed.

        Returns:
            New tensors in the same order, with their dtypes and devices.

        Raises:
            AlignmentError: A map does not fit its group, the state dict's shapes do not, or a
                matrix is to pass a norm whose weight is not 1.
        """
        self._check_names(maps)
        # A list of numbers in float64, as NumPy has it.
        maps = {
            name: given if isinstance(given, Tensor) else torch.as_tensor(np.asarray(given))
            for name, given in maps.items()
        }
        return with_copies(
            self.state_of(state_dict), self.copies, lambda state: self._transformed(state, maps)
        )

    def _transformed(
        self, state: Mapping[str, Tensor], maps: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        result = gather_all(state, to_sources(self.groups, orders(self.groups, maps)))
        for group in self.groups:
            given = maps.get(group.name)
            if given is None or group.symmetry != "orthogonal":
                continue
            if given.is_floating_point() and not is_folded(state, group, self.folds):
                raise AlignmentError(
                    f"group {group.name!r}: a norm's weight is in the way of the matrix; "
                    "transform what spec.canonical gives"
                )
        apply_linear(result, self.groups, maps)
        return result

    def apply(
        self,
        state_dict: Network,
        permutation: Mapping[str, Tensor],
    ) -> dict[str, Tensor]:
        """`transform` by permutations: a state dict of the same function in another order.

        Args:
            state_dict: Parameters and buffers, the network itself, or its file.
            permutation: By group name; a group that is missing stays as it is.

        Returns:
            New tensors in the same order, with their dtypes and devices.

        Raises:
            AlignmentError: The permutation does not fit the groups, or the state dict's
                shapes do not.
        """
        return self.transform(state_dict, permutation)

    def state_of(self, network: Network) -> Mapping[str, Tensor]:
        """The state dict of a network of this spec.

        Raises:
            AlignmentError: It is none, or does not belong to this spec.
            CheckpointError: Its file cannot be read, or a tensor has no numbers yet.
        """
        state = state_of(network)
        if not isinstance(state, Mapping):
            raise AlignmentError(
                f"a network or its state dict is needed, this is a {type(network).__name__}"
            )
        self.check(state)
        return state

    def check(self, state_dict: Mapping[str, Tensor]) -> None:
        """Whether a state dict belongs to this spec.

        Raises:
            AlignmentError: A tensor is missing or has another shape.
        """
        for group in self.groups:
            for member in group.members:
                name = member.tensor
                if name not in state_dict:
                    raise AlignmentError(
                        f"the state dict has no {name!r}, which group {group.name!r} moves; "
                        "give the state dict of the network the spec was made from"
                    )
                shape = entry_of(name, state_dict[name]).shape
                if shape != self.shapes.get(name, shape):
                    raise AlignmentError(
                        f"{name!r} has shape {shape}, the spec was made for {self.shapes[name]}"
                    )

    def group(self, name: str) -> Group:
        """The group of this name.

        Raises:
            AlignmentError: There is none.
        """
        for group in self.groups:
            if group.name == name:
                return group
        raise AlignmentError(
            f"no group is called {name!r}; the groups are {', '.join(g.name for g in self.groups)}"
        )

    def _check_names(self, names: Iterable[str]) -> None:
        for name in names:
            self.group(name)

    def _without(self, names: Iterable[str]) -> "PermutationSpec":
        for name in names:
            self.group(name)
            self.groups = [group for group in self.groups if group.name != name]
            self.frozen.append(f"{name}: frozen by the user")
        return self

    def _merged(self, sets: Iterable[Sequence[str]]) -> "PermutationSpec":
        for names in sets:
            chosen = [self.group(name) for name in names]
            if len({(group.size, group.blocks, group.level) for group in chosen}) > 1:
                raise AlignmentError(f"groups of different sizes cannot be merged: {list(names)}")
            members = tuple(member for group in chosen for member in group.members)
            first = replace(chosen[0], members=members)
            if len({(group.symmetry, group.keeps_ones) for group in chosen}) > 1:
                first = replace(first, symmetry="permutation", keeps_ones=False)
            rest = {group.name for group in chosen[1:]}
            self.groups = [
                first if group is chosen[0] else group
                for group in self.groups
                if group.name not in rest
            ]
        return self


def _tensors_of(model: nn.Module) -> tuple[dict[str, tuple[int, ...]], frozenset[str]]:
    """The shapes of a network's tensors, and which of them are buffers."""
    shapes = {name: tuple(one.shape) for name, one in tensors_of(model).items()}
    buffers = frozenset(name for name, _ in model.named_buffers(remove_duplicate=False))
    return shapes, buffers


def _short(tensor: Tensor) -> Tensor:
    """At most two examples: enough to tell a batch from a single one."""
    return tensor[:2] if tensor.ndim > 1 and tensor.shape[0] > 2 else tensor
