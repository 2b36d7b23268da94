"""Whose turn it is: the one lock of a learner, its threads, and what these tell each other under the lock.

The threads for learning, serving and trials wait for each other here and nowhere else. What they work on is
theirs. A failure in one of them is noted, and it goes on.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from device_agent.courtesy import step_back, switch_often
from sdk.errors import HeadwayError, StoreFull

log = logging.getLogger(__name__)


class Steps(NamedTuple):
    """What a thread does over and over: a step waits for something to do, and returns when told to stop.

    `nice` is by how much the thread gives way to the rest of the process.
    """

    name: str
    step: Callable[[], None]
    nice: int


class Turns:
    """The lock, the threads and their state. Reading a flag without the lock is a hint, not a fact.

    Attributes:
        changed: Guards all that the threads share; notified when there is work, and when work is done.
        stopping: The threads are to end.
        dirty: There may be something to learn.
        fresh: There may be something to serve at once.
        learning: A change is being learned.
        solving: A head is solved, or is about to be.
        trying: A head is on trial.
        scoring: Left-out scores are made: of the head on trial, or of the confirmed one.
        fault: What last went wrong; None if nothing.
        full: Why something could not be written, which is tried again; None where nothing waits for room.
    """

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.stopping = False
        self.dirty = True
        self.fresh = True
        self.learning = False
        self.solving = False
        self.trying = False
        self.scoring = False
        self.fault: str | None = None
        self.full: str | None = None
        self._threads: list[threading.Thread] = []

    @property
    def running(self) -> bool:
        """Whether the threads run; else steps are called by whoever wants them."""
        return bool(self._threads)

    def wake(self) -> None:
        """Say that there is something to learn. Needs the lock."""
        self.dirty = self.fresh = True
        self.changed.notify_all()

    def no_room(self, error: StoreFull) -> None:
        """Note that something could not be written, and is to be tried again."""
        with self.changed:
            self.fault = self.full = str(error)
            self.changed.notify_all()

    def start(self, steps: Sequence[Steps]) -> None:
        """Begin the threads."""
        switch_often()
        self._threads = [
            threading.Thread(target=self._run, args=(each.step, each.nice), name=each.name, daemon=True)
            for each in steps
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End the threads."""
        with self.changed:
            self.stopping = True
            self.changed.notify_all()
        for thread in self._threads:
            thread.join()
        self._threads.clear()

    def _run(self, step: Callable[[], None], nice: int) -> None:
        step_back(nice)
        while not self.stopping:
            step()

    @contextlib.contextmanager
    def surviving(self) -> Iterator[None]:
        """Note a failure and go on, where a thread of ours runs: the head must go on serving.

        It is noted before the step counts as done, so that whoever waited until idle sees it.
        """
        try:
            yield
        except Exception as error:
            if not self._threads:
                raise
            fault = str(error)
            if not isinstance(error, HeadwayError):
                log.exception("%s failed", threading.current_thread().name)
                fault = f"{type(error).__name__}: {error}"
            with self.changed:
                self.fault = fault
                if isinstance(error, StoreFull):
                    self.full = fault
