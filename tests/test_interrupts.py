"""Interrupts at the moments at which Python drops them."""

import signal
import time

import pytest

from lightning_merge.interrupts import no_interrupt_lost


@pytest.fixture(autouse=True)
def _ordinary():
    """As in a shell's foreground, wherever the tests run."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Finalised:
    """Interrupted while it is finalised."""

    def __del__(self):
        self.interrupt()

    def interrupt(self):
        signal.raise_signal(signal.SIGINT)


@no_interrupt_lost()
def finalise():
    made = Finalised()
    del made
    end = time.monotonic() + 20
    while time.monotonic() < end:
        time.sleep(0.01)


def test_one_in_a_finaliser_comes_after_it():
    with pytest.raises(KeyboardInterrupt):
        finalise()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_one_elsewhere_comes_at_once():
    interrupted = no_interrupt_lost()(Finalised.interrupt)
    with pytest.raises(KeyboardInterrupt):
        interrupted(None)


def test_handlers_of_others_stay():
    found = []
    signal.signal(signal.SIGINT, lambda number, frame: found.append(number))
    with no_interrupt_lost():
        signal.raise_signal(signal.SIGINT)
    assert found == [signal.SIGINT]
