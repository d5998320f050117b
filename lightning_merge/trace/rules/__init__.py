"""The rules of ATen operators; a file here that registers some is imported here."""

from lightning_merge.trace.rules import (  # noqa: F401 - register rules
    attention,
    einsum,
    elementwise,
    layers,
    recurrent,
    shape,
    windows,
)
from lightning_merge.trace.rules.rule_table import RULES, Call, Unsupported, layouts_in

__all__ = ["RULES", "Call", "Unsupported", "layouts_in"]
