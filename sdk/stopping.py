"""Ctrl-C and SIGTERM: as exceptions, for commands that come to an end by themselves, and as an event to wait on,
for those that run until they are stopped.

A handler runs in the main thread between any two steps of it, also while that thread is inside `Event.wait` with
the event's lock held: setting the event there would wait for itself for ever. So another thread sets it.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

_NUMBERS = (signal.SIGINT, signal.SIGTERM)


class Terminated(KeyboardInterrupt):
    """SIGTERM, from a service manager, a batch system or `timeout`, in a command that does not wait for it."""


def _terminated(_number: int, _frame: object) -> None:
    raise Terminated


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM raise `Terminated` while the block runs, as Ctrl-C raises KeyboardInterrupt.

    Without it the process would end at once, and leave its temporary folders. In a thread other than the main one,
    which cannot have handlers, and where somebody else handles SIGTERM, nothing changes.
    """
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _terminated)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


class Stop:
    """What was asked for.

    Attributes:
        event: Set once somebody asked to stop.
        interrupted: It was Ctrl-C.
    """

    def __init__(self) -> None:
        self.event = threading.Event()
        self.interrupted = False

    def _asked(self, number: int, _frame: object) -> None:
        self.interrupted = number == signal.SIGINT
        signal.signal(number, signal.SIG_DFL)  # the second time it is meant at once
        threading.Thread(target=self.event.set, name="stop").start()


@contextlib.contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """Turn SIGINT and SIGTERM into an event while the block runs; main thread only.

    The same signal a second time ends the process at once.
    """
    stop = Stop()
    before = {number: signal.signal(number, stop._asked) for number in _NUMBERS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
