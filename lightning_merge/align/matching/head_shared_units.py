"""Units that all heads of an attention share, as those of a norm of queries and keys.

One permutation moves them in every head, while the heads move as wholes: which head of b a
head of a is to be compared with is known only when the heads are matched. Until then every
pair of heads is compared.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lightning_merge.align.matching.activation_hooks import Site
from lightning_merge.symmetry.unit_group import Group, Member


def carrier(groups: Iterable[Group], group: Group) -> Group | None:
    """The heads that share a group's units; None where no heads, or one head only, hold them."""
    if group.blocks > 1:
        return None
    places = {member.place: member for member in group.members if member.repeat > 1}
    for other in groups:
        if not other.level:
            continue
        for member in other.members:
            held = places.get(member.place)
            if held is not None and _columns(held, member) is not None:
                return other
    return None


def lone_groups(groups: Sequence[Group]) -> list[Group]:
    """The groups of units that lie in no heads and are no heads themselves."""
    outer = {group.parent for group in groups}
    return [
        group
        for group in groups
        if group.blocks == 1
        and group.level == 0
        and group.name not in outer
        and carrier(groups, group) is None
    ]


def sites_of(found: Iterable[Site], heads: Group | None) -> list[Site]:
    """The sites at which a group's units are compared.

    Where some layer has them outside of the heads that share them, as the one that makes the heads
    of an attention pooling, they are compared there, and need not wait for the heads' order.
    """
    sites = list(found)
    if heads is not None:
        alone = [site for site in sites if not any(_are_at(m, site) for m in heads.members)]
        if not alone:
            return [one for site in sites for one in by_head(site, heads)]
        sites = alone
    return [one for site in sites for one in site.parts()]


def by_head(site: Site, heads: Group) -> list[Site]:
    """A site's units once for each head, `heads * size` of them: all of the first head's first.

    A projection to queries and keys at once holds each head's units twice: two sites.
    """
    for member in heads.members:
        if _are_at(member, site):
            held = Member(member.tensor, member.axes, site.index, member.shape)
            columns = _columns(held, member)
            if columns is not None:
                flat = site.index.T[columns].movedim(1, 0).reshape(columns.shape[1], -1, 1)
                return [replace(site, index=index) for index in flat]
    return []


def of_matched_heads(scores: Tensor, heads: Tensor) -> Tensor:
    """The scores of shared units, `(size, size)`, summed over matched heads.

    `scores` are `(heads * size, heads * size)`, as at a site of `by_head`; `heads` says which head
    of b each head of a is matched with.
    """
    count = len(heads)
    grid = scores.reshape(count, len(scores) // count, count, -1)
    return torch.stack([grid[a, :, int(b)] for a, b in enumerate(heads)]).sum(0)


def _are_at(heads: Member, site: Site) -> bool:
    """Whether a site's units lie along the axis of heads."""
    return heads.tensor == f"{site.module}.weight" and (heads.axes[0] == 0) == site.output


def _columns(held: Member, heads: Member) -> Tensor | None:
    """For each head the columns of `held.index` in it, `(heads, k)`; None if they do not fit."""
    found = heads.unit_at[held.index]
    if (found < 0).any() or (found != found[:1]).any():
        return None
    order = found[0].argsort(stable=True)
    count = len(heads.index)
    even = torch.arange(count).repeat_interleave(len(order) // count)
    if len(order) % count or not torch.equal(found[0][order], even):
        return None
    return order.reshape(count, -1)
