"""A spec as a table: its groups, and what is frozen."""

from collections.abc import Sequence

from lightning_merge.symmetry.unit_group import Group

# So many members of a group are named.
_NAMED = 3


def spec_table(groups: Sequence[Group], frozen: Sequence[str]) -> str:
    """A line for each group (name, symmetry, size, members), and one for each frozen part."""
    rows = [("group", "symmetry", "size", "members")]
    rows += [(one.name, one.symmetry, str(one.size), _members(one)) for one in groups]
    name, symmetry, size = (max(len(row[k]) for row in rows) for k in range(3))
    lines = [f"{a:{name}}  {b:{symmetry}}  {c:>{size}}  {d}" for a, b, c, d in rows]
    if not groups:
        lines.append("(no group: nothing can be moved)")
    return "\n".join([*lines, *(f"frozen: {line}" for line in frozen)])


def _members(group: Group) -> str:
    shown = [f"{one.tensor}[{','.join(map(str, one.axes))}]" for one in group.members[:_NAMED]]
    more = len(group.members) - len(shown)
    return f"{len(group.members)}: {', '.join(shown)}" + (f" and {more} more" if more else "")
