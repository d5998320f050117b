"""Figures that are drawn, and whose files are there, without the seconds that rendering takes."""

from contextlib import contextmanager

import pytest


def instead_of_savefig(figure, path, **options):
    """In the place of `Figure.savefig`."""
    path.write_text("<svg/>")


@contextmanager
def unrendered():
    """No figure is rendered meanwhile."""
    from matplotlib.figure import Figure

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Figure, "savefig", instead_of_savefig)
        yield
