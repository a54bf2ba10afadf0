"""Handles Ctrl-C, SIGTERM (preemption) and SIGHUP (a closed terminal) alike, at once or after a step.

Both context managers yield a function that returns whether a signal has come.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

IsStopped = Callable[[], bool]


@contextmanager
def stop_at_once() -> Iterator[IsStopped]:
    """Raise KeyboardInterrupt wherever the program is.

    Python swallows one that is raised in a destructor or callback, so a loop should check the function as well."""
    came = False

    def stop(number: int, frame: object) -> None:
        nonlocal came
        came = True
        raise KeyboardInterrupt

    with _handled(stop):
        yield lambda: came


@contextmanager
def stop_after_step() -> Iterator[IsStopped]:
    """Let a loop stop by itself after its step; a second Ctrl-C does not wait for it."""
    came = False

    def stop(number: int, frame: object) -> None:
        nonlocal came
        if came and number == signal.SIGINT:  # torchrun follows a Ctrl-C up with a SIGTERM
            raise KeyboardInterrupt
        came = True

    with _handled(stop):
        yield lambda: came


@contextmanager
def after_stops(call: Callable[[float], None]) -> Iterator[None]:
    """Stop at Ctrl-Z as any program; once it goes on, `call` gets the seconds in between."""

    def stop(number: int, frame: object) -> None:
        began = time.monotonic()
        os.kill(os.getpid(), signal.SIGSTOP)
        call(time.monotonic() - began)

    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGTSTP) is not signal.SIG_DFL:
        yield
        return
    before = signal.signal(signal.SIGTSTP, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTSTP, before)


@contextmanager
def _handled(handler: Callable[[int, object], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # the only thread that receives signals
        yield
        return
    stops = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    heard = [number for number in stops if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handler) for number in heard}  # ignored under nohup and in background jobs
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)
