"""Rows of a table to draw, and the texts of what was drawn."""

import re

from lightning_merge.plots import save


def row(method, kind, accuracy, size=None, deviation=None):
    return {
        "method": method,
        "kind": kind,
        "accuracy": accuracy,
        "accuracy_sd": deviation,
        "pool_size": size,
    }


def shown(figure, tmp_path):
    """The texts in a saved figure."""
    return re.findall(r"<text[^>]*>([^<]*)</text>", save(figure, tmp_path / "f")[1].read_text())
