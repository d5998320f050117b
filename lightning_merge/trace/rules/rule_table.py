"""The table of rules, one for each ATen operator.

A rule receives the operator's arguments by their names in its schema, with a `Layout` in
place of each tensor, and returns the layout of the result (or a list of layouts). It states
four things at most: what is tied, what is held in place, what the result's axes are, and
which units a weight makes and reads.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from lightning_merge.trace.layout import Layout
from lightning_merge.trace.units import Role, Units


class Unsupported(Exception):  # noqa: N818 - a signal between rule and trace, never shown
    """A use of an operator for which its rule has no answer: what it touches is frozen."""


@dataclass
class Call:
    """One operator call: `call["weight"]` is the layout of the argument `weight`."""

    units: Units
    operator: str
    arguments: dict[str, Any]
    shapes: list[tuple[int, ...]]

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]

    def get(self, name: str) -> Any:
        """An argument, or None where the operator does not take it or was not given it."""
        return self.arguments.get(name)

    def role(self, weight: Layout | None, dim: int, role: Role) -> None:
        """State what a weight does with the units along one of its dimensions.

        A weight that no rule states anything about `scales` its units, entry by entry. A
        tensor that depends on the network's inputs is no weight, and stays what it is.
        """
        if weight is None or weight.is_data:
            return
        for label in weight.labels:
            if any(atom in weight.dims[dim] for atom in label.atoms):
                self.units.role(label.ids, role)

    @property
    def layouts(self) -> list[Layout]:
        """The layouts of all tensor arguments, also of those in lists."""
        return list(layouts_in(self.arguments.values()))

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the (first) result."""
        return self.shapes[0]

    @property
    def reason(self) -> str:
        """Why units that meet fixed positions in this operator are frozen."""
        return f"{self.operator} combines it with fixed positions"


def layouts_in(values: Any) -> list[Layout]:
    """All layouts in a nest of sequences."""
    found: list[Layout] = []
    for value in values:
        if isinstance(value, Layout):
            found.append(value)
        elif isinstance(value, list | tuple):
            found.extend(layouts_in(value))
    return found


Rule = Callable[[Call], Layout | list[Layout]]
R = TypeVar("R", bound=Rule)
RULES: dict[str, Rule] = {}


def rule(*operators: str) -> Callable[[R], R]:
    """Register a rule for ATen operators, named without overload and trailing underscore."""

    def register(function: R) -> R:
        RULES.update(dict.fromkeys(operators, function))
        return function

    return register


def dimension(layout: Layout, dim: int) -> int:
    """A dimension counted from the front."""
    return dim % max(len(layout.dims), 1)


def roles_of_factors(
    call: Call, factors: Sequence[Layout], indices: Sequence[str], output: str
) -> None:
    """State what the weights among the factors of an einsum do with their units.

    What is summed over is read, and what other factors lack is made.
    """
    for at, (factor, letters) in enumerate(zip(factors, indices, strict=True)):
        others = "".join([*indices[:at], *indices[at + 1 :]])
        for dim, letter in enumerate(letters):
            if letter not in output:
                call.role(factor, dim, "reads")
            elif letter not in others:
                call.role(factor, dim, "makes")
            else:
                call.role(factor, dim, "scales")
