"""A bound on the time that a derivation may take."""

import time

from lightning_merge.errors import AlignmentError


class Deadline:
    """Raises once so many seconds are up; work that checks it regularly cannot hang."""

    def __init__(self, seconds: float | None = None) -> None:
        self.seconds = seconds
        self._end = None if seconds is None else time.monotonic() + seconds

    def check(self, doing: str) -> None:
        """Stops, by an `AlignmentError`, if the time is up."""
        if self._end is not None and time.monotonic() > self._end:
            raise AlignmentError(
                f"{doing} took more than the time_limit of {self.seconds:g} s; give a smaller "
                "example input, or more time"
            )
