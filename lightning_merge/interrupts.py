"""An interrupt that Python would lose: one that comes while an object is being finalised."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_LATER = 0.02
"""Seconds after which an interrupt is tried again."""


@contextmanager
def no_interrupt_lost() -> Iterator[None]:
    """Raises KeyboardInterrupt for an interrupt, but never inside a `__del__`.

    What is raised there is printed and dropped, and Lightning's Trainers leave objects with a
    `__del__` to the garbage collector, which may take long, so that interrupts wait for just that
    moment. Nothing is changed where interrupts have a handler of someone else's, or are ignored.
    """
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _interrupt(number: int, frame: FrameType | None) -> None:
    while frame is not None:
        if frame.f_code.co_name == "__del__":
            again = threading.Timer(_LATER, os.kill, [os.getpid(), number])
            again.daemon = True
            again.start()
            return
        frame = frame.f_back
    raise KeyboardInterrupt
