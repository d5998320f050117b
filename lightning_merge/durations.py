"""How long something took, as text with digits that say something."""


def in_seconds(seconds: float) -> str:
    """A number of seconds: one decimal, or two digits of what is less than a second."""
    if seconds >= 0.995:
        return f"{seconds:.1f}"
    if seconds >= 0.0995:
        return f"{seconds:.2f}"
    return f"{seconds:.2g}" if seconds >= 0.001 else "<0.001"


def duration(seconds: float) -> str:
    """A duration in the unit that suits it: `0.042 s`, `12.3 s`, `4 min`, `2.5 h`."""
    minutes = seconds / 60
    if minutes < 2:
        return f"{in_seconds(seconds)} s"
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
