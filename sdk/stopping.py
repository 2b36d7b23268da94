"""Ctrl-C and SIGTERM as an event to wait on, for commands that run until they are stopped.

A handler runs in the main thread between any two steps of it, also while that thread is inside `Event.wait` with
the event's lock held: setting the event there would wait for itself for ever. So another thread sets it.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

_NUMBERS = (signal.SIGINT, signal.SIGTERM)


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
