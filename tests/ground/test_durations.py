"""Durations keep two digits that say something, in the unit that suits them."""

import pytest

from lightning_merge.durations import duration, in_seconds


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.00004, "<0.001"),
        (0.0042, "0.0042"),
        (0.0423, "0.042"),
        (0.3, "0.30"),
        (0.996, "1.0"),
        (12.34, "12.3"),
        (4000.0, "4000.0"),
    ],
)
def test_seconds(seconds, said):
    assert in_seconds(seconds) == said
    if seconds >= 0.001:
        assert float(said) == pytest.approx(seconds, rel=0.05)


def test_units():
    assert [duration(one) for one in (0.05, 90, 600, 9000)] == [
        "0.05 s",
        "90.0 s",
        "10 min",
        "2.5 h",
    ]
