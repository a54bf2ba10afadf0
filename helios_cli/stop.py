"""Ctrl-C, SIGTERM and SIGHUP: a machine or a terminal that is taken away is a Ctrl-C. How a command hears of them, at
once or after its step.

Both yield a function that tells whether one has come, for a loop to ask.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

IsStopped = Callable[[], bool]


@contextmanager
def stop_at_once() -> Iterator[IsStopped]:
    """KeyboardInterrupt wherever the program is. Python swallows one that is raised in a destructor or a callback: a
    loop that asks as well stops all the same, if later."""
    came = False

    def stop(number: int, frame: object) -> None:
        nonlocal came
        came = True
        raise KeyboardInterrupt

    with _handled(stop):
        yield lambda: came


@contextmanager
def stop_after_step() -> Iterator[IsStopped]:
    """The loop is to stop by itself; a second Ctrl-C does not wait for it."""
    came = False

    def stop(number: int, frame: object) -> None:
        nonlocal came
        if came and number == signal.SIGINT:  # torchrun follows a Ctrl-C up with a SIGTERM
            raise KeyboardInterrupt
        came = True

    with _handled(stop):
        yield lambda: came


@contextmanager
def _handled(handler: Callable[[int, object], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # which alone hears of signals
        yield
        return
    stops = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    heard = [number for number in stops if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handler) for number in heard}  # nohup, and a background job of a shell
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)
